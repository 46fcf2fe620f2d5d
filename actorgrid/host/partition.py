"""One replica of one partition in its host: requests in, log entries out, answers once those are committed.

The pure core (`actorgrid.replication`) decides; this shell holds what the core must not know: activations, turns, who waits for what.
A call passes through three times: `admit` (see `admission`), `log` or `answer_read` (its turn is over), and its commit (its entry is on a
write quorum: remember the answer, and give it). What is on disk is the business of `actorgrid.storage.replica_store`.

State is applied to the store after commit, together with the next log write. Until it is applied, an activation stays in memory, so that
nobody can read the store too early.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorgrid.actor.definition import ActorType
from actorgrid.actor.fields import ActorState, Change
from actorgrid.actor.registry import ActorRegistry
from actorgrid.errors import (
    ActorGridError,
    HostUnavailableError,
    InvalidArgumentError,
    NotPrimaryError,
    RequestError,
    StorageError,
    WriteInDoubtError,
)
from actorgrid.host.activation import Activation
from actorgrid.host.admission import Admission, cannot_read
from actorgrid.host.runner import Runner, error_payload
from actorgrid.host.turn import Outgoing, Turn
from actorgrid.ids import ACTOR_ID_BYTES_MAX, Epoch, Lsn, PartitionId, partition_of, show_address
from actorgrid.replication import replica as core
from actorgrid.replication.entry import NO_CHANGES, NO_CLIENT, STATUS_INTERNAL, ClientMark, Entry, LogRecord
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.store import Batch, Store
from actorgrid.wire.messages import STATUS_ERROR

if TYPE_CHECKING:
    from actorgrid.host.commit import GroupCommit
    from actorgrid.host.residents import Residents

logger = logging.getLogger(__name__)

#: What ``on_activate`` and ``on_deactivate`` get: a call's default deadline.
HOOK_TIMEOUT_NS: Final = 30_000_000_000


@dataclasses.dataclass(slots=True)
class InFlight:
    """A log record that was written and is not committed yet, with the turns its entries belong to."""

    record: LogRecord
    turns: list[Turn]


class HostedPartition:
    """A partition this host is primary of."""

    def __init__(
        self,
        partition: PartitionId,
        partition_count: int,
        store: Store,
        registry: ActorRegistry,
        settings: HostSettings,
        runner: Runner,
        group_commit: GroupCommit,
        outgoing: Outgoing,
        residents: Residents,
    ) -> None:
        self.id = partition
        self.replica = core.Replica(partition)
        self.activations: dict[str, Activation] = {}
        self.sessions = SessionTable(settings.sessions_max, settings.session_bytes_max)
        self.outgoing = outgoing
        self._partition_count = partition_count
        self._store = store
        self._durable = ReplicaStore(partition, store, self.sessions, settings)
        self._registry = registry
        self._settings = settings
        self._runner = runner
        self._commit = group_commit
        self._residents = residents
        self.admission = Admission(self, self.activations, self.sessions, self._durable, runner, settings)
        self.admit = self.admission.admit
        self._dying: list[Activation] = []  # thrown away, and the store does not have their last changes yet
        # The tick's entries, until they become a log record.
        self._entries: list[Entry] = []
        self._turns: list[Turn] = []
        self._clients: dict[bytes, int] = {}
        self._next_lsn = 1
        self._clock_offset_ms: int | None = None
        self._in_flight: deque[InFlight] = deque()
        self._gated: deque[tuple[int, Turn, int, bytes]] = deque()  # reads that saw uncommitted changes: (lsn, turn, status, payload)
        self._commit_waiters: deque[tuple[int, Any]] = deque()
        self.changes_total = 0
        self.reads_total = 0

    # -- start

    def recover(self, batch: Batch) -> None:
        """Read what the store has; what the log has and the state lacks goes into `batch`. Asks for the next epoch.

        :raises CorruptLogError: the log has a hole, or a record does not match its checksum
        """
        epoch, last_lsn = self._durable.recover()
        self._next_lsn = last_lsn + 1
        for effect in self.replica.step(core.Recovered(Epoch(epoch), Lsn(last_lsn), Lsn(last_lsn)), time.monotonic_ns()):
            assert isinstance(effect, core.SaveEpoch)
            self._durable.apply(batch, last_lsn)
            self._durable.save_epoch(batch, effect.epoch)

    def epoch_saved(self) -> None:
        """The epoch asked for in `recover` is durable: append its first entry."""
        for effect in self.replica.step(core.EpochSynced(self.replica.epoch), time.monotonic_ns()):
            assert isinstance(effect, core.AppendFirst)
            self._entries.append(Entry(NO_CLIENT, 0, (), 0, "", STATUS_INTERNAL, b"", NO_CHANGES))
            self._next_lsn = effect.lsn + 1
            self._commit.mark(self)

    @property
    def applied_lsn(self) -> int:
        """The store has everything up to here."""
        return self._durable.applied_lsn

    @property
    def serving(self) -> bool:
        return self.replica.serving

    # -- activations

    def enqueue(self, turn: Turn) -> None:
        activation = turn.activation
        if activation.queue is None:
            activation.queue = deque()
        activation.queue.append(turn)

    def history_is_lost(self, known_lsn: int) -> HostUnavailableError:
        """A client knows a position that this log does not have: the disk went back in time, and may not be served from (I6)."""
        what = f"partition {self.id} ends at position {self.replica.last_lsn}, and a client knows position {known_lsn}"
        logger.error("history lost partition=%d last_lsn=%d known_lsn=%d", self.id, self.replica.last_lsn, known_lsn)
        return HostUnavailableError(f"{what}: the data directory of this host has lost history; put it back", retry_after_s=1.0)

    @property
    def store_has_failed(self) -> bool:
        return self._store.has_failed

    def store_failed(self, error: StorageError) -> None:
        """Storage failed under this partition: the whole host leaves duty (I12)."""
        self._commit.fail(error)

    def activate(self, address: str) -> Activation:
        """Bring an actor into memory.

        :raises RequestError: there is no such type, the id is not allowed, or the actor belongs to another partition
        """
        type_name, separator, actor_id = address.partition("\0")
        if not separator or not actor_id or "\0" in actor_id or len(actor_id.encode()) > ACTOR_ID_BYTES_MAX:
            raise InvalidArgumentError(
                f"{address!r:.200} is not an actor's address: expected type, NUL, id of 1..{ACTOR_ID_BYTES_MAX} bytes without NUL"
            )
        actor_type = self._registry.get(type_name)
        belongs_to = partition_of(address, self._partition_count)
        if belongs_to != self.id:
            raise NotPrimaryError(f"{show_address(address)} belongs to partition {belongs_to}, not {self.id}", partition=belongs_to)
        return self._make_activation(address, actor_type)

    def _make_activation(self, address: str, actor_type: ActorType) -> Activation:
        try:
            state = ActorState(actor_type.shape, self._durable.entries_of(address))
        except ActorGridError:
            raise
        except Exception as error:  # noqa: BLE001 - the application's own types may raise anything when they are decoded
            raise RequestError(
                f"the stored state of {show_address(address)} does not fit class {actor_type.name} any more: {error}; "
                "give changed fields a type that accepts both, and convert in on_activate"
            ) from None
        activation = Activation(self, address, actor_type, state)
        self.activations[address] = activation
        self._residents.added(activation)
        if not activation.ready:
            self._submit_hook(activation, "on_activate")
        return activation

    def _submit_hook(self, activation: Activation, hook: str) -> None:
        """Let the actor's hook be its next turn: not at once, so that whoever needed the actor can queue up behind it; never refused."""
        deadline_ns = time.monotonic_ns() + HOOK_TIMEOUT_NS
        turn = Turn(activation, activation.actor_type.hooks[hook], (), 0, b"", 0, deadline_ns, None, 0)
        self._runner.take(turn)
        self.enqueue(turn)
        self._runner.resume_soon(activation)

    def deactivate(self, activation: Activation) -> None:
        """Take an idle actor out of memory; its ``on_deactivate`` runs first, if it has one."""
        if not activation.droppable or activation.dead:
            return
        if activation.ready and "on_deactivate" in activation.actor_type.hooks:
            activation.ready = False
            self._submit_hook(activation, "on_deactivate")
            return
        if not activation.state.is_clean():
            logger.error(
                "a @grid.read method, or something outside any turn, changed state without logging it; the change is lost actor=%s",
                show_address(activation.address),
            )
        self.drop(activation)

    def drop(self, activation: Activation) -> None:
        """Forget an activation. Calls that wait for it, or come before the store has its last changes, go to a new one."""
        if activation.dead:
            return
        activation.dead = True
        if activation.queue is None:
            activation.queue = deque()
        activation.queue.extend(self.admission.take_waiting(activation))
        self._residents.removed(activation)
        if activation.last_lsn <= self.applied_lsn:
            self._bury(activation)
        else:
            self._dying.append(activation)

    def _bury(self, activation: Activation) -> None:
        del self.activations[activation.address]
        waiting, activation.queue = activation.queue, None
        if not waiting:
            return
        try:
            successor = self._make_activation(activation.address, activation.actor_type)
        except StorageError as error:
            for turn in waiting:
                self._runner.refuse(turn, cannot_read(error))
            self.store_failed(error)
            return
        except ActorGridError as error:
            for turn in waiting:
                self._runner.refuse(turn, error)
            return
        for turn in waiting:
            turn.activation = successor
            self.enqueue(turn)
        self._runner.resume_soon(successor)

    # -- a turn is over

    def answer_read(self, turn: Turn, status: int, payload: bytes) -> None:
        """Answer a read, once what it may have seen is committed."""
        self.reads_total += 1
        lsn = turn.activation.last_lsn
        if lsn > self.replica.committed_lsn:
            self._gated.append((lsn, turn, status, payload))
        else:
            turn.answer(status, payload)

    def log(self, turn: Turn, status: int, payload: bytes, changes: list[Change] | None) -> None:
        """Put a finished turn into the log; its caller is answered when that is committed (I2)."""
        activation = turn.activation
        client = NO_CLIENT
        if turn.client_id:
            clients = self._clients
            known = clients.get(turn.client_id)
            if known is None:
                known = clients[turn.client_id] = len(clients)
            client = known
        elif changes is None:
            self._hook_is_over(turn, status, payload)
            return
        lsn = self._next_lsn
        self._next_lsn = lsn + 1
        activation.last_lsn = lsn
        if activation.state.view is not None and (turn.scope is None or turn.scope.took_entries):
            activation.state.view.logged(lsn)
        if client == NO_CLIENT:
            # Only now: an activation that goes must not be followed by another before the store has what its hook changed.
            self._hook_is_over(turn, status, payload)
            status, payload = STATUS_INTERNAL, b""
        entry = Entry(client, turn.number, turn.path, turn.digest, activation.address, status, payload, changes or NO_CHANGES, turn.key)
        self._entries.append(entry)
        self._turns.append(turn)
        self._runner.uncommitted += 1
        if lsn == self.replica.last_lsn + 1:
            self._commit.mark(self)

    def _hook_is_over(self, turn: Turn, status: int, payload: bytes) -> None:
        """An ``on_activate`` or ``on_deactivate`` has run."""
        activation = turn.activation
        failed = status == STATUS_ERROR
        if failed:
            logger.error(
                "hook failed hook=%s actor=%s error=%s",
                turn.method.qualified_name,
                show_address(activation.address),
                msgspec.msgpack.decode(payload)[1],
            )
        if turn.method.name == "on_activate" and not failed:
            activation.ready = True
            return
        if turn.method.name == "on_activate":
            # Without it the actor is not usable: those who wait are told, and the next call tries again.
            waiting, activation.queue = activation.queue, None
            for waiter in waiting or ():
                self._runner.refuse_with(waiter, payload)
        self.drop(activation)

    # -- the tick's record, and its commit

    def write_record(self, batch: Batch, now_ns: int) -> None:
        """Turn what was logged since the last time into one log record of `batch`, and apply what has been committed since."""
        if self.replica.role is core.Role.NONE:
            return
        if self._entries:
            if self.replica.serving:
                effects = self.replica.step(core.EntriesProposed(len(self._entries)), now_ns)
                assert len(effects) == 1
                effect = effects[0]
                assert isinstance(effect, core.AppendLog)
                epoch, first_lsn = effect.epoch, effect.first_lsn
            else:
                epoch, first_lsn = self.replica.epoch, self.replica.last_lsn
            marks = []
            for client_id in self._clients:
                session = self.sessions.open(client_id, self.sessions.evicted_lsn)
                assert session is not None
                marks.append(ClientMark(client_id, session.heard, session.heard_anywhere))
            record = LogRecord(epoch, first_lsn, self._time_ms(now_ns), marks, self._entries)
            self._durable.append(batch, record)
            self._in_flight.append(InFlight(record, self._turns))
            self._entries, self._turns, self._clients = [], [], {}
        self._apply(batch)

    def _time_ms(self, now_ns: int) -> int:
        """Time of the next record: the date of the start, then the monotonic clock, so that a clock that jumps ages nothing."""
        if self._clock_offset_ms is None:
            self._clock_offset_ms = max(wall_clock_ms(), self._durable.last_time_ms) - now_ns // 1_000_000
        return max(self._durable.last_time_ms, now_ns // 1_000_000 + self._clock_offset_ms)

    def synced(self, now_ns: int) -> None:
        """Everything handed to `write_record` so far is durable."""
        if self.replica.role is core.Role.NONE or not self._in_flight:
            return
        for effect in self.replica.step(core.LogSynced(Lsn(self._in_flight[-1].record.last_lsn)), now_ns):
            match effect:
                case core.Commit(lsn):
                    self._on_commit(lsn)
                case core.Serve(epoch):
                    logger.info("primary partition=%d epoch=%d last_lsn=%d", self.id, epoch, self.replica.last_lsn)
                case _:
                    raise AssertionError(f"unexpected {effect}")

    def _on_commit(self, lsn: int) -> None:
        """Entries up to `lsn` are on a write quorum: they are the truth now, and their callers may know."""
        in_flight = self._in_flight
        while in_flight and in_flight[0].record.last_lsn <= lsn:
            flight = in_flight.popleft()
            self._remember(flight)
            self._durable.committed(flight.record)
        gated = self._gated
        while gated and gated[0][0] <= lsn:
            _, turn, status, payload = gated.popleft()
            turn.answer(status, payload)
        waiters = self._commit_waiters
        while waiters and waiters[0][0] <= lsn:
            waiter = waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    def _remember(self, flight: InFlight) -> None:
        """Put the record's answers into the sessions, and send them."""
        sessions = self.sessions.apply(flight.record)
        self.changes_total += len(flight.turns)
        self._runner.uncommitted -= len(flight.turns)
        # The first record of an epoch has an entry without a turn; every other has a turn for each entry.
        for entry, turn in zip(flight.record.entries if flight.turns else (), flight.turns, strict=True):
            if turn.session_key is not None:
                sessions[entry.client].running.pop(turn.session_key, None)
            elif turn.key is not None:
                self.admission.key_is_done(entry.address, turn.key)
            turn.answer(entry.status, entry.result)

    def write_applied(self, batch: Batch) -> None:
        """Put what is committed into the state, without appending anything."""
        if self.replica.role is not core.Role.NONE:
            self._apply(batch)

    def _apply(self, batch: Batch) -> None:
        if self._durable.apply(batch, self.replica.committed_lsn):
            for activation in self._dying:
                if activation.last_lsn <= self.applied_lsn:
                    self._commit.after_write(functools.partial(self._bury, activation))
            self._dying = [activation for activation in self._dying if activation.last_lsn > self.applied_lsn]

    @property
    def has_unapplied(self) -> bool:
        return self.replica.committed_lsn > self.applied_lsn

    def wait_committed(self, lsn: int, waiter: Any) -> None:
        """Set `waiter` (a future) once everything up to `lsn` is committed."""
        if lsn <= self.replica.committed_lsn:
            waiter.set_result(None)
        else:
            self._commit_waiters.append((lsn, waiter))

    # -- the end

    def step_down(self, why: str) -> None:
        """Leave duty: what was handed to storage is in doubt, what is still running or waiting is refused (I12, I17)."""
        if not self.replica.step(core.StorageFailed(why), time.monotonic_ns()):
            return
        doubt = error_payload(WriteInDoubtError(f"partition {self.id} lost its store while this change was being written: {why}"))
        refused = error_payload(HostUnavailableError(f"partition {self.id} is out of duty: {why}", retry_after_s=0.1))
        for flight in self._in_flight:
            for turn in flight.turns:
                turn.answer(STATUS_ERROR, doubt)
        for turn in self._turns:
            turn.answer(STATUS_ERROR, doubt)
        for _, turn, _, _ in self._gated:
            turn.answer(STATUS_ERROR, refused)
        for _, waiter in self._commit_waiters:
            if not waiter.done():
                waiter.set_exception(HostUnavailableError(f"partition {self.id} is out of duty: {why}"))
        for turn in self.admission.give_up():
            turn.answer(STATUS_ERROR, refused)
        self._in_flight.clear()
        self._gated.clear()
        self._commit_waiters.clear()
        self._turns, self._entries = [], []
        for activation in list(self.activations.values()):
            activation.dead = True
            for turn in activation.running:
                if turn.task is not None:
                    turn.task.cancel()
                # What it has changed is gone, what others did for it is not: it must be known as one that was sent before.
                turn.answer(STATUS_ERROR, doubt if turn.calls_made else refused)
            for turn in activation.queue or ():
                turn.answer(STATUS_ERROR, refused)
            activation.running, activation.queue = (), None
        self.activations.clear()

    def status(self) -> dict[str, Any]:
        """One row of ``actorgrid status``."""
        replica = self.replica
        return {
            "id": self.id,
            "epoch": replica.epoch,
            "last_lsn": replica.last_lsn,
            "committed_lsn": replica.committed_lsn,
            "applied_lsn": self.applied_lsn,
            "role": str(replica.role),
            "serving": replica.serving,
            "activations": len(self.activations),
            "sessions": len(self.sessions),
            "log_bytes": self._durable.log_bytes,
        }


def wall_clock_ms() -> int:
    """The date, in ms since 1970. Only ages idempotency records; no decision about safety looks at it (I15)."""
    return time.time_ns() // 1_000_000
