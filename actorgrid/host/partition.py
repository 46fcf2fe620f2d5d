"""One replica of one partition in its host: requests in, log entries out, answers once those are committed.

The pure core (`actorgrid.replication`) decides; this shell holds what the core must not know: activations, turns, who waits for what.
A call passes through here three times: `admit` (is the request new, is it well formed, which activation), `log` or `answer_read` (its
turn is over), and `commit` (its entry is on a write quorum: remember the answer, and give it).

State is applied to the store after commit, together with the next log write; a restart applies again what the log has and the state
lacks. Until it is applied, an activation stays in memory, so that nobody can read the store too early.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
from xxhash import xxh3_64_intdigest

from actorgrid.actor.definition import ActorType
from actorgrid.actor.fields import ActorState, Change
from actorgrid.actor.registry import ActorRegistry
from actorgrid.errors import (
    ActorGridError,
    CorruptLogError,
    HostUnavailableError,
    InvalidArgumentError,
    NonDeterministicTurnError,
    NotPrimaryError,
    OverloadedError,
    ReentrancyError,
    RequestError,
    SessionExpiredError,
    StorageError,
    UnknownMethodError,
    WriteInDoubtError,
)
from actorgrid.host.activation import Activation, StoredEntries
from actorgrid.host.runner import Runner, error_payload
from actorgrid.host.turn import Outgoing, Sink, Turn
from actorgrid.ids import ACTOR_ID_BYTES_MAX, Epoch, Lsn, PartitionId, partition_of, show_address
from actorgrid.replication import replica as core
from actorgrid.replication.entry import NO_CHANGES, NO_CLIENT, STATUS_INTERNAL, ClientMark, Entry, LogRecord, decode_record, encode_record
from actorgrid.replication.sessions import Decision, RecordKey, Session, SessionRecord, SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage import keys
from actorgrid.storage.store import Batch, Store
from actorgrid.wire.messages import STATUS_ERROR, Call

if TYPE_CHECKING:
    from actorgrid.host.commit import GroupCommit
    from actorgrid.host.residents import Residents

logger = logging.getLogger(__name__)

#: This issue's replicas are never rebuilt in place; the number is part of every key so that later ones can be.
FIRST_INCARNATION: Final = 1
#: Expired idempotency records dropped for each one written: more than one, so that they cannot pile up.
EXPIRED_PER_ENTRY_MAX: Final = 4
#: What ``on_activate`` and ``on_deactivate`` get: a call's default deadline.
HOOK_TIMEOUT_NS: Final = 30_000_000_000

_encode = msgspec.msgpack.Encoder().encode
_decode_key_record = msgspec.msgpack.Decoder(SessionRecord).decode
_decode_session_meta = msgspec.msgpack.Decoder(tuple[int, int]).decode


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
        self.sessions = SessionTable(settings.sessions_max)
        self.outgoing = outgoing
        self.applied_lsn = 0
        self._partition_count = partition_count
        self._store = store
        self._registry = registry
        self._settings = settings
        self._runner = runner
        self._commit = group_commit
        self._residents = residents
        self._dying: list[Activation] = []  # thrown away, and the store does not have their last changes yet
        self._prefix = keys.replica_prefix(partition, FIRST_INCARNATION)
        # The tick's entries, until they become a log record.
        self._entries: list[Entry] = []
        self._turns: list[Turn] = []
        self._clients: dict[bytes, int] = {}
        self._next_lsn = 1
        self._in_flight: deque[InFlight] = deque()
        self._gated: deque[tuple[int, Turn, int, bytes]] = deque()  # reads that saw uncommitted changes: (lsn, turn, status, payload)
        self._commit_waiters: deque[tuple[int, Any]] = deque()
        self._unapplied: dict[bytes, bytes | None] = {}
        self._keys_running: dict[tuple[str, str], Turn] = {}
        self._reentrant_waiting: dict[Activation, deque[Turn]] = {}
        self._log_sizes: deque[tuple[int, int]] = deque()  # (last lsn, bytes) of the records kept
        self._log_bytes = 0
        self._checkpoint_lsn = 0
        self._time_ms = 0
        self.changes_total = 0
        self.reads_total = 0

    # -- start

    def recover(self, batch: Batch) -> None:
        """Read what the store has; what the log has and the state lacks goes into `batch`. Asks for the next epoch.

        :raises CorruptLogError: the log has a hole, or a record does not match its checksum
        """
        epoch = self._stored_number(keys.META_EPOCH)
        self.applied_lsn = self._stored_number(keys.META_APPLIED)
        stored_meta = self._store.get(self._prefix + keys.META_SESSIONS)
        self._checkpoint_lsn, evicted_lsn = _decode_session_meta(stored_meta) if stored_meta is not None else (0, 0)
        start = self._prefix + keys.SESSION
        for key, image in self._store.scan(start, keys.after(start)):
            self.sessions.load_image(key[len(start) :], image)
        self.sessions.loaded(evicted_lsn)
        last_lsn = self._replay_log()
        self._next_lsn = last_lsn + 1
        for effect in self.replica.step(core.Recovered(Epoch(epoch), Lsn(last_lsn), Lsn(last_lsn)), time.monotonic_ns()):
            assert isinstance(effect, core.SaveEpoch)
            self._write_applied(batch, last_lsn)
            batch.put(self._prefix + keys.META_EPOCH, effect.epoch.to_bytes(8, "big"))

    def _stored_number(self, name: bytes) -> int:
        stored = self._store.get(self._prefix + name)
        return int.from_bytes(stored, "big") if stored is not None else 0

    def _replay_log(self) -> int:
        """Bring sessions and state up to the end of the log. A configuration of one member: its whole log is committed."""
        last_lsn = self._checkpoint_lsn
        log_start, log_stop = self._prefix + keys.lsn_key(0), keys.after(self._prefix) + keys.lsn_key(0)
        expected: int | None = None
        for key, data in self._store.scan_log(log_start, log_stop):
            try:
                record = decode_record(data)
            except CorruptLogError as error:
                raise CorruptLogError(f"partition {self.id}, record that ends at {int.from_bytes(key[-8:], 'big')}: {error}") from None
            if expected is not None and record.first_lsn != expected:
                raise CorruptLogError(f"partition {self.id}: the log continues at {record.first_lsn} where {expected} was expected")
            expected = record.last_lsn + 1
            self._keep_log(record.last_lsn, len(data))
            if record.last_lsn > self._checkpoint_lsn:
                if expected is not None and record.first_lsn > last_lsn + 1:
                    raise CorruptLogError(f"partition {self.id}: sessions are known up to {last_lsn}, the log begins at {record.first_lsn}")
                self.sessions.apply(record)
                last_lsn = record.last_lsn
            if record.last_lsn > self.applied_lsn:
                self._collect_changes(record)
            self._time_ms = max(self._time_ms, record.time_ms)
        if last_lsn < self.applied_lsn:
            raise CorruptLogError(f"partition {self.id}: state is applied up to {self.applied_lsn}, the log ends at {last_lsn}")
        return last_lsn

    def epoch_saved(self) -> None:
        """The epoch asked for in `recover` is durable: append its first entry."""
        for effect in self.replica.step(core.EpochSynced(self.replica.epoch), time.monotonic_ns()):
            assert isinstance(effect, core.AppendFirst)
            self._entries.append(Entry(NO_CLIENT, 0, (), 0, "", STATUS_INTERNAL, b"", NO_CHANGES))
            self._next_lsn = effect.lsn + 1
            self._commit.mark(self)

    @property
    def serving(self) -> bool:
        return self.replica.serving

    # -- a request arrives

    def admit(self, call: Call, client_id: bytes, lowest: int, lowest_anywhere: int, since_lsn: int, sink: Sink, now_ns: int) -> None:
        """Take one call: run it, attach it to its first try, or answer it. Never raises; every call gets an answer by `sink`."""
        try:
            activation = self.activations.get(call.address)
            if activation is None:
                if not self.replica.serving:
                    raise HostUnavailableError(f"partition {self.id} does not serve at the moment", retry_after_s=0.05)
                activation = self._activate(call.address)
            activation.used = True
            method = activation.actor_type.methods.get(call.method)
            if method is None:
                raise self._unknown_method(activation.actor_type, call.method)
            extra = call.extra
            number = call.correlation
            if method.read:
                turn = Turn(
                    activation,
                    method,
                    method.decode_args(call.args),
                    0,
                    client_id,
                    number,
                    now_ns + call.timeout_ms * 1_000_000,
                    sink,
                    number,
                )
                if extra is not None:
                    self._take_extra(turn, call)
            else:
                raw = bytes(call.args)
                digest = xxh3_64_intdigest(raw, activation.hash64 ^ method.hash64)
                if extra is not None and extra.key is not None:
                    if self._answered_by_key(call, digest, sink):
                        return
                    turn = self._new_turn(activation, method, call, raw, client_id, digest, sink, now_ns)
                    self._keys_running[call.address, extra.key] = turn
                else:
                    session = self.sessions.get(client_id) or self._open_session(client_id, since_lsn)
                    key: RecordKey = number
                    if extra is not None:
                        number = extra.number if extra.number is not None else number
                        key = (number, extra.path) if extra.path else number
                    if self._answered_by_session(session, key, call, digest, lowest, lowest_anywhere, since_lsn, sink):
                        return
                    turn = self._new_turn(activation, method, call, raw, client_id, digest, sink, now_ns)
                    turn.session_key = key
                    session.running[key] = turn
            try:
                if turn.chain and activation.address in turn.chain:
                    self._admit_reentrant(turn)
                else:
                    self._runner.submit(turn)
            except ActorGridError:
                self.forget_running(turn)
                raise
        except StorageError as error:
            self.store_failed(error)
            refusal = HostUnavailableError(f"the store of this host cannot be read: {error}", retry_after_s=0.1)
            sink.reply(call.correlation, STATUS_ERROR, error_payload(refusal))
        except ActorGridError as error:
            sink.reply(call.correlation, STATUS_ERROR, error_payload(error))

    def _new_turn(
        self, activation: Activation, method: Any, call: Call, raw: bytes, client_id: bytes, digest: int, sink: Sink, now_ns: int
    ) -> Turn:
        deadline_ns = now_ns + call.timeout_ms * 1_000_000
        turn = Turn(activation, method, method.decode_args(raw), len(raw), client_id, call.correlation, deadline_ns, sink, call.correlation)
        turn.digest = digest
        if call.extra is not None:
            self._take_extra(turn, call)
        return turn

    @staticmethod
    def _take_extra(turn: Turn, call: Call) -> None:
        extra = call.extra
        assert extra is not None
        if extra.number is not None:
            turn.number = extra.number
        turn.path, turn.chain, turn.again, turn.key = extra.path, extra.chain, extra.again, extra.key

    def _open_session(self, client_id: bytes, since_lsn: int) -> Session:
        session = self.sessions.open(client_id, since_lsn)
        if session is None:
            raise self._forgotten(self.sessions.evicted_lsn, since_lsn)
        return session

    def _forgotten(self, forgotten_lsn: int, since_lsn: int) -> SessionExpiredError:
        return SessionExpiredError(
            f"partition {self.id} no longer knows what this client did: it has forgotten it up to position {forgotten_lsn}, "
            f"and the request may have been executed from position {since_lsn} on",
            current_lsn=self.replica.committed_lsn,
        )

    def _answered_by_session(
        self, session: Session, key: RecordKey, call: Call, digest: int, lowest: int, lowest_anywhere: int, since_lsn: int, sink: Sink
    ) -> bool:
        """Whether the request was seen before, and has its answer now or will have it with its first try (I10)."""
        running = session.running.get(key)
        if running is not None:
            self._check_same(running.digest, digest, key, call)
            running.attach(sink, call.correlation)
            return True
        record = session.find(key)
        if record is not None:
            self._check_same(record.digest, digest, key, call)
            sink.reply(call.correlation, record.status, record.result)
            return True
        decision = session.decide(key, lowest, lowest_anywhere, since_lsn)
        if decision is Decision.FORGOTTEN:
            raise self._forgotten(session.floor_lsn, since_lsn)
        if decision is Decision.STALE:
            raise SessionExpiredError(f"request {key} is older than {session.heard}, up to which its client said it has all answers")
        if len(session) + len(session.running) >= self._settings.session_records_max:
            raise OverloadedError(
                f"{len(session)} answers of this client are kept and not yet acknowledged, which is the limit", retry_after_s=0.05
            )
        return False

    @staticmethod
    def _check_same(known: int, digest: int, key: object, call: Call) -> None:
        if known == digest:
            return
        if isinstance(key, tuple):
            raise NonDeterministicTurnError(
                f"the turn of request {key[0]} was executed again and now calls {show_address(call.address)}.{call.method} "
                f"as its call {key[1]}, where it made another call the first time"
            )
        raise RequestError(
            f"request {key} was already used for another call than {show_address(call.address)}.{call.method} with these arguments"
        )

    def _answered_by_key(self, call: Call, digest: int, sink: Sink) -> bool:
        assert call.extra is not None
        key = call.extra.key
        assert key is not None
        running = self._keys_running.get((call.address, key))
        if running is not None:
            self._check_same(running.digest, digest, f"key {key!r}", call)
            running.attach(sink, call.correlation)
            return True
        storage_key = self._prefix + keys.idempotency_key(call.address, key)
        stored = self._unapplied[storage_key] if storage_key in self._unapplied else self._store.get(storage_key)
        if stored is None:
            return False
        record = _decode_key_record(stored)
        self._check_same(record.digest, digest, f"key {key!r}", call)
        sink.reply(call.correlation, record.status, record.result)
        return True

    def _admit_reentrant(self, turn: Turn) -> None:
        """The call came back to an actor of its own chain (A -> B -> A)."""
        activation = turn.activation
        if not turn.method.reentrant:
            chain = [show_address(address) for address in (*turn.chain, activation.address)]
            raise ReentrancyError(
                f"{turn.method.qualified_name} was called by a chain of calls that {chain[-1]} itself waits for: {' -> '.join(chain)}; "
                "mark it @grid.reentrant if it may run in between",
                chain=chain,
            )
        if not activation.running:
            self._runner.submit(turn)
        elif _waits_for(activation.running[-1], turn):
            self._runner.take(turn)
            self._runner.run_reentrant(turn)
        else:
            waiting = self._reentrant_waiting.setdefault(activation, deque())
            if len(waiting) >= self._settings.actor_queue_max:
                raise OverloadedError(f"{len(waiting)} reentrant calls wait for {show_address(activation.address)}", retry_after_s=0.02)
            self._runner.take(turn)
            waiting.append(turn)

    def has_reentrant_waiting(self, activation: Activation) -> bool:
        return activation in self._reentrant_waiting

    def admit_waiting_reentrant(self, activation: Activation) -> None:
        """A turn of `activation` is over: perhaps a reentrant call can go on now. If nothing runs any more, all wait like any other."""
        waiting = self._reentrant_waiting.pop(activation, None)
        if waiting and not activation.dead:
            for turn in [turn for turn in waiting if activation.running and _waits_for(activation.running[-1], turn)][:1]:
                waiting.remove(turn)
                self._runner.run_reentrant(turn)
            if waiting and activation.running:
                waiting.extend(self._reentrant_waiting.pop(activation, ()))
                self._reentrant_waiting[activation] = waiting
            else:
                for turn in waiting:
                    self.enqueue(turn)
        self._runner.resume_queue(activation)

    def enqueue(self, turn: Turn) -> None:
        activation = turn.activation
        if activation.queue is None:
            activation.queue = deque()
        activation.queue.append(turn)

    @property
    def store_has_failed(self) -> bool:
        return self._store.has_failed

    def store_failed(self, error: StorageError) -> None:
        """Storage failed under this partition: the whole host leaves duty (I12)."""
        self._commit.fail(error)

    def forget_running(self, turn: Turn) -> None:
        """`turn` ends without a log entry: the same request may be executed by a later try."""
        if turn.session_key is not None:
            session = self.sessions.open(turn.client_id, self.sessions.evicted_lsn)
            if session is not None and session.running.get(turn.session_key) is turn:
                del session.running[turn.session_key]
        elif turn.key is not None and self._keys_running.get((turn.activation.address, turn.key)) is turn:
            del self._keys_running[turn.activation.address, turn.key]

    # -- activations

    def _activate(self, address: str) -> Activation:
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
            state = ActorState(actor_type.shape, StoredEntries(self._store, self._prefix, address))
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
        activation.queue.extend(self._reentrant_waiting.pop(activation, ()))
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
                self._runner.refuse(turn, HostUnavailableError(f"the store of this host cannot be read: {error}", retry_after_s=0.1))
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

    def _unknown_method(self, actor_type: ActorType, name: str) -> UnknownMethodError:
        return UnknownMethodError(
            f"{actor_type.name} has no remote method {name!r:.100}; it has: {', '.join(sorted(actor_type.methods)) or 'none'}"
        )

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
            self._time_ms = max(self._time_ms, wall_clock_ms())
            marks = []
            for client_id in self._clients:
                session = self.sessions.open(client_id, self.sessions.evicted_lsn)
                assert session is not None
                marks.append(ClientMark(client_id, session.heard, session.heard_anywhere))
            record = LogRecord(epoch, first_lsn, self._time_ms, marks, self._entries)
            data = encode_record(record)
            batch.append_log(self._prefix + keys.lsn_key(record.last_lsn), data)
            self._keep_log(record.last_lsn, len(data))
            self._in_flight.append(InFlight(record, self._turns))
            self._entries, self._turns, self._clients = [], [], {}
        self._write_applied(batch, self.replica.committed_lsn)

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
            self._collect_changes(flight.record)
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
                self._keys_running.pop((entry.address, turn.key), None)
            turn.answer(entry.status, entry.result)

    def _collect_changes(self, record: LogRecord) -> None:
        """What the record's entries put into storage, the last value of each key (I11: a function of state and entries alone)."""
        unapplied, prefix = self._unapplied, self._prefix
        for entry in record.entries:
            if entry.changes:
                start = prefix + keys.state_key(entry.address)
                for suffix, value in entry.changes:
                    unapplied[start + suffix] = value
            if entry.key is not None:
                self._collect_key(record, entry.address, entry.key, SessionRecord(entry.digest, entry.status, entry.result, 0))

    def _collect_key(self, record: LogRecord, address: str, key: str, remembered: SessionRecord) -> None:
        """Keep the answer under its idempotency key, and let a few expired ones go, by the record's own time."""
        prefix, unapplied = self._prefix, self._unapplied
        record_key = keys.idempotency_key(address, key)
        unapplied[prefix + record_key] = _encode(remembered)
        expiry_ms = record.time_ms + int(self._settings.idempotency_retention_s * 1000)
        unapplied[prefix + keys.expiry_key(expiry_ms, record_key)] = b""
        start = prefix + keys.EXPIRY
        dropped = 0
        for expiry, _ in self._store.scan(start, start + record.time_ms.to_bytes(8, "big")):
            if expiry in unapplied:
                continue
            unapplied[expiry] = None
            unapplied.setdefault(prefix + expiry[len(start) + 8 :], None)
            dropped += 1
            if dropped == EXPIRED_PER_ENTRY_MAX:
                break

    def write_applied(self, batch: Batch) -> None:
        """Put what is committed into the state, without appending anything."""
        if self.replica.role is not core.Role.NONE:
            self._write_applied(batch, self.replica.committed_lsn)

    def _write_applied(self, batch: Batch, committed_lsn: int) -> None:
        """Put committed changes into the state, and say up to where; sometimes also a checkpoint of the sessions."""
        if committed_lsn > self.applied_lsn:
            prefix, unapplied = self._prefix, self._unapplied
            for key, value in unapplied.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
            unapplied.clear()
            batch.put(prefix + keys.META_APPLIED, committed_lsn.to_bytes(8, "big"))
            self.applied_lsn = committed_lsn
            if committed_lsn - self._checkpoint_lsn >= self._settings.session_checkpoint_entries:
                self._write_checkpoint(batch)
            for activation in self._dying:
                if activation.last_lsn <= committed_lsn:
                    self._commit.after_write(functools.partial(self._bury, activation))
            self._dying = [activation for activation in self._dying if activation.last_lsn > committed_lsn]

    def _write_checkpoint(self, batch: Batch) -> None:
        """Sessions as they are at ``applied_lsn``, so that the log before it is no longer needed for them."""
        prefix = self._prefix
        images, forgotten = self.sessions.take_checkpoint()
        for client_id, image in images:
            batch.put(prefix + keys.SESSION + client_id, image)
        for client_id in forgotten:
            batch.delete(prefix + keys.SESSION + client_id)
        batch.put(prefix + keys.META_SESSIONS, _encode((self.applied_lsn, self.sessions.evicted_lsn)))
        self._checkpoint_lsn = self.applied_lsn
        sizes, first_kept = self._log_sizes, 0
        while len(sizes) > 1 and self._log_bytes > self._settings.log_retention_bytes and sizes[0][0] <= self._checkpoint_lsn:
            last_lsn, size = sizes.popleft()
            self._log_bytes -= size
            first_kept = last_lsn + 1
        if first_kept:
            batch.truncate_log(prefix + keys.lsn_key(0), prefix + keys.lsn_key(first_kept))

    def _keep_log(self, last_lsn: int, size: int) -> None:
        self._log_sizes.append((last_lsn, size))
        self._log_bytes += size

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
        for waiting in self._reentrant_waiting.values():
            for turn in waiting:
                turn.answer(STATUS_ERROR, refused)
        self._reentrant_waiting.clear()
        self._in_flight.clear()
        self._gated.clear()
        self._commit_waiters.clear()
        self._turns, self._entries = [], []
        for activation in list(self.activations.values()):
            activation.dead = True
            for turn in activation.running:
                if turn.task is not None:
                    turn.task.cancel()
                turn.answer(STATUS_ERROR, refused)
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
            "log_bytes": self._log_bytes,
        }


def _waits_for(innermost: Turn, call: Turn) -> bool:
    """Whether `innermost` is the turn, or an ancestor of the turn, that made `call`."""
    depth = len(innermost.path)
    return (
        innermost.client_id == call.client_id
        and innermost.number == call.number
        and call.path[:depth] == innermost.path
        and depth < len(call.path)
    )


def wall_clock_ms() -> int:
    """The date, in ms since 1970. Only ages idempotency records; no decision about safety looks at it (I15)."""
    return time.time_ns() // 1_000_000
