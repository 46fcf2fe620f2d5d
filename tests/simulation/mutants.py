"""Bugs to switch on, all over the product: the simulation must find each, or it proves nothing (faults.md, rule 10).

A mutant is one small mistake that somebody could make, and the promise that it breaks. `Mutant.on` puts it in the place of the right
code until the end of a block. Those of the pure core are the ones of `tests/replication/bugs.py`, here under a whole grid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import actorgrid.client.caller as client_caller
import actorgrid.host.partition as partition_module
import actorgrid.host.replica_shell as shell_module
import actorgrid.replication.sessions as sessions_module
import placement.planner as planner
import placement.repair as repair
from actorgrid import ambient
from actorgrid.actor.fields import ActorState, encode
from actorgrid.client.caller import Caller
from actorgrid.client.lane import Lane
from actorgrid.client.map import PartitionMap
from actorgrid.client.pending import PendingCall
from actorgrid.errors import ActorGridError, HostUnavailableError, ReconfigurationPendingError, TransientError
from actorgrid.host.admission import Admission
from actorgrid.host.manager import FORGET_AFTER_S, STATE_ADDRESS, Manager
from actorgrid.host.orders import Orders
from actorgrid.host.outgoing import OutgoingCalls
from actorgrid.host.partition import HostedPartition
from actorgrid.host.peers import Peers
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.host.reports import Overview
from actorgrid.host.turn import Turn
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Member
from actorgrid.replication.sessions import Session, SessionTable
from actorgrid.storage import keys
from actorgrid.storage.copy import CopySource
from actorgrid.storage.log import ReplicaLog
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.store import Store
from actorgrid.testing.simulation.loop import SimLoop
from placement.observation import PartitionView
from placement.plan import Remove
from placement.repair import next_step
from tests.replication import bugs
from tests.simulation import plan as plans
from tests.simulation.run import run

#: A run that takes longer is one that does not end.
CPU_S_MAX: Final = 60.0
#: One that then does not come to its next event within so long is torn out of what it does.
STUCK_CPU_S: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """`value` in the place of the attribute `name` of `owner`, a class or a module."""

    owner: Any
    name: str
    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake.

    :ivar area: the part of the product that it is made in
    :ivar breaks: the invariant of docs/architecture.md, or the promise in a few words
    :ivar what: the mistake in one sentence
    :ivar patches: makes what it consists of
    """

    name: str
    area: str
    breaks: str
    what: str
    patches: Callable[[], list[Patch]]

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Make the mistake until the end of the block."""
        with contextlib.ExitStack() as undo:
            for patch in self.patches():
                undo.enter_context(_put(patch))
            yield


_MISSING: Final = object()


@contextlib.contextmanager
def _put(patch: Patch) -> Iterator[None]:
    before = vars(patch.owner).get(patch.name, _MISSING)  # as it is there: a static method stays one
    assert before is not _MISSING or hasattr(patch.owner, patch.name), f"{patch.owner} has no {patch.name}"
    setattr(patch.owner, patch.name, patch.value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(patch.owner, patch.name)
        else:
            setattr(patch.owner, patch.name, before)


#: All of them, by name.
MUTANTS: Final[dict[str, Mutant]] = {}


def _add(area: str, breaks: str) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    """The decorated function makes the patches of the mutant that is named like it; its docstring is the sentence."""

    def add(patches: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = patches.__name__.replace("_", "-")
        MUTANTS[name] = Mutant(name, area, breaks, (patches.__doc__ or "").strip(), patches)
        return patches

    return add


# -- replication: the bugs of tests/replication/bugs.py

_CORES: Final[tuple[tuple[type, str], ...]] = (
    (bugs.VotesWhileBound, "I8"),
    (bugs.ServesAfterRelease, "I8"),
    (bugs.NoQuietTimeAfterARestart, "I8"),
    (bugs.DeathOfAnyIncarnation, "I8"),
    (bugs.EpochNotDurable, "I1"),
    (bugs.EpochUsedAgainAfterARestart, "I1"),
    (bugs.VotesTwiceInOneEpoch, "I1"),
    (bugs.VotesBeforeTheSync, "I1"),
    (bugs.VotesWithoutComparingLogs, "I3"),
    (bugs.IdleSecondaryElects, "I5"),
    (bugs.ReleaseIsForgotten, "a partition gets a primary again"),
    (bugs.AcknowledgesBeforeTheSync, "I2"),
    (bugs.CountsItsUnsyncedEntries, "I2"),
    (bugs.CommitsWithOneLess, "I2"),
    (bugs.CountsAnIdleSecondary, "I5"),
    (bugs.CommitsEntriesOfAnOlderEpoch, "I4"),
    (bugs.ServesBeforeItsFirstEntryIsCommitted, "I4"),
    (bugs.NoEpochCheckOfAppends, "I7"),
    (bugs.TruncatesWithoutLooking, "I3"),
    (bugs.PromotesBeforeItHasCaughtUp, "I13"),
)


def _core_patches(core: type) -> Callable[[], list[Patch]]:
    return lambda: [Patch(shell_module, "Replica", core)]


def _name_of(core: type) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in core.__name__).strip("-")


for _core, _breaks in _CORES:
    MUTANTS[_name_of(_core)] = Mutant(
        _name_of(_core), "replication", _breaks, (_core.__doc__ or "").strip().splitlines()[0], _core_patches(_core)
    )


# -- storage


@_add("storage", "I2")
def sync_is_reported_when_it_begins() -> list[Patch]:
    """Who waits for a sync is told before the disk has done it."""

    def sync(self: Store, done: Callable[[Any], None]) -> None:
        self._db.sync_soon(lambda: self._sync_and_tell(lambda error: None))
        done(None)

    return [Patch(Store, "sync", sync)]


@_add("storage", "I2")
def sync_covers_what_was_written_meanwhile() -> list[Patch]:
    """A sync that is over counts for everything that is written by then, not when it began."""

    def synced(self: ReplicaShell, now_ns: int) -> None:
        self.step(ev.Synced(self._written_no))

    return [Patch(ReplicaShell, "synced", synced)]


@_add("storage", "I1")
def vote_is_not_saved() -> list[Patch]:
    """The epoch is made durable, and whom the replica voted for in it is not."""
    real = ReplicaStore.save_epoch

    def save_epoch(self: ReplicaStore, batch: Any, epoch: int, voted_for: str) -> None:
        real(self, batch, epoch, "")

    return [Patch(ReplicaStore, "save_epoch", save_epoch)]


@_add("storage", "I9")
def applied_lsn_goes_ahead_of_the_state() -> list[Patch]:
    """The last change of a batch is left for the next one, and the position says that it is there."""
    real = ReplicaStore.apply

    def apply(self: ReplicaStore, batch: Any, committed_lsn: int) -> bool:
        left = dict([self._unapplied.popitem()]) if self._unapplied else {}
        done = real(self, batch, committed_lsn)
        self._unapplied.update(left)
        return done

    return [Patch(ReplicaStore, "apply", apply)]


@_add("storage", "I9")
def checkpoint_without_sessions() -> list[Patch]:
    """A checkpoint notes its position and writes no session."""
    real = SessionTable.take_checkpoint

    def take_checkpoint(self: SessionTable) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        return [], real(self)[1]

    return [Patch(SessionTable, "take_checkpoint", take_checkpoint)]


@_add("storage", "I9")
def sessions_are_not_replayed() -> list[Patch]:
    """A restart takes the sessions of the checkpoint, and not what the log has behind it."""
    real = ReplicaStore._replay

    def replay(self: ReplicaStore, item: Any, configurations: Any) -> None:
        if item.head.last_lsn > self.applied_lsn:
            real(self, item, configurations)

    return [Patch(ReplicaStore, "_replay", replay)]


@_add("storage", "I3")
def log_is_dropped_too_far() -> list[Patch]:
    """A checkpoint drops the log up to its last stretch, also what nobody else has and the state has not."""

    def truncate_prefix(self: ReplicaLog, batch: Any, up_to_lsn: int) -> None:
        heads = [item.head for item in self.items(self.start_lsn)]
        if len(heads) < 2:
            return
        dropped_lsn = heads[-2].last_lsn
        epoch = self.epoch_at(dropped_lsn)
        batch.put(self._prefix + keys.META_LOG_START, encode((dropped_lsn, epoch)))
        batch.truncate_log(self._prefix + keys.lsn_key(self.start_lsn), self._prefix + keys.lsn_key(dropped_lsn + 1))
        self.start_lsn = dropped_lsn + 1
        self.epochs = [(dropped_lsn, epoch), *(run for run in self.epochs if run[0] > dropped_lsn)]

    return [Patch(ReplicaLog, "truncate_prefix", truncate_prefix)]


@_add("storage", "I3")
def truncated_records_stay_on_the_disk() -> list[Patch]:
    """What contradicts the primary's log is forgotten in memory, and is there again after a restart."""
    real = ReplicaLog.truncate_suffix

    class Nothing:
        def delete_log(self, key: bytes) -> None:
            pass

    def truncate_suffix(self: ReplicaLog, batch: Any, from_lsn: int) -> None:
        real(self, Nothing(), from_lsn)  # type: ignore[arg-type]

    return [Patch(ReplicaLog, "truncate_suffix", truncate_suffix)]


@_add("storage", "I13")
def copy_loses_a_pair_between_chunks() -> list[Patch]:
    """The pair that did not fit into a chunk any more is not the first one of the next."""
    real = CopySource.next_chunk

    def next_chunk(self: CopySource) -> Any:
        chunk = real(self)
        if chunk is not None and self._held is not None and self._held[0][:1] != keys.META:
            self._held = next(self._pairs, None)
        return chunk

    return [Patch(CopySource, "next_chunk", next_chunk)]


@_add("storage", "I13")
def half_built_copy_stays() -> list[Patch]:
    """A restart does not drop what a copy has left half done."""
    return [Patch(Store, "_discard_half_built", lambda self: None)]


@_add("storage", "I6")
def position_is_not_advanced() -> list[Patch]:
    """A store does not count its batches, so that nobody sees that it went back."""
    return [Patch(Store, "advance", lambda self, batch: self.position)]


@_add("storage", "I6")
def position_of_a_disk_is_not_compared() -> list[Patch]:
    """A store of the same name counts as the same, however old it is."""

    def is_behind(mark: Any, known: Any) -> bool:
        return bool(mark.store_id != known.store_id and mark.incarnation <= known.incarnation)

    return [Patch(Peers, "_is_behind", staticmethod(is_behind))]


# -- sessions, exactly once


@_add("sessions", "I9")
def copy_without_sessions() -> list[Patch]:
    """A copy has the state and not the answers that belong to it."""
    real = CopySource._copied

    def copied(self: CopySource) -> Iterator[tuple[bytes, bytes]]:
        return (pair for pair in real(self) if pair[0][:1] != keys.SESSION)

    return [Patch(CopySource, "_copied", copied)]


@_add("sessions", "I9")
def secondaries_keep_no_answers() -> list[Patch]:
    """Who does not lead applies what is committed to the state and not to the sessions."""

    def take(self: ReplicaShell, lsn: int) -> None:
        if lsn > self._taken_lsn:
            for record in self.durable.take_committed(lsn):
                self.durable.committed(record)
                self._taken_lsn = record.last_lsn

    return [Patch(ReplicaShell, "_take", take)]


@_add("sessions", "I10")
def nested_id_is_not_derived() -> list[Patch]:
    """A call that a turn makes has another id in each execution of the turn."""
    numbers = itertools.count()

    def next_path(self: Turn) -> tuple[int, ...]:
        self.calls_made += 1
        return (*self.path, next(numbers))

    return [Patch(Turn, "next_path", next_path)]


@_add("sessions", "I10")
def nested_answers_are_not_kept() -> list[Patch]:
    """Only answers to clients are remembered, not those to turns of other actors."""
    real = SessionTable.apply

    def apply(self: SessionTable, record: Any) -> list[Session]:
        sessions = real(self, record)
        for session in sessions:
            session.nested.clear()
        return sessions

    return [Patch(SessionTable, "apply", apply)]


@_add("sessions", "I10")
def retry_beside_the_first_try() -> list[Patch]:
    """A retry that comes while the first try is under way is executed too."""
    real = Admission._answered_by_session

    def answered(self: Admission, session: Session, key: Any, *rest: Any) -> bool:
        session.running.pop(key, None)
        return real(self, session, key, *rest)

    return [Patch(Admission, "_answered_by_session", answered)]


@_add("sessions", "I10")
def digest_is_not_compared() -> list[Patch]:
    """An id that was used for another call gets that call's answer."""
    return [Patch(Admission, "_check_same", staticmethod(lambda known, digest, key, call: None))]


@_add("sessions", "I10")
def lowest_unanswered_is_freed_too() -> list[Patch]:
    """The answer to the oldest call that its client still waits for is forgotten."""
    real = sessions_module._free_below
    return [Patch(sessions_module, "_free_below", lambda session, lowest, lowest_anywhere: real(session, lowest + 1, lowest_anywhere + 1))]


@_add("sessions", "I10")
def key_beside_the_first_try() -> list[Patch]:
    """A call with a key that is under way is executed beside the first one."""
    real = Admission._answered_by_key

    def answered(self: Admission, *call: Any) -> bool:
        self._keys_running.clear()
        return real(self, *call)

    return [Patch(Admission, "_answered_by_key", answered)]


@_add("sessions", "I10")
def key_is_not_remembered() -> list[Patch]:
    """The answer under an idempotency key is known only while its call is under way."""
    return [Patch(ReplicaStore, "_collect_key", lambda self, record, address, key, remembered: None)]


# -- host shell


@_add("host", "I2")
def answer_before_commit() -> list[Patch]:
    """A write is answered as soon as its turn is over."""
    real = HostedPartition.log

    def log(self: HostedPartition, turn: Turn, status: int, payload: bytes, changes: Any) -> None:
        real(self, turn, status, payload, changes)
        turn.answer(status, payload)
        turn.sink = turn.waiters = None

    return [Patch(HostedPartition, "log", log)]


@_add("host", "I8")
def lease_is_not_checked() -> list[Patch]:
    """A read is answered by whoever was primary."""

    def answer_proven(self: HostedPartition, turn: Turn, status: int, payload: bytes) -> None:
        turn.answer(status, payload)

    return [Patch(HostedPartition, "_answer_proven", answer_proven)]


@_add("host", "no read sees what is not committed")
def read_sees_what_is_not_committed() -> list[Patch]:
    """A read does not wait for the commit of what it has seen."""

    def answer_read(self: HostedPartition, turn: Turn, status: int, payload: bytes) -> None:
        self._answer_proven(turn, status, payload)

    return [Patch(HostedPartition, "answer_read", answer_read)]


@_add("host", "I17")
def doubt_is_told_as_refusal() -> list[Patch]:
    """A primary out of office says of what it was writing that nothing happened."""
    return [Patch(partition_module, "WriteInDoubtError", lambda text: HostUnavailableError(text, retry_after_s=0.01))]


@_add("host", "I3")
def activations_outlive_the_office() -> list[Patch]:
    """A primary that comes back goes on with what it had in memory, committed or not."""
    real = HostedPartition.close

    def close(self: HostedPartition, why: str, successor: str) -> None:
        kept = dict(self.activations)
        real(self, why, successor)
        for address, activation in kept.items():
            activation.dead, activation.running, activation.queue = False, (), None
            self.activations[address] = activation

    return [Patch(HostedPartition, "close", close), Patch(HostedPartition, "rebuilt", lambda self: self._begin_anew())]


@_add("host", "a call is answered")
def held_reads_are_lost() -> list[Patch]:
    """Reads that wait for a commit are answered only by the one after it."""
    real = HostedPartition.on_commit

    def on_commit(self: HostedPartition, lsn: int) -> None:
        held = [each for each in self._gated if each[0] == lsn]
        self._gated = deque(each for each in self._gated if each[0] != lsn)
        real(self, lsn)
        self._gated.extendleft(reversed(held))

    return [Patch(HostedPartition, "on_commit", on_commit)]


@_add("host", "a turn that raises changes nothing")
def raising_turn_keeps_its_changes() -> list[Patch]:
    """What a turn has changed before it raised stays in memory."""
    return [Patch(ActorState, "rollback", lambda self: None)]


@_add("host", "what a turn changes is kept")
def change_in_place_is_not_seen() -> list[Patch]:
    """A list that a turn has changed in place is taken for the old one."""
    real = ActorState._changes_of_all

    def changes_of_all(self: ActorState, record: bytes) -> Any:
        for index, (name, *_) in enumerate(self.shape.containers):
            self.containers[index] = encode(self.values[name])
        return real(self, record)

    return [Patch(ActorState, "_changes_of_all", changes_of_all)]


@_add("host", "a primary has everything committed")
def serves_before_the_state_is_there() -> list[Patch]:
    """A new primary admits calls before what is committed is in its state."""

    def serve(self: ReplicaShell, effect: ev.Serve) -> None:
        assert self._office is not None
        self.durable.collects_changes = False
        self._office.open(effect.epoch)
        self._owner.is_primary(self.partition, effect.epoch, self.me.host)
        self._peers.announce(self.partition, effect.epoch)

    return [Patch(ReplicaShell, "_serve", serve)]


@_add("host", "an activation begins with the newest state")
def activation_goes_before_its_state_is_stored() -> list[Patch]:
    """An activation that is dropped is followed by another before the store has its last changes."""
    return [Patch(HostedPartition, "applied_lsn", property(lambda self: self.replica.last_lsn))]


@_add("host", "a call is never ahead of what its turn has seen")
def nested_call_does_not_wait_for_commit() -> list[Patch]:
    """A turn calls other actors on the strength of changes that are not committed."""

    async def until_committed(self: OutgoingCalls, turn: Turn) -> None:
        pass

    return [Patch(OutgoingCalls, "_until_committed", until_committed)]


# -- client


@_add("client", "I10")
def retry_under_a_new_number() -> list[Patch]:
    """A call whose send was lost is sent again as another call."""
    real = Caller._send_again

    def send_again(self: Caller, call: PendingCall) -> None:
        if call.is_in_doubt and call.origin is None and not call.any_replica and self._pending.pop(call.number, None) is not None:
            self._last_number += 1
            call.number = self._last_number
            self._pending[call.number] = call
            call.lane.numbers.append(call.number)
            self._deadlines.own.append(call.number)
            self._deadlines.add_own(call.number, call.deadline)
        real(self, call)

    return [Patch(Caller, "_send_again", send_again)]


@_add("client", "what is told as refused did not happen")
def deadline_is_told_as_refusal() -> list[Patch]:
    """A call that was sent and not answered in time is told to have come to nothing."""

    def at_deadline(call: PendingCall, default_timeout_s: float, *, is_begun: bool) -> ActorGridError:
        return HostUnavailableError(f"{call.title}: no answer")

    return [Patch(client_caller, "error_at_deadline", at_deadline)]


@_add("client", "what is told as refused did not happen")
def refusal_ends_the_doubt() -> list[Patch]:
    """A retry that is refused makes the client forget that an earlier send may have been executed."""
    real = Caller._on_error

    def on_error(self: Caller, call: PendingCall, error: ActorGridError) -> None:
        real(self, call, error)
        if isinstance(error, TransientError):
            call.is_in_doubt = False

    return [Patch(Caller, "_on_error", on_error)]


@_add("client", "the followed primary never has a lower epoch than before")
def older_map_overrides_the_newer() -> list[Patch]:
    """The last map that came counts, however old it is."""

    def merged_with(self: PartitionMap, other: PartitionMap) -> PartitionMap:
        return self if self._is_same_as(other) else other

    return [Patch(PartitionMap, "merged_with", merged_with)]


@_add("client", "lowest never passes a call that may be sent again")
def lowest_passes_what_is_unanswered() -> list[Patch]:
    """A client says that it has every answer, whatever it still waits for."""
    return [Patch(Lane, "lowest", lambda self, pending, next_number: next_number)]


# -- placement


@_add("placement", "I14")
def removes_before_the_successor_votes() -> list[Patch]:
    """The replica that is to leave goes as soon as another one is being built."""

    def step(ledger: Any, partition: PartitionView) -> Any:
        idle = any(not replica.is_voter for replica in partition.replicas)
        if partition.primary and idle and not partition.is_changing and partition.leaving not in ("", partition.primary):
            for replica in partition.replicas:
                if replica.host == partition.leaving and replica.is_voter:
                    return Remove(partition.id, partition.version, replica.host, replica.incarnation, "its place is taken")
        return next_step(ledger, partition)

    return [Patch(planner, "next_step", step)]


@_add("placement", "I6")
def drops_a_member() -> list[Patch]:
    """The data of a replica that is being built are dropped, since it does not vote."""

    def strangers(self: Overview) -> list[tuple[str, int, int, int, int]]:
        found = []
        for name, report in self._reports.items():
            for held in report.held if self._is_up[name] else ():
                known = self.led(held.partition)
                if known is None or known[0].is_changing or known[1] == name:
                    continue
                led = known[0]
                if Member(name, held.incarnation) not in led.voters and held.version <= led.version:
                    found.append((name, held.partition, held.incarnation, led.epoch, led.version))
        return found

    return [Patch(Overview, "strangers", strangers)]


@_add("placement", "an order names the configuration it was decided on")
def order_of_any_version() -> list[Patch]:
    """An order is carried out whatever has become of the configuration that it was decided on."""

    def led(self: Orders, number: int, arguments: dict[str, Any]) -> HostedPartition:
        partition = self._owner.partitions.get(number)
        if partition is None or not partition.serving or partition.is_handing_over:
            raise ReconfigurationPendingError(f"partition {number} is not served here")
        return partition

    return [Patch(Orders, "_led", led)]


@_add("placement", "what an operator was told is so")
def undrain_is_forgotten() -> list[Patch]:
    """An operator is told that a drain was taken back, and it was not."""

    async def take_back(self: Manager, node: str, *, keeps: bool = False) -> None:
        pass

    return [Patch(Manager, "_take_back", take_back)]


@_add("placement", "what an operator was told outlives the manager")
def intent_is_answered_before_commit() -> list[Patch]:
    """A manager goes by a change, and tells of it, before it is committed."""

    async def change(self: Manager, changed: Callable[[Any], Any]) -> None:
        system = self._owner.partitions.get(0)
        if system is None or not system.serving or system.is_handing_over or self._overview is None:
            raise HostUnavailableError("the placement manager is moving")
        self._state = self._logged = changed(self._logged)
        system.log_internal(STATE_ADDRESS, [(b"", encode(self._state))])

    return [Patch(Manager, "_change", change)]


@_add("placement", "a drain ends")
def drain_leaves_primaries() -> list[Patch]:
    """Nobody swaps the primaries away from a node that is to be restarted."""
    return [Patch(repair, "_swap_away", lambda ledger, partition: None)]


@_add("placement", "a host that is a member is not forgotten")
def wrong_host_is_forgotten() -> list[Patch]:
    """A host that is down for a while is forgotten, whether it was to go or not."""

    def gone(self: Manager, overview: Overview) -> list[str]:
        now_s = ambient.monotonic()
        return [name for name in overview.names if overview.down_s(name, now_s) > FORGET_AFTER_S]

    return [Patch(Manager, "_gone", gone)]


# -- to run with one


class DoesNotEnd(KeyboardInterrupt):
    """A run has taken too long. Of this kind, since event loops and actors let nothing else through."""


class Caught(NamedTuple):
    """How a mutant was found.

    :ivar how: the first line of what was broken
    """

    seed: int
    how: str


class Trial(NamedTuple):
    """Some seeds with a mutant switched on, up to the first that finds it."""

    name: str
    seeds_run: int
    caught: Caught | None
    cpu_s: float


def try_seeds(name: str, seeds: Sequence[int], cpu_s_max: float = CPU_S_MAX) -> Trial:
    """Run `seeds`, in this order, with a mutant switched on, until one finds it."""
    began_s = time.process_time()
    for count, seed in enumerate(seeds, 1):
        how = broken_by(MUTANTS[name], seed, cpu_s_max)
        if how:
            return Trial(name, count, Caught(seed, how), time.process_time() - began_s)
    return Trial(name, len(seeds), None, time.process_time() - began_s)


def broken_by(mutant: Mutant, seed: int, cpu_s_max: float = CPU_S_MAX) -> str:
    """What `seed` finds broken while `mutant` is switched on, in one line; empty: nothing."""
    alarms = itertools.count()

    def end(*_: object) -> None:
        raise DoesNotEnd

    def too_late(*_: object) -> None:
        if next(alarms):
            end()  # it does not come to its next event: anywhere, then, though a destructor may swallow it
        undo.enter_context(_put(Patch(SimLoop, "_run_once", end)))

    with contextlib.ExitStack() as undo:
        undo.callback(signal.signal, signal.SIGPROF, signal.signal(signal.SIGPROF, too_late))
        undo.callback(signal.setitimer, signal.ITIMER_PROF, 0)
        undo.enter_context(mutant.on())
        signal.setitimer(signal.ITIMER_PROF, cpu_s_max, STUCK_CPU_S)
        try:
            return first_line_of(run(plans.draw(seed), keep_tail=False).broken)
        except DoesNotEnd:
            return f"does not end within {cpu_s_max:g} s"


def first_line_of(broken: str) -> str:
    """What says most: the first line; of what a host died of, the error."""
    lines = broken.strip().splitlines() or [""]
    if lines[0].startswith("Traceback"):
        return lines[-1]
    if "Traceback (most recent call last):" in lines[1:2]:
        return f"{lines[0]}: {next((line for line in lines[2:] if line[:1].strip()), '')}"
    return lines[0]
