"""One TCP connection to one host: handshake, frames in, frames out.

It knows nothing of calls. What it decodes goes to its `Listener`; whatever breaks the protocol closes it (I18), and nothing is
decoded before the host's `Welcome`. Bounds (I16): one incoming frame, and `pause_writing` tells the owner to stop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Any, Protocol, cast

import msgspec

from actorgrid.client.seeds import show_seed
from actorgrid.credentials import check_host
from actorgrid.errors import AccessDeniedError, ActorGridError, HostUnavailableError, ProtocolError, from_wire
from actorgrid.settings import WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame
from actorgrid.wire.messages import (
    AdminReply,
    BatchReplies,
    BatchReply,
    Goodbye,
    Hello,
    MapMessage,
    Ping,
    Pong,
    Refused,
    Replies,
    Reply,
    Welcome,
)

log = logging.getLogger(__name__)

#: A host that allows less could not take a single call with its group header.
_FRAME_BYTES_MIN = 4096
#: How TLS says that what came was none: an alert, of any version.
_TLS_ALERT = b"\x15\x03"
#: Many round trips of any network, and well below the default deadline of a call.
_UNACKNOWLEDGED_MS = 10_000
#: Above this the transport reports a slow peer; what is not written stays with the lanes, which are bounded.
_WRITE_HIGH_WATER_BYTES = 1 << 20


class Listener(Protocol):
    """Who hears what a connection receives."""

    def on_replies(self, connection: Connection, replies: list[Reply]) -> None:
        """Answers to calls."""

    def on_batch_replies(self, connection: Connection, replies: list[BatchReply]) -> None:
        """Answers to batches of reads."""

    def on_map(self, connection: Connection, message: MapMessage) -> None:
        """A partition map, asked for or not."""

    def on_admin_reply(self, connection: Connection, reply: AdminReply) -> None:
        """The answer to an operator's question."""

    def on_goodbye(self, connection: Connection, reason: str) -> None:
        """The host is stopping."""

    def on_writable(self, connection: Connection) -> None:
        """The peer reads again after `is_paused`."""

    def on_lost(self, connection: Connection, error: ActorGridError) -> None:
        """It is closed; called once, and only after a welcome."""


class RefusedError(Exception):
    """The host answered the handshake with `Refused`; ``error`` is what it said."""

    def __init__(self, error: ActorGridError) -> None:
        super().__init__(str(error))
        self.error = error


class Connection(asyncio.Protocol):
    """A connection from `connect`, welcomed and not yet lost.

    :ivar welcome: the host's answer to the handshake
    :ivar frame_bytes_max: what both ends allow
    :ivar takes_batches: the host understands batches of reads
    :ivar heard_at: when something came, time of the loop
    :ivar is_paused: the peer reads too slowly; write nothing
    :ivar error: why it was closed, or None
    """

    def __init__(self, listener: Listener, hello: bytes, wire: WireSettings, name: str, cluster_id: str, is_tls: bool) -> None:
        self.name = name
        self._cluster_id = cluster_id
        self._is_tls = is_tls
        self.welcome: Welcome | None = None
        self.frame_bytes_max = wire.frame_bytes_max
        self.takes_batches = False
        self.is_paused = False
        self.is_closed = False
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._pinged_at = 0.0
        self._pings = 0
        self._listener = listener
        self._hello = hello
        self._reader = FrameReader(wire.frame_bytes_max)
        self._transport: asyncio.Transport | None = None
        self.error: ActorGridError | None = None
        self._welcomed: asyncio.Future[Welcome] = self._loop.create_future()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        # A cast, not isinstance: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)
        _watch_for_dead_peer(transport.get_extra_info("socket"))
        if self._is_tls:
            try:
                # Before a token is shown to whoever answers there.
                check_host(transport.get_extra_info("peercert"), self._cluster_id)
            except AccessDeniedError as error:
                self._refuse(AccessDeniedError(f"{self.name}: {error}"))
                return
        self._transport.write(frame(self._hello))

    def data_received(self, data: bytes) -> None:
        """Decode and pass on the frames that `data` completes."""
        if self.is_closed:
            return
        self.heard_at = self._loop.time()
        try:
            for payload in self._reader.feed(data):
                if self.error is not None:  # closed by the frame before
                    return
                self._receive(payload)
        except ProtocolError as error:
            log.warning("host broke the protocol host=%s error=%s", self.name, error)
            if self.welcome is None and data[:2] == _TLS_ALERT:
                self._refuse(
                    AccessDeniedError(f"{self.name} speaks TLS, and this client has no credentials (ca, and a certificate or a token)")
                )
                return
            self.close(error if self.welcome is not None else ProtocolError(f"{self.name} does not speak this protocol ({error})"))

    def pause_writing(self) -> None:
        """The peer reads slowly."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.is_paused = False
        if not self.is_closed and self.welcome is not None:
            self._listener.on_writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer or the network ended it."""
        if self.welcome is None and isinstance(exc, ssl.SSLError) and "ALERT" in _reason_of(exc):
            # With TLS 1.3 a client hears only now that its certificate was refused.
            self._refuse(AccessDeniedError(f"{self.name}: the host refused this client's certificate: {_reason_of(exc)}"))
            return
        self.close(HostUnavailableError(f"{self.name}: connection lost" + (f": {exc}" if exc else "")))

    # -- our side

    def write(self, data: list[bytes]) -> None:
        """Write frames; nothing happens once it is closed."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(data[0] if len(data) == 1 else b"".join(data))

    def probe(self, patience_s: float) -> None:
        """Answers are overdue: ask whether the host is there, and close the connection if nothing at all comes for `patience_s`.

        Call it again and again. After a cut is mended the kernel waits as long again as the cut was before it resends what was lost; a new
        connection works at once.
        """
        now = self._loop.time()
        if self._pinged_at <= self.heard_at:
            self._pings += 1
            self._pinged_at = now
            self.write([frame(messages.encode(Ping(self._pings)))])
        elif now - self._pinged_at >= patience_s:
            self.close(HostUnavailableError(f"{self.name}: no sign of life for {now - self.heard_at:.1f} s"))

    def close(self, error: ActorGridError) -> None:
        """Close at once. The listener hears of it unless the handshake was still going on, where `connect` raises `error`."""
        if self.is_closed:
            return
        self.is_closed = True
        self.error = error
        if self._transport is not None:
            # abort, not close: unwritten calls are sent again elsewhere, so nothing is gained by waiting for a slow peer
            self._transport.abort()
        if self.welcome is not None:
            self._listener.on_lost(self, error)
        elif not self._welcomed.done():
            self._welcomed.set_exception(error)
            self._welcomed.exception()  # `connect` may have been cancelled and never look

    async def wait_welcomed(self) -> Welcome:
        """The host's welcome; raises what `close` was given, or `RefusedError`."""
        return await self._welcomed

    def _receive(self, payload: bytes) -> None:
        if self.welcome is None:
            self._receive_handshake_answer(payload)
            return
        kind = payload[1] if len(payload) > 1 else -1
        decoder = messages.CLIENT_DECODERS.get(kind)
        if decoder is None:
            raise ProtocolError(f"{self.name}: frame of unknown kind {kind}")
        message = _decoded(decoder, payload, self.name)
        if type(message) is Replies:
            self._listener.on_replies(self, message.replies)
        elif type(message) is BatchReplies:
            self._listener.on_batch_replies(self, message.replies)
        elif type(message) is MapMessage:
            self._listener.on_map(self, message)
        elif type(message) is Ping:
            self.write([frame(messages.encode(Pong(message.token)))])
        elif type(message) is AdminReply:
            self._listener.on_admin_reply(self, message)
        elif type(message) is Goodbye:
            self._listener.on_goodbye(self, message.reason)
        elif type(message) is Refused:
            self.close(error_of(message.error, message.message, message.details))

    def _refuse(self, error: ActorGridError) -> None:
        """End the handshake for a reason that another attempt would meet again."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()
        if not self._welcomed.done():
            self._welcomed.set_exception(RefusedError(error))
            self._welcomed.exception()

    def _receive_handshake_answer(self, payload: bytes) -> None:
        answer = _decoded(messages.decode_handshake_answer, payload, self.name)
        if isinstance(answer, Refused):
            self._refuse(error_of(answer.error, answer.message, answer.details))
            return
        if not messages.PROTOCOL_VERSION_OLDEST <= answer.version <= messages.PROTOCOL_VERSION:
            raise ProtocolError(
                f"{self.name}: the host chose protocol version {answer.version}, offered were "
                f"{messages.PROTOCOL_VERSION_OLDEST}..{messages.PROTOCOL_VERSION}"
            )
        if answer.frame_bytes_max < _FRAME_BYTES_MIN:
            raise ProtocolError(
                f"{self.name}: the host allows frames of {answer.frame_bytes_max} bytes, at least {_FRAME_BYTES_MIN} are needed"
            )
        self.welcome = answer
        self.frame_bytes_max = min(self.frame_bytes_max, answer.frame_bytes_max)
        self.takes_batches = answer.version >= messages.BATCHES_SINCE
        if not self._welcomed.done():
            self._welcomed.set_result(answer)


def _watch_for_dead_peer(sock: socket.socket | None) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing: a machine that lost its power sends no sign."""
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def _decoded(decoder: Any, payload: bytes, name: str) -> Any:
    try:
        return decoder(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{name}: frame that cannot be decoded: {error}") from None


def error_of(name: str, message: str, details: dict[str, Any]) -> ActorGridError:
    """The error a host described, with details of the wrong type refused: retry logic computes with them.

    :raises ProtocolError: a detail has the wrong type
    """
    error = from_wire(name, message, details)
    retry_after_s = getattr(error, "retry_after_s", 0.0)
    counters = [getattr(error, name, 0) for name in ("current_lsn", "epoch")]
    is_sound = (
        isinstance(retry_after_s, int | float)
        and 0 <= retry_after_s < float("inf")
        and all(isinstance(counter, int) and counter >= 0 for counter in counters)
        and isinstance(getattr(error, "partition", -1), int)
        and isinstance(getattr(error, "primary", ""), str)
    )
    if not is_sound:
        raise ProtocolError(f"details of {name} have the wrong type: {details!r:.200}")
    return error


async def connect(
    listener: Listener,
    host: str,
    port: int,
    hello: Hello,
    *,
    wire: WireSettings,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> Connection:
    """Open a connection and shake hands.

    :param tls: from `credentials.client_context`; None: no TLS
    :raises RefusedError: the host said no, and why
    :raises HostUnavailableError: it cannot be reached, or did not answer the handshake within `timeout_s`
    :raises ProtocolError: what answered does not speak this protocol
    """
    name = show_seed(host, port)
    made: list[Connection] = []

    def make() -> Connection:
        made.append(Connection(listener, messages.encode(hello), wire, name, hello.cluster_id, tls is not None))
        return made[-1]

    try:
        async with asyncio.timeout(timeout_s):
            # The name is for tools that look at traffic; who answers is told by the certificate's identity.
            named = host if tls is not None else None
            _, connection = await asyncio.get_running_loop().create_connection(make, host, port, ssl=tls, server_hostname=named)
            await connection.wait_welcomed()
        if connection.error is not None:  # lost between its welcome and this line
            raise connection.error
    except ssl.SSLError as error:
        _close_all(made, name)
        raise _tls_problem(name, error) from None
    except OSError as error:  # TimeoutError is one
        _close_all(made, name)
        why = f"no answer to the handshake within {timeout_s:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise HostUnavailableError(f"{name}: {why}") from None
    except UnicodeError as error:  # from the resolver: a name that cannot be one
        _close_all(made, name)
        raise HostUnavailableError(f"{name}: {error}") from None
    except BaseException:
        _close_all(made, name)
        raise
    return connection


def _tls_problem(name: str, error: ssl.SSLError) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusedError(AccessDeniedError(f"{name}: the certificate shown there is not of this grid: {error.verify_message}"))
    reason = _reason_of(error)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG"):
        return RefusedError(AccessDeniedError(f"{name} does not speak TLS, and credentials are for TLS only"))
    if "ALERT" in reason:
        return RefusedError(AccessDeniedError(f"{name}: the host refused this client's certificate: {reason}"))
    return HostUnavailableError(f"{name}: TLS failed: {reason or error}")


def _reason_of(error: ssl.SSLError) -> str:
    # Of errors that Python itself makes there is none.
    return str(getattr(error, "reason", None) or "")


def _close_all(connections: list[Connection], name: str) -> None:
    for connection in connections:
        connection.close(HostUnavailableError(f"{name}: handshake given up"))
