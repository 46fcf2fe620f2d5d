"""The office of a partition: what a host does with a replica while it is primary.

Requests in, log entries out, answers once those are committed.

The pure core decides, and `replica_shell` stores and sends; here is what neither must know: activations, turns, who waits for what.
A call passes through three times: `admit` (see `admission`), `log` or `answer_read` (its turn is over), and its commit (its entry is on a
write quorum: remember the answer, and give it). An office opens when the replica has become primary and everything committed is in its
state; when it closes, everything in memory is thrown away. A secondary answers reads with ``consistency="any"`` alone.

State is applied to the store after commit, together with the next log write. Until it is applied, an activation stays in memory, so that
nobody can read the store too early.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorgrid import ambient
from actorgrid.actor.definition import ActorType
from actorgrid.actor.fields import ActorState, Change
from actorgrid.actor.registry import ActorRegistry
from actorgrid.errors import (
    ActorGridError,
    HostUnavailableError,
    InvalidArgumentError,
    NotPrimaryError,
    NoWriteQuorumError,
    RequestError,
    StorageError,
    WriteInDoubtError,
)
from actorgrid.host.activation import Activation
from actorgrid.host.admission import Admission, cannot_read
from actorgrid.host.load import ReportedLoad
from actorgrid.host.runner import Runner, error_payload
from actorgrid.host.turn import Outgoing, Turn
from actorgrid.ids import ACTOR_ID_BYTES_MAX, PartitionId, partition_of, show_address
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Member
from actorgrid.replication.entry import NO_CHANGES, NO_CLIENT, STATUS_INTERNAL, ClientMark, Entry, LogRecord
from actorgrid.replication.replica import Role
from actorgrid.settings import HostSettings
from actorgrid.storage.store import Store
from actorgrid.wire.messages import STATUS_ERROR

if TYPE_CHECKING:
    from actorgrid.host.commit import GroupCommit
    from actorgrid.host.replica_shell import ReplicaShell
    from actorgrid.host.residents import Residents

logger = logging.getLogger(__name__)

#: What is running when a partition is to be handed over gets so long, one try after another; meanwhile its callers wait.
HAND_OVER_PATIENCE_S: Final[tuple[float, ...]] = (0.02, 0.04, 0.08, 0.25)
#: Before each try, the partition serves on for so long at most, until none of its turns waits for other actors.
HAND_OVER_QUIET_S: Final = 0.1
#: How long a look at who was heard is good for.
CONTACT_LOOK_NS: Final = 50_000_000

#: What ``on_activate`` and ``on_deactivate`` get: a call's default deadline.
HOOK_TIMEOUT_NS: Final = 30_000_000_000


@dataclasses.dataclass(slots=True)
class InFlight:
    """A log record that was written and is not committed yet, with the turns its entries belong to (None: nobody's)."""

    record: LogRecord
    turns: list[Turn | None]


class HostedPartition:
    """A partition of which this host has a replica.

    :param shell: that replica
    :param primary_of: what to tell callers about where the primary is: "name@address:port" or empty, and its epoch
    """

    def __init__(
        self,
        shell: ReplicaShell,
        partition_count: int,
        primary_of: Callable[[int], tuple[str, int]],
        store: Store,
        registry: ActorRegistry,
        settings: HostSettings,
        runner: Runner,
        group_commit: GroupCommit,
        outgoing: Outgoing,
        residents: Residents,
    ) -> None:
        self.id: PartitionId = shell.partition
        self.shell = shell
        self.replica = shell.core
        self.activations: dict[str, Activation] = {}
        self.outgoing = outgoing
        self._primary_of = primary_of
        self._partition_count = partition_count
        self._store = store
        self._registry = registry
        self._settings = settings
        self._runner = runner
        self._commit = group_commit
        self._residents = residents
        #: Calls are admitted.
        self.serving = False
        self.is_handing_over = False
        self._is_closed = False  # for the last moments of it: nothing is admitted
        self._handed_over: asyncio.Future[bool] | None = None
        self._begin_anew()
        self._dying: list[Activation] = []  # thrown away, and the store does not have their last changes yet
        # The tick's entries, until they become a log record.
        self._entries: list[Entry] = []
        self._turns: list[Turn | None] = []
        self._clients: dict[bytes, int] = {}
        self._next_lsn = 1
        self._contact_until_ns = 0
        self._clock_offset_ms: int | None = None
        self._in_flight: deque[InFlight] = deque()
        self._gated: deque[tuple[int, Turn, int, bytes]] = deque()  # reads that saw uncommitted changes: (lsn, turn, status, payload)
        self._commit_waiters: deque[tuple[int, Any]] = deque()
        self.changes_total = 0
        self.reads_total = 0
        self.load = ReportedLoad()

    # -- the office opens and closes (`replica_shell.Office`)

    def _begin_anew(self) -> None:
        """What is remembered of the past is the replica's; what is under way begins with nothing."""
        self.sessions = self.shell.sessions
        self._durable = self.shell.durable
        self.admission = Admission(self, self.activations, self.sessions, self._durable, self._runner, self._settings)
        self.admit = self.admission.admit

    def open(self, epoch: int) -> None:
        """Everything committed is in the state: admit calls."""
        self.rebuilt()
        self._next_lsn = self.replica.last_lsn + 1
        self._contact_until_ns = 0
        self.serving = True

    def refusal(self, now_ns: int) -> ActorGridError | None:
        """Why no call may be admitted now; None if it may.

        What cannot be expected to commit is not begun: its caller is told at once that nothing happened.
        """
        if not self.serving:
            return self.not_here()
        if self._is_closed:
            return HostUnavailableError(f"partition {self.id} is being handed over", retry_after_s=0.002)
        if now_ns < self._contact_until_ns:
            return None
        if self.replica.has_contact(now_ns):
            self._contact_until_ns = now_ns + CONTACT_LOOK_NS
            return None
        return self._no_quorum()

    def not_here(self) -> ActorGridError:
        """The refusal of a call that belongs to the primary."""
        primary, epoch = self._primary_of(self.id)
        if self.replica.role is Role.NONE:
            return HostUnavailableError(f"the replica of partition {self.id} on this host is out of duty", retry_after_s=0.1)
        if self.replica.role is Role.PRIMARY and not primary:
            return HostUnavailableError(f"partition {self.id} does not serve at the moment", retry_after_s=0.01)
        if not primary and not self.shell.hears_quorum(ambient.monotonic_ns()):
            return self._no_quorum()
        return NotPrimaryError(
            f"partition {self.id} is not here; its primary is {primary or 'unknown'}", partition=self.id, primary=primary, epoch=epoch
        )

    def _no_quorum(self) -> NoWriteQuorumError:
        configuration = self.replica.configuration
        return NoWriteQuorumError(
            f"partition {self.id} does not hear a write quorum ({configuration.write_quorum} of {len(configuration.voters)} replicas)",
            retry_after_s=0.05,
        )

    @property
    def applied_lsn(self) -> int:
        """The store has everything up to here."""
        return self.shell.durable.applied_lsn

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
        return HostUnavailableError(f"{what}: data directories of this grid have lost history; put them back", retry_after_s=1.0)

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
        return self._make_activation(address, self.type_of(address))

    def catch_up(self) -> None:
        """Bring into the state what is known to be committed: a read is about to look at it."""
        if self.shell.has_unapplied:
            self._commit.apply_now(self.shell)

    def type_of(self, address: str) -> ActorType:
        """The type of an actor of this partition.

        :raises RequestError: as `activate`
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
        return actor_type

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
        deadline_ns = ambient.monotonic_ns() + HOOK_TIMEOUT_NS
        turn = Turn(activation, activation.actor_type.hooks[hook], (), 0, b"", 0, deadline_ns, None, 0)
        self._runner.take(turn)
        self.enqueue(turn)
        self._runner.resume_soon(activation)

    def deactivate(self, activation: Activation) -> None:
        """Take an idle actor out of memory; its ``on_deactivate`` runs first, if it has one."""
        if not activation.droppable or activation.dead:
            return
        if self.serving and activation.ready and "on_deactivate" in activation.actor_type.hooks:
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
        self.load.forget(activation)
        if activation.queue is None:
            activation.queue = deque()
        activation.queue.extend(self.admission.take_waiting(activation))
        self._residents.removed(activation)
        if activation.last_lsn <= self.applied_lsn:
            self._bury(activation)
        else:
            self._dying.append(activation)
            self._commit.apply_soon(self.shell)

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
        """Answer a read, once what it may have seen is committed, and with proof that this replica is primary still (I8)."""
        self.reads_total += 1
        lsn = turn.activation.last_lsn
        if lsn > self.replica.committed_lsn:
            self._gated.append((lsn, turn, status, payload))
        else:
            self._answer_proven(turn, status, payload)

    def _answer_proven(self, turn: Turn, status: int, payload: bytes) -> None:
        """The proof is looked at after the work: whatever the turn saw was then the newest there was."""
        if turn.any_replica:
            turn.answer_at(status, payload, self.replica.committed_lsn if self.serving else self.applied_lsn)
        elif self.replica.has_lease(ambient.monotonic_ns()):
            turn.answer(status, payload)
        else:
            turn.answer(STATUS_ERROR, error_payload(self.unproven()))

    def unproven(self) -> ActorGridError:
        """The refusal of a read that cannot be answered since there may be another primary."""
        return self._no_quorum() if self.serving else self.not_here()

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
            self._commit.mark(self.shell)

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

    def log_internal(self, address: str, changes: list[Change]) -> int:
        """Log changes that no call made; their position."""
        lsn = self._next_lsn
        self._next_lsn = lsn + 1
        self._entries.append(Entry(NO_CLIENT, 0, (), 0, address, STATUS_INTERNAL, b"", changes))
        self._turns.append(None)
        self._commit.mark(self.shell)
        return lsn

    # -- the tick's record, and its commit (`replica_shell.Office`)

    @property
    def waiting_entries(self) -> int:
        return len(self._entries)

    def take_entries(self, epoch: int, first_lsn: int, now_ns: int) -> LogRecord:
        """What was logged since the last time, as one log record."""
        marks = []
        for client_id in self._clients:
            session = self.sessions.open(client_id, self.sessions.evicted_lsn)
            assert session is not None
            marks.append(ClientMark(client_id, session.heard, session.heard_anywhere))
        record = LogRecord(epoch, first_lsn, self._time_ms(now_ns), marks, self._entries)
        assert record.last_lsn + 1 == self._next_lsn, (record.last_lsn, self._next_lsn)
        self._in_flight.append(InFlight(record, self._turns))
        self._entries, self._turns, self._clients = [], [], {}
        return record

    def internal_record(self, epoch: int, lsn: int, entry: Entry) -> LogRecord:
        """A record of one entry that no turn made."""
        assert not self._entries
        record = LogRecord(epoch, lsn, self._time_ms(ambient.monotonic_ns()), [], [entry])
        self._in_flight.append(InFlight(record, [None]))
        self._next_lsn = lsn + 1
        return record

    @property
    def first_in_flight_lsn(self) -> int:
        return self._in_flight[0].record.first_lsn if self._in_flight else 0

    def _time_ms(self, now_ns: int) -> int:
        """Time of the next record: the date of the start, then the monotonic clock, so that a clock that jumps ages nothing."""
        if self._clock_offset_ms is None:
            self._clock_offset_ms = max(wall_clock_ms(), self._durable.last_time_ms) - now_ns // 1_000_000
        return max(self._durable.last_time_ms, now_ns // 1_000_000 + self._clock_offset_ms)

    def on_commit(self, lsn: int) -> None:
        """Entries up to `lsn` are on a write quorum: they are the truth now, and their callers may know."""
        in_flight = self._in_flight
        while in_flight and in_flight[0].record.last_lsn <= lsn:
            self._remember(in_flight.popleft())
        gated = self._gated
        while gated and gated[0][0] <= lsn:
            _, turn, status, payload = gated.popleft()
            self._answer_proven(turn, status, payload)
        waiters = self._commit_waiters
        while waiters and waiters[0][0] <= lsn:
            waiter = waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)
        if self._dying:
            self._commit.apply_soon(self.shell)

    def _remember(self, flight: InFlight) -> None:
        """Put the record's answers into the sessions, and send them."""
        sessions = self.shell.sessions.apply(flight.record)
        self.shell.taken(flight.record)
        for entry, turn in zip(flight.record.entries, flight.turns, strict=True):
            if turn is None:
                continue
            self.changes_total += 1
            self._runner.uncommitted -= 1
            if turn.session_key is not None:
                sessions[entry.client].running.pop(turn.session_key, None)
            elif turn.key is not None:
                self.admission.key_is_done(entry.address, turn.key)
            turn.answer(entry.status, entry.result)

    def on_applied(self) -> None:
        """The store's state has caught up: activations that waited for that can go."""
        if self._dying:
            applied_lsn = self.applied_lsn
            gone = [activation for activation in self._dying if activation.last_lsn <= applied_lsn]
            self._dying = [activation for activation in self._dying if activation.last_lsn > applied_lsn]
            for activation in gone:
                self._bury(activation)

    def forget(self, addresses: list[str]) -> None:
        """The state under these actors has changed, or under all if none is named: what was read of it for "any" reads is old."""
        refused = b""
        for address in addresses or list(self.activations):
            activation = self.activations.get(address)
            if activation is None:
                continue
            for turn in activation.running:
                refused = refused or error_payload(HostUnavailableError("the state changed while it was being read", retry_after_s=0.002))
                turn.answer(STATUS_ERROR, refused)
                if turn.task is not None:
                    turn.task.cancel()
            self.drop(activation)

    def rebuilt(self) -> None:
        """A copy has taken the place of everything that was here."""
        self._begin_anew()
        self.forget([])

    def wait_committed(self, lsn: int, waiter: Any) -> None:
        """Set `waiter` (a future) once everything up to `lsn` is committed."""
        if lsn <= self.replica.committed_lsn:
            waiter.set_result(None)
        else:
            self._commit_waiters.append((lsn, waiter))

    # -- handing over (Ongaro 2014, §3.10)

    def best_successor(self) -> Member | None:
        """Of the secondaries near the log's end one that may lead at once, with the most of it; None if there is none, or no primary."""
        core = self.replica
        if not self.serving:
            return None
        near = [
            (self.shell.may_lead(member), progress.match_lsn, member)
            for member, progress in core.progress.items()
            if member in core.configuration.voters and core.is_caught_up(progress)
        ]
        return max(near)[2] if near else None

    async def hand_over(self, target: Member) -> bool:
        """Make `target` the primary.

        The partition goes on serving until nothing of it waits for other actors, if such a moment comes soon. Then nothing more is
        admitted, what runs is finished, and the core releases the office once `target` has everything. Callers are told to come again at
        once, and then where to. If what runs takes longer than a caller should notice, the partition serves again, and later tries with
        more patience; a turn that takes longer than all of it keeps the partition here.

        :return: whether it was handed over
        """
        if not self.serving or self.is_handing_over:
            return False
        self.is_handing_over = True
        began_s = ambient.monotonic()
        try:
            self.shell.step(ev.SwapExpected(target))
            for patience_s in HAND_OVER_PATIENCE_S:
                await self._until(lambda: not self._has_waiting_turns(), HAND_OVER_QUIET_S)
                closed_s = ambient.monotonic()
                if not await self._come_to_rest(patience_s):
                    continue
                if not self.replica.serving:  # it has lost its office meanwhile, and nobody would answer
                    return False
                self._handed_over = asyncio.get_running_loop().create_future()
                # A core that does not serve any more abandons it.
                self.shell.step(ev.SwapProposed(target))
                handed_over = await self._handed_over
                logger.info(
                    "hand over partition=%d to=%s done=%s waited_ms=%.1f closed_ms=%.1f",
                    self.id,
                    target,
                    handed_over,
                    (closed_s - began_s) * 1e3,
                    (ambient.monotonic() - closed_s) * 1e3,
                )
                return handed_over
            logger.info("not handed over, a turn takes long partition=%d to=%s", self.id, target)
            return False
        finally:
            self.shell.step(ev.SwapExpected(None))
            self.is_handing_over = self._is_closed = False

    async def _come_to_rest(self, patience_s: float) -> bool:
        """Admit nothing, send back what has not begun, and wait for the rest; whether that was over in time. If not, serve on."""
        self._is_closed = True
        busy = error_payload(HostUnavailableError(f"partition {self.id} is being handed over", retry_after_s=0.002))
        for activation in list(self.activations.values()):
            queue = activation.queue
            if queue is not None and activation.running:
                hooks = deque([turn for turn in queue if not turn.client_id])
                for turn in [turn for turn in queue if turn.client_id]:
                    self._runner.refuse_with(turn, busy)
                activation.queue = hooks or None
        if await self._until(lambda: not self._is_busy(), patience_s):
            return True
        self._is_closed = False
        return False

    async def _until(self, is_so: Callable[[], bool], patience_s: float) -> bool:
        """Whether it came to be so in time."""
        deadline_s = ambient.monotonic() + patience_s
        while not is_so():
            if ambient.monotonic() > deadline_s:
                return False
            await asyncio.sleep(0.001)
        return True

    def _has_waiting_turns(self) -> bool:
        """Whether a turn of this partition has begun and waits, for other actors as a rule."""
        return any(turn.activation.partition is self for turn in self._runner.suspended)

    def _is_busy(self) -> bool:
        """Whether anything that was admitted is not over and committed yet."""
        if not self.serving:
            return False
        if self._entries or self._in_flight or self._gated or self._has_waiting_turns():
            return True
        return any(activation.running or activation.queue for activation in self.activations.values())

    # -- the end

    def swap_abandoned(self, why: str) -> None:
        """The primary stays here."""
        logger.info("swap abandoned partition=%d why=%s", self.id, why)
        self._end_hand_over(done=False)
        if self._entries:
            self._commit.mark(self.shell)  # what was logged meanwhile was not taken while the office might go

    def _end_hand_over(self, *, done: bool) -> None:
        if self._handed_over is not None and not self._handed_over.done():
            self._handed_over.set_result(done)

    def close(self, why: str, successor: str) -> None:
        """Leave office: what was handed to storage is in doubt, what is still running or waiting is refused (I12, I17)."""
        self.serving = False
        self._end_hand_over(done=bool(successor))
        doubt = error_payload(WriteInDoubtError(f"partition {self.id} changed its primary while this change was being written: {why}"))
        primary, epoch = self._primary_of(self.id)
        if self._store.has_failed or not primary:
            # Who is primary next says so itself, to every client, as soon as it serves.
            refused = error_payload(HostUnavailableError(f"partition {self.id} is out of duty: {why}", retry_after_s=0.01))
        else:
            refused = error_payload(
                NotPrimaryError(f"partition {self.id} has moved: {why}", partition=self.id, primary=primary, epoch=epoch)
            )
        for flight in self._in_flight:
            for turn in flight.turns:
                if turn is not None:
                    self._runner.uncommitted -= 1
                    turn.answer(STATUS_ERROR, doubt)
        for turn in self._turns:
            if turn is not None:
                self._runner.uncommitted -= 1
                turn.answer(STATUS_ERROR, doubt)
        for _, turn, _, _ in self._gated:
            turn.answer(STATUS_ERROR, refused)
        for _, waiter in self._commit_waiters:
            if not waiter.done():
                waiter.set_exception(HostUnavailableError(f"partition {self.id} is out of duty: {why}"))
        for turn in self.admission.give_up():
            self._runner.release(turn)
            turn.answer(STATUS_ERROR, refused)
        self._in_flight.clear()
        self._gated.clear()
        self._commit_waiters.clear()
        self._turns, self._entries, self._clients = [], [], {}
        self._dying = []
        for activation in list(self.activations.values()):
            if not activation.dead:
                self._residents.removed(activation)
            activation.dead = True
            self.load.forget(activation)
            for turn in activation.running:
                if turn.task is not None:
                    turn.task.cancel()
                # What it has changed is gone, what others did for it is not: it must be known as one that was sent before.
                turn.answer(STATUS_ERROR, doubt if turn.calls_made else refused)
            for turn in activation.queue or ():
                self._runner.release(turn)
                turn.answer(STATUS_ERROR, refused)
            activation.running, activation.queue = (), None
        self.activations.clear()
        self.shell.sessions.forget_running()
        # What runs on in threads or swallows its cancellation must find nothing of the next office.
        self.activations = {}
        self._begin_anew()

    def status(self) -> dict[str, Any]:
        """This host's part of one row of ``actorgrid status``."""
        replica = self.replica
        configuration = replica.configuration
        now_ns = ambient.monotonic_ns()
        is_primary = replica.role is Role.PRIMARY
        return {
            "id": self.id,
            "epoch": replica.epoch,
            "last_lsn": replica.last_lsn,
            "committed_lsn": replica.committed_lsn,
            "applied_lsn": self.applied_lsn,
            "role": str(replica.role),
            "incarnation": replica.me.incarnation,
            "serving": self.serving,
            "has_quorum": is_primary and replica.has_contact(now_ns),
            "has_lease": is_primary and replica.has_lease(now_ns),
            "configuration_version": configuration.version,
            "voters": [list(member) for member in configuration.voters],
            "idle": [list(member) for member in configuration.idle],
            "configuration_pending": replica.log.configuration_lsn > replica.committed_lsn,
            "progress": [
                {
                    "host": member.host,
                    "incarnation": member.incarnation,
                    "acknowledged_lsn": progress.match_lsn,
                    "pace": progress.pace.name.lower(),
                    "is_up": progress.is_up,
                    "is_missing": progress.is_missing,
                }
                for member, progress in replica.progress.items()
            ],
            "activations": len(self.activations),
            "sessions": len(self.shell.sessions),
            "log_bytes": self.shell.durable.log_bytes,
        }


def wall_clock_ms() -> int:
    """The date, in ms since 1970. Only ages idempotency records; no decision about safety looks at it (I15)."""
    return ambient.wall_clock_ns() // 1_000_000
