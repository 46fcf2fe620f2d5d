"""Admission: what happens to a call between its arrival and its turn.

Is the request new, under way, or answered already (I10)? Do its arguments fit? Does it close a circle? A call that is admitted becomes
a `Turn`; any other is answered here. What a partition remembers of finished requests is in its sessions and idempotency records; what is
under way at the moment is kept here and in ``Session.running``, and is forgotten with the process.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64_intdigest

from actorgrid import ambient
from actorgrid.actor.definition import ActorType
from actorgrid.actor.methods import Method
from actorgrid.actor.types import ATOMS
from actorgrid.errors import (
    ActorGridError,
    DeadlockError,
    HostUnavailableError,
    NonDeterministicTurnError,
    OverloadedError,
    ReentrancyError,
    RequestError,
    SessionExpiredError,
    StorageError,
    UnknownMethodError,
)
from actorgrid.host.activation import Activation
from actorgrid.host.batch import ReadBatch
from actorgrid.host.runner import Runner, error_payload
from actorgrid.host.turn import Sink, Turn
from actorgrid.ids import show_address
from actorgrid.replication.replica import Role
from actorgrid.replication.sessions import Decision, RecordKey, Session, SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.wire.messages import STATUS_ERROR, STATUS_OK, Call

if TYPE_CHECKING:
    from actorgrid.host.partition import HostedPartition


#: Nobody waits longer than a day, whatever the frame says.
TIMEOUT_MS_MAX: Final = 86_400_000


class Admission:
    """The gate of one partition."""

    def __init__(
        self,
        partition: HostedPartition,
        activations: dict[str, Activation],
        sessions: SessionTable,
        durable: ReplicaStore,
        runner: Runner,
        settings: HostSettings,
    ) -> None:
        self._partition = partition
        self._activations = activations
        self._sessions = sessions
        self._durable = durable
        self._runner = runner
        self._settings = settings
        self._keys_running: dict[tuple[str, str], Turn] = {}
        self._reentrant_waiting: dict[Activation, deque[Turn]] = {}

    # -- a request arrives

    def admit(self, call: Call, client_id: bytes, lowest: int, lowest_anywhere: int, since_lsn: int, sink: Sink, now_ns: int) -> None:
        """Take one call: run it, attach it to its first try, or answer it. Never raises; every call gets an answer by `sink`."""
        try:
            activation = self._activations.get(call.address)
            if activation is None:
                if not self._partition.serving:
                    raise HostUnavailableError(f"partition {self._partition.id} does not serve at the moment", retry_after_s=0.05)
                activation = self._partition.activate(call.address)
            activation.used = True
            method = activation.actor_type.methods.get(call.method)
            if method is None:
                raise self._unknown_method(activation.actor_type, call.method)
            extra = call.extra
            number = call.correlation
            raw = bytes(call.args)
            if method.read:
                turn = self._new_turn(activation, method, call, raw, client_id, 0, sink, now_ns)
            else:
                digest = xxh3_64_intdigest(raw, activation.hash64 ^ method.hash64)
                if extra is not None and extra.key is not None:
                    if self._answered_by_key(call, digest, sink):
                        return
                    turn = self._new_turn(activation, method, call, raw, client_id, digest, sink, now_ns)
                    self._keys_running[call.address, extra.key] = turn
                else:
                    session = self._sessions.get(client_id) or self._open_session(client_id, since_lsn)
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
                    if turn.chain and activation.running:
                        _refuse_deadlock(turn)
                    self._runner.submit(turn)
            except ActorGridError:
                self.forget(turn)
                raise
        except StorageError as error:
            self._partition.store_failed(error)
            sink.reply(call.correlation, STATUS_ERROR, error_payload(cannot_read(error)))
        except ActorGridError as error:
            sink.reply(call.correlation, STATUS_ERROR, error_payload(error))

    def admit_batch(self, batch: ReadBatch, count: int, now_ns: int) -> None:
        """Take the next items of a batch of reads, `count` at most; the partition admits calls. Never raises.

        Each is a turn of its own, with everything that this means. The same for all of them are the method, the arguments as a rule, and
        the proof that they saw the newest there is, which is looked at once after the work (I8): nobody else had the loop meanwhile.
        """
        partition, runner, activations = self._partition, self._runner, self._activations
        addresses, args, method_name, client_id = batch.addresses, batch.args, batch.method_name, batch.client_id
        if not batch.deadline_ns:
            batch.deadline_ns = now_ns + min(batch.timeout_ms, TIMEOUT_MS_MAX) * 1_000_000
        elif batch.deadline_ns < now_ns:
            batch.refuse_rest(OverloadedError(f"the deadline passed in the queue of partition {partition.id}; nothing happened"))
            return
        deadline_ns, first = batch.deadline_ns, batch.number + 1
        start = batch.begun
        batch.begun = stop = min(start + count, batch.count)
        is_one_args = len(args) == 1
        raw = bytes(args[0])
        actor_type: ActorType | None = None
        method: Method | None = None
        common: tuple[Any, ...] | None = None
        indexes: list[int] = []
        payloads: list[bytes] = []
        for index in range(start, stop):
            address = addresses[index]
            try:
                activation = activations.get(address)
                if activation is None:
                    if not partition.serving:
                        raise HostUnavailableError(f"partition {partition.id} does not serve at the moment", retry_after_s=0.05)
                    activation = partition.activate(address)
                activation.used = True
                if method is None or activation.actor_type is not actor_type:
                    method = common = None  # no method of another class, if this one has none
                    method = self._batched_method(activation.actor_type, method_name)
                    actor_type = activation.actor_type
                if not is_one_args:
                    raw = bytes(args[index])
                given = common
                if given is None:
                    given = method.decode_args(raw)
                    if is_one_args and all(type(value) in ATOMS for value in given):
                        common = given  # no turn can change it for the others
                turn = Turn(activation, method, given, len(raw), client_id, first + index, deadline_ns, batch, index)
                if activation.running or activation.queue is not None:
                    runner.submit(turn)
                    continue
                payload = runner.read_now(turn)
                if payload:
                    if activation.last_lsn > partition.replica.committed_lsn:
                        partition.answer_read(turn, STATUS_OK, payload)
                    else:
                        indexes.append(index)
                        payloads.append(payload)
                runner.resume_queue(activation)
            except StorageError as error:
                partition.store_failed(error)
                batch.reply(index, STATUS_ERROR, error_payload(cannot_read(error)))
            except ActorGridError as error:
                batch.reply(index, STATUS_ERROR, error_payload(error))
        partition.reads_total += len(indexes)
        if indexes and partition.replica.has_lease(ambient.monotonic_ns()):
            batch.reply_all(indexes, payloads)
        elif indexes:
            refusal = error_payload(partition.unproven())
            for index in indexes:
                batch.reply(index, STATUS_ERROR, refusal)
        if stop == batch.count:
            batch.all_begun()

    def _batched_method(self, actor_type: ActorType, name: str) -> Method:
        method = actor_type.methods.get(name)
        if method is None:
            raise self._unknown_method(actor_type, name)
        if not method.read:
            # The client has another release of the class. Alone, the call is what it is here.
            raise HostUnavailableError(f"{method.qualified_name} is not a read on this host: call it alone")
        return method

    def admit_any(self, call: Call, client_id: bytes, sink: Sink, now_ns: int) -> None:
        """Take a read that any replica may answer, at a replica that is not primary. Never raises.

        It sees what is known here to be committed. An actor whose type has an ``on_activate`` cannot be read so: the hook may
        change state.
        """
        partition = self._partition
        try:
            if partition.replica.role not in (Role.ACTIVE_SECONDARY, Role.IDLE_SECONDARY):
                raise partition.not_here()
            partition.catch_up()
            activation = self._activations.get(call.address)
            if activation is None:
                if "on_activate" in partition.type_of(call.address).hooks:
                    raise partition.not_here()
                activation = partition.activate(call.address)
            activation.used = True
            method = activation.actor_type.methods.get(call.method)
            if method is None:
                raise self._unknown_method(activation.actor_type, call.method)
            if not method.read or method.consistency != "any":
                raise partition.not_here()
            turn = self._new_turn(activation, method, call, bytes(call.args), client_id, 0, sink, now_ns)
            self._runner.submit(turn)
        except StorageError as error:
            partition.store_failed(error)
            sink.reply(call.correlation, STATUS_ERROR, error_payload(cannot_read(error)))
        except ActorGridError as error:
            sink.reply(call.correlation, STATUS_ERROR, error_payload(error))

    def _new_turn(
        self, activation: Activation, method: Any, call: Call, raw: bytes, client_id: bytes, digest: int, sink: Sink, now_ns: int
    ) -> Turn:
        deadline_ns = now_ns + min(call.timeout_ms, TIMEOUT_MS_MAX) * 1_000_000
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
        turn.any_replica = extra.any_replica and turn.method.read

    def _open_session(self, client_id: bytes, since_lsn: int) -> Session:
        session = self._sessions.open(client_id, since_lsn)
        if session is None:
            raise self._forgotten(self._sessions.evicted_lsn, since_lsn)
        return session

    def _forgotten(self, forgotten_lsn: int, since_lsn: int) -> SessionExpiredError:
        return SessionExpiredError(
            f"partition {self._partition.id} no longer knows what this client did: it has forgotten it up to position {forgotten_lsn}, "
            f"and the request may have been executed from position {since_lsn} on",
            current_lsn=self._partition.replica.committed_lsn,
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
        if session.bytes > self._settings.session_bytes_max:
            raise OverloadedError(
                f"{session.bytes} bytes of answers of this client are kept and not yet acknowledged, which is the limit", retry_after_s=0.05
            )
        if session.record_count + len(session.running) >= self._settings.session_records_max:
            raise OverloadedError(
                f"{session.record_count} answers of this client are kept and not yet acknowledged, which is the limit", retry_after_s=0.05
            )
        return False

    @staticmethod
    def _check_same(known: int, digest: int, key: object, call: Call) -> None:
        if known == digest:
            return
        if call.extra is not None and call.extra.path:
            raise NonDeterministicTurnError(
                f"the turn of request {call.extra.number} was executed again and now calls {show_address(call.address)}.{call.method} "
                f"as its call {call.extra.path}, where it made another call the first time"
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
        record = self._durable.key_record(call.address, key)
        if record is None:
            return False
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

    def has_waiting(self, activation: Activation) -> bool:
        return activation in self._reentrant_waiting

    def admit_waiting(self, activation: Activation) -> None:
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
                    self._partition.enqueue(turn)
        self._runner.resume_queue(activation)

    def forget(self, turn: Turn) -> None:
        """`turn` ends without a log entry: the same request may be executed by a later try."""
        if turn.session_key is not None:
            session = self._sessions.open(turn.client_id, self._sessions.evicted_lsn)
            if session is not None and session.running.get(turn.session_key) is turn:
                del session.running[turn.session_key]
        elif turn.key is not None and self._keys_running.get((turn.activation.address, turn.key)) is turn:
            del self._keys_running[turn.activation.address, turn.key]

    def _unknown_method(self, actor_type: ActorType, name: str) -> UnknownMethodError:
        return UnknownMethodError(
            f"{actor_type.name} has no remote method {name!r:.100}; it has: {', '.join(sorted(actor_type.methods)) or 'none'}"
        )

    def settle_deadlock(self, turn: Turn, address: str) -> None:
        """`turn` is about to call `address`: a turn of that actor may already wait for this one, with its call in the queue here.

        :raises DeadlockError: it does, and has the higher priority
        """
        activation = turn.activation
        if activation.queue is None or activation.dead:
            return
        for queued in [queued for queued in activation.queue if address in queued.chain]:
            if queued.chain[-1] != address:
                continue
            error = _deadlock(queued.method.qualified_name, activation.address, address)
            if queued.priority < turn.priority:
                raise error
            activation.queue.remove(queued)
            self._runner.refuse(queued, error)
        if not activation.queue:
            activation.queue = None

    def key_is_done(self, address: str, key: str) -> None:
        """The call with this idempotency key is committed: from now on its record answers."""
        self._keys_running.pop((address, key), None)

    def take_waiting(self, activation: Activation) -> deque[Turn]:
        """Reentrant calls that wait for `activation`, which is going."""
        return self._reentrant_waiting.pop(activation, deque())

    def give_up(self) -> list[Turn]:
        """The partition leaves duty: the reentrant calls that wait."""
        waiting = [turn for turns in self._reentrant_waiting.values() for turn in turns]
        self._reentrant_waiting.clear()
        self._keys_running.clear()
        return waiting


def cannot_read(error: StorageError) -> HostUnavailableError:
    """What callers are told of a store that failed while their actor was being read: nothing happened, and a new process will serve."""
    return HostUnavailableError(f"the store of this host cannot be read: {error}", retry_after_s=0.1)


def _refuse_deadlock(turn: Turn) -> None:
    """A call arrives at an actor whose running turn waits for an actor that in turn waits for this call: one of the two has to give way.

    Of two that call each other directly it is the one with the lower priority, wherever it is found: here, or by `settle_deadlock` if its
    call was there first. That order is the same in every try, so one of them always gets through.

    :raises DeadlockError: it is this one
    """
    for running in turn.activation.running:
        held = next((address for address in running.waiting_for if address in turn.chain), None)
        if held is not None and (held != turn.chain[-1] or turn.priority > running.priority):
            raise _deadlock(turn.method.qualified_name, turn.activation.address, held)


def _deadlock(method: str, waits_for: str, held: str) -> DeadlockError:
    return DeadlockError(f"{method} waits for {show_address(waits_for)}, which waits for {show_address(held)}, which waits for this call")


def _waits_for(innermost: Turn, call: Turn) -> bool:
    """Whether `innermost` is the turn, or an ancestor of the turn, that made `call`."""
    depth = len(innermost.path)
    return (
        innermost.client_id == call.client_id
        and innermost.number == call.number
        and call.path[:depth] == innermost.path
        and depth < len(call.path)
    )
