"""The host's side of the wire: handshake, frames in, answers out, one write per connection and loop tick.

Nothing is decoded before the handshake (I18), and nothing here grows without bound (I16): a peer that sends too much is told so, one
that reads too little is no longer read from, and then cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import msgspec

from actorgrid import ambient
from actorgrid.credentials import ANYBODY, ROLE_HOST, Gate, Identity, is_host
from actorgrid.errors import (
    AccessDeniedError,
    ActorGridError,
    DeadlineExceededError,
    NotPrimaryError,
    OverloadedError,
    ProtocolError,
    RequestError,
    to_wire,
)
from actorgrid.host import rights
from actorgrid.host.batch import ReadBatch
from actorgrid.host.listening import Penalties
from actorgrid.host.partition import HostedPartition
from actorgrid.host.peers import PeerConnection
from actorgrid.host.runner import error_payload
from actorgrid.replication.frames import KIND_PEER_HELLO
from actorgrid.settings import WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame, frames_of
from actorgrid.wire.handshake import accept_hello, read_hello

logger = logging.getLogger(__name__)

#: How long one connection may keep the loop to itself, looked at after so many calls.
SLICE_NS: Final = 10_000_000
CALLS_PER_LOOK: Final = 128
#: Reads that saw what is not committed yet have their answers by then as a rule.
BATCH_PATIENCE_S: Final = 0.02
ADMIN_TIMEOUT_S: Final = 60.0
#: Questions of one connection that are being answered at a time (I16).
ADMIN_UNDER_WAY_MAX: Final = 16
#: Connections that have shown no certificate and said nothing yet.
STRANGERS_MAX: Final = 1024
#: A client that may not call may try ten thousand times a second; one in so many frames of such calls is logged.
DENIED_CALLS_LOGGED: Final = 1000


class Service(Protocol):
    """What connections need of their host."""

    cluster_id: str
    partitions: dict[int, HostedPartition]
    #: How far each client is, over all partitions: frees the records of nested calls.
    watermarks: dict[bytes, int]
    gate: Gate
    penalties: Penalties

    def welcome(self, version: int) -> messages.Welcome: ...
    def map_message(self) -> messages.MapMessage: ...
    def primary_of(self, partition: int) -> tuple[str, int]: ...
    def peer_greeted(self, transport: asyncio.Transport, payload: bytes) -> PeerConnection | None: ...
    async def administer(self, verb: str, arguments: dict[str, Any], identity: Identity) -> Any: ...


class ConnectionCounters:
    """What connections count; also the bound on their number."""

    def __init__(self) -> None:
        self.open = 0
        self.accepted_total = 0
        self.refused_total = 0
        self.protocol_errors_total = 0
        self.access_denied_total = 0
        self.strangers = 0
        self.cut_off_total = 0


class HostConnection(asyncio.Protocol):
    """One connection of a client, another host, or an operator's tool."""

    def __init__(
        self,
        service: Service,
        settings: WireSettings,
        connections_max: int,
        counters: ConnectionCounters,
        connections: dict[HostConnection, None],
    ) -> None:
        self._service = service
        self._settings = settings
        self._connections_max = connections_max
        self._counters = counters
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(settings.hello_bytes_max)
        self._receive: Callable[[bytes], None] = self._greet
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._out: list[bytes] = []
        self._flush_scheduled = False
        self._out_batches: list[bytes] = []
        self._backlog: deque[messages.CallGroup | ReadBatch] = deque()
        self._position = 0  # in the first group of the backlog
        self._is_working_later = False
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._is_write_paused = False
        self._is_read_paused = False
        self.client_id = b""
        self.role = ""
        self.identity: Identity = ANYBODY
        self._is_stranger = True
        self._counts_as_stranger = False
        self._may_call = True
        self._version = 0
        self.peer = "?"
        self._address = "?"

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1 << 20)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)
        self._address = str(peer[0]) if isinstance(peer, tuple) else self.peer
        self._counters.open += 1
        self._connections[self] = None
        certificate = transport.get_extra_info("peercert")
        # Whoever has not said yet who it is must not keep out those whose certificate has told.
        if not certificate and not self._service.gate.is_open:
            self._counters.strangers += 1
            self._counts_as_stranger = True
            if self._counters.strangers > STRANGERS_MAX:
                self._refuse(OverloadedError(f"{STRANGERS_MAX} connections have not said yet who they are", retry_after_s=0.5))
                return
        if self._counters.open > self._connections_max and not is_host(certificate):
            self._refuse(OverloadedError(f"this host has {self._connections_max} connections, which is its limit", retry_after_s=0.5))
            return
        self._timer = self._loop.call_later(self._settings.handshake_timeout_s, self._greeting_too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._counters.open -= 1
        self._is_known_now()
        self._connections.pop(self, None)
        self._transport = None
        for task in self._tasks:
            task.cancel()
        self._out.clear()
        self._out_batches.clear()
        self._backlog.clear()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        # What is answered on the spot leaves at the end of this, without another turn of the loop.
        self._flush_scheduled, was_scheduled = True, self._flush_scheduled
        try:
            self._take(data)
        finally:
            self._flush_scheduled = was_scheduled
            if self._out and not was_scheduled:
                self._flush()
            if self._out_batches:
                self._flush_batches()

    def _take(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._receive(payload)
        except AccessDeniedError as error:
            self._deny(error)
        except ProtocolError as error:
            self._counters.protocol_errors_total += 1
            logger.warning("connection refused peer=%s error=%s", self.peer, error)
            if self._is_stranger and not self._service.gate.is_open:
                self._service.penalties.failed(self._address, self._loop.time())
            self._refuse(error)

    def _deny(self, error: AccessDeniedError) -> None:
        """End the connection of somebody who may not be here. Who is known is told so at once, who is nobody waits for it."""
        self._counters.access_denied_total += 1
        if not self._is_stranger:
            logger.warning("access denied peer=%s error=%s", self.peer, error)
            self._refuse(error)
            return
        penalties, now_s = self._service.penalties, self._loop.time()
        count = penalties.failed(self._address, now_s)
        logger.warning("access denied peer=%s in_a_row=%d error=%s", self.peer, count, error)
        wait_s = penalties.wait_s(self._address, now_s)
        if not wait_s:
            self._refuse(error)
            return
        self._receive = self._ignore
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self._refuse, error)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._pause_or_resume()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        """Read nothing more from a peer that does not read its answers, or that has sent more than a slice of work."""
        paused = self._is_write_paused or self._is_working_later
        if paused != self._is_read_paused and self._transport is not None and not self._transport.is_closing():
            self._is_read_paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # -- handshake

    def _greeting_too_late(self) -> None:
        self._counters.protocol_errors_total += 1
        if not self._service.gate.is_open:
            count = self._service.penalties.failed(self._address, self._loop.time())
            logger.warning("connection refused, it said nothing peer=%s in_a_row=%d", self.peer, count)
        self._refuse(ProtocolError(f"no handshake within {self._settings.handshake_timeout_s} s"))

    def _greet(self, payload: bytes) -> None:
        if len(payload) > 1 and payload[1] == KIND_PEER_HELLO:
            self._greet_peer(payload)
            return
        hello = read_hello(payload)
        self._version = version = accept_hello(hello, self._service.cluster_id)
        self._admit_stranger(hello.role, hello.credential)
        self.client_id, self.role = hello.client_id, hello.role
        if self._timer is not None:
            self._timer.cancel()
        self._counters.accepted_total += 1
        self._reader.frame_bytes_max = self._settings.frame_bytes_max
        self._receive = self._dispatch
        self._write(frame(messages.encode(self._service.welcome(version))))

    def _admit_stranger(self, role: str, token: bytes) -> None:
        """Find out who the other side is.

        :raises AccessDeniedError: it has no credential that counts, or not for what it wants to be
        """
        assert self._transport is not None
        identity = self._service.gate.identify(self._transport.get_extra_info("peercert"), token)
        self._is_stranger = False
        self._is_known_now()
        self._service.penalties.succeeded(self._address)
        if role == messages.ROLE_HOST and ROLE_HOST not in identity.roles:
            raise AccessDeniedError(f"{identity} is not a host")
        if role == messages.ROLE_OPERATOR and not identity.roles & rights.ADMINISTRATORS:
            raise AccessDeniedError(f"to look at the grid or to change it is for observer, operator or host, and {identity} is not")
        self.identity = identity
        self._may_call = not identity.roles.isdisjoint(rights.CALLERS)

    def _is_known_now(self) -> None:
        """It has said who it is, or is gone."""
        if self._counts_as_stranger:
            self._counts_as_stranger = False
            self._counters.strangers -= 1

    def _greet_peer(self, payload: bytes) -> None:
        """The other side is a host: its connection is the business of `peers` from here on."""
        assert self._transport is not None
        self._admit_stranger(messages.ROLE_HOST, b"")
        self._receive = self._ignore
        if self._timer is not None:
            self._timer.cancel()
        connection = self._service.peer_greeted(self._transport, payload)
        if connection is not None:
            transport, self._transport = self._transport, None
            self._counters.open -= 1
            self._connections.pop(self, None)
            transport.set_protocol(connection)

    def push_map(self, payload: bytes) -> None:
        """The map has changed: send it unasked to whoever routes calls by it."""
        if self._receive == self._dispatch and self.role != messages.ROLE_OPERATOR:
            self._write(payload)

    def _refuse(self, error: ActorGridError) -> None:
        self._counters.refused_total += 1
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(messages.encode(messages.Refused(*to_wire(error)))))
            self._transport.close()
        self._receive = self._ignore

    def _ignore(self, payload: bytes) -> None:
        """The connection is closing."""

    # -- messages

    def _dispatch(self, payload: bytes) -> None:
        kind = payload[1] if len(payload) > 1 else -1
        decoder = messages.HOST_DECODERS.get(kind)
        if decoder is None or (kind == messages.KIND_BATCHES and self._version < messages.BATCHES_SINCE):
            raise ProtocolError(f"message of unknown kind {kind}")
        try:
            message = decoder(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"message of kind {kind} does not have its form: {error}") from None
        match message:
            case messages.Calls(groups):
                self._take_calls(groups)
            case messages.Batches(batches):
                self._take_batches(batches)
            case messages.GetMap():
                self._write(frame(messages.encode(self._service.map_message())))
            case messages.Admin(correlation, verb, arguments):
                self._administer(correlation, verb, arguments)
            case messages.Ping(token):
                self._write(frame(messages.encode(messages.Pong(token))))
            case _:
                pass

    def _take_calls(self, groups: list[messages.CallGroup]) -> None:
        if self.role != messages.ROLE_HOST and any(group.client_id for group in groups):
            raise ProtocolError(f"a {self.role} may call in its own name only")
        if not self._may_call:
            self._deny_calls(groups)
            return
        self._backlog.extend(groups)
        if not self._is_working_later:
            self._work()

    def _take_batches(self, batches: list[messages.Batch]) -> None:
        frame_bytes_max = self._settings.frame_bytes_max
        reads = [ReadBatch(batch, self.client_id, frame_bytes_max, self) for batch in batches]
        if not self._may_call:
            refusal = self._denied()
            for read in reads:
                read.refuse_rest(refusal)
            return
        self._backlog.extend(reads)
        if not self._is_working_later:
            self._work()

    def _deny_calls(self, groups: list[messages.CallGroup]) -> None:
        refusal = error_payload(self._denied())
        for group in groups:
            for call in group.calls:
                self.reply(call.correlation, messages.STATUS_ERROR, refusal)

    def _denied(self) -> AccessDeniedError:
        """Count and log calls of somebody who may not call; what to tell them."""
        self._counters.access_denied_total += 1
        try:
            rights.check_caller(self.identity)
        except AccessDeniedError as error:
            if self._counters.access_denied_total % DENIED_CALLS_LOGGED == 1:
                logger.warning("access denied peer=%s error=%s", self.peer, error)
            return error
        raise AssertionError(f"{self.identity} may call")

    def _work(self) -> None:
        """Admit what has arrived, for one slice of time; what is left follows after everyone else had the loop."""
        self._is_working_later = False
        now_ns = ambient.monotonic_ns()
        backlog = self._backlog
        while backlog:
            waiting = backlog[0]
            if self._admit_batch(waiting, now_ns) if isinstance(waiting, ReadBatch) else self._admit_some(waiting, now_ns):
                backlog.popleft()
                self._position = 0
            if backlog and ambient.monotonic_ns() - now_ns > SLICE_NS:
                self._is_working_later = True
                self._loop.call_soon(self._work)
                break
        self._pause_or_resume()

    def _admit_some(self, group: messages.CallGroup, now_ns: int) -> bool:
        """Admit the next calls of `group`; whether those were the last."""
        client_id = group.client_id or self.client_id
        watermarks = self._service.watermarks
        if group.lowest_anywhere > watermarks.get(client_id, 0):
            watermarks.pop(client_id, None)  # behind the others: the one that was not heard for longest stands first
            watermarks[client_id] = group.lowest_anywhere
        partition = self._service.partitions.get(group.partition)
        if partition is None:
            self._refuse_all(group, self._not_here(group.partition))
            return True
        refusal = partition.refusal(now_ns)
        if refusal is not None:
            self._refuse_all(group, refusal, partition, now_ns)
            return True
        lowest, lowest_anywhere, since_lsn = group.lowest, group.lowest_anywhere, group.since_lsn
        if since_lsn > partition.replica.last_lsn:
            self._refuse_all(group, partition.history_is_lost(since_lsn))
            return True
        calls, start = group.calls, self._position
        stop = start + CALLS_PER_LOOK
        for call in calls[start:stop] if start or len(calls) > stop else calls:
            partition.admit(call, client_id, lowest, lowest_anywhere, since_lsn, self, now_ns)
        self._position = stop
        return stop >= len(calls)

    def _admit_batch(self, batch: ReadBatch, now_ns: int) -> bool:
        """Admit the next items of `batch`; whether those were the last."""
        client_id, watermarks = batch.client_id, self._service.watermarks
        if batch.lowest_anywhere > watermarks.get(client_id, 0):
            watermarks.pop(client_id, None)  # as in `_admit_some`
            watermarks[client_id] = batch.lowest_anywhere
        partition = self._service.partitions.get(batch.partition)
        refusal = self._not_here(batch.partition) if partition is None else partition.refusal(now_ns)
        if partition is not None and refusal is None and batch.since_lsn > partition.replica.last_lsn:
            refusal = partition.history_is_lost(batch.since_lsn)
        if refusal is not None:
            batch.refuse_rest(refusal)
            return True
        assert partition is not None
        partition.admission.admit_batch(batch, CALLS_PER_LOOK, now_ns)
        return batch.begun >= batch.count

    def _refuse_all(
        self, group: messages.CallGroup, error: ActorGridError, partition: HostedPartition | None = None, now_ns: int = 0
    ) -> None:
        """Refuse what is left of `group`, except reads that any replica may answer."""
        refusal = error_payload(error)
        for call in group.calls[self._position :]:
            if partition is not None and call.extra is not None and call.extra.any_replica:
                partition.admission.admit_any(call, group.client_id or self.client_id, self, now_ns)
            else:
                self.reply(call.correlation, messages.STATUS_ERROR, refusal)

    def _not_here(self, partition: int) -> ActorGridError:
        primary, epoch = self._service.primary_of(partition)
        return NotPrimaryError(
            f"partition {partition} is not here; its primary is {primary or 'unknown'}", partition=partition, primary=primary, epoch=epoch
        )

    def _administer(self, correlation: int, verb: str, arguments: dict[str, Any]) -> None:
        if len(self._tasks) >= ADMIN_UNDER_WAY_MAX:
            refusal = error_payload(OverloadedError(f"{ADMIN_UNDER_WAY_MAX} questions of this connection are being answered"))
            self._write(frame(messages.encode(messages.AdminReply(correlation, messages.STATUS_ERROR, msgspec.Raw(refusal)))))
            return
        task = self._loop.create_task(self._answer_admin(correlation, verb, arguments), name=f"admin {verb:.40}")
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _answer_admin(self, correlation: int, verb: str, arguments: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(ADMIN_TIMEOUT_S):
                answer = messages.encode(await self._service.administer(verb, arguments, self.identity))
            status = messages.STATUS_OK
        except ActorGridError as error:
            if isinstance(error, AccessDeniedError):
                self._counters.access_denied_total += 1
                logger.warning("access denied peer=%s error=%s", self.peer, error)
            status, answer = messages.STATUS_ERROR, error_payload(error)
        except TimeoutError:
            status, answer = messages.STATUS_ERROR, error_payload(DeadlineExceededError(f"{verb} took more than {ADMIN_TIMEOUT_S:g} s"))
        except Exception as error:
            logger.exception("admin question could not be answered verb=%.40s", verb)
            status, answer = messages.STATUS_ERROR, error_payload(ActorGridError(f"{verb:.40}: {type(error).__name__}: {error}"))
        self._write(frame(messages.encode(messages.AdminReply(correlation, status, msgspec.Raw(answer)))))

    # -- answers

    def reply(self, correlation: int, status: int, payload: bytes, lsn: int = 0) -> None:
        """Answer one call; all answers of a tick leave in one write."""
        if self._transport is None:
            return
        if lsn:
            self._out.append(messages.encode((correlation, status, msgspec.Raw(payload), lsn)))
        else:
            self._out.append(messages.encode((correlation, status, msgspec.Raw(payload))))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        out, self._out = self._out, []
        if self._transport is None or not out:
            return
        self._write(b"".join(frames_of(messages.KIND_REPLIES, out, self._settings.frame_bytes_max)))

    def reply_batch(self, encoded: bytes) -> None:
        """Answer a part of a batch of reads, or all of it; see `BatchAnswers`."""
        if self._transport is None:
            return
        if not self._out_batches:
            self._loop.call_soon(self._flush_batches)
        self._out_batches.append(encoded)

    def after_a_moment(self, action: Callable[[], None]) -> None:
        """See `BatchAnswers`."""
        self._loop.call_later(BATCH_PATIENCE_S, action)

    def _flush_batches(self) -> None:
        out, self._out_batches = self._out_batches, []
        if self._transport is not None and out:
            self._write(b"".join(frames_of(messages.KIND_BATCH_REPLIES, out, self._settings.frame_bytes_max)))

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > self._settings.write_buffer_bytes_max:
            self._counters.cut_off_total += 1
            logger.warning("connection cut off, it does not read peer=%s buffered=%d", self.peer, transport.get_write_buffer_size())
            transport.abort()

    def say_goodbye(self, reason: str) -> None:
        """The host is stopping; what is still to be answered goes out first."""
        self._flush()
        self._flush_batches()
        if self._receive == self._dispatch:
            self._write(frame(messages.encode(messages.Goodbye(reason))))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def unknown_verb(verb: str, known: list[str]) -> RequestError:
    """For hosts: an operator's tool asked something this release does not know."""
    return RequestError(f"unknown verb {verb!r:.60}; known are: {', '.join(sorted(known))}")
