"""The socket that a host listens on. With credentials: TLS first, and nothing of what a stranger sends reaches a decoder before that.

A handshake that fails is counted and logged with the address it came from, and its refusal is held back, the longer the more often that
has happened. Only who fails waits: a good credential is never held up by bad ones of the same address. All of it is bounded.

This module must not: know what the connections are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from actorgrid.errors import SettingsError

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
#: Handshakes under way at a time, of one address, and refusals held back (I16).
HANDSHAKES_MAX: Final = 512
HANDSHAKES_OF_ONE_MAX: Final = 64
HELD_BACK_MAX: Final = 256
HELD_BACK_OF_ONE_MAX: Final = 16
#: Of one address: failures that are answered at once (a certificate was being renewed), what the next waits, and for how long it counts.
FAILURES_FREE: Final = 3
PENALTY_FIRST_S: Final = 0.05
PENALTY_MAX_S: Final = 2.0
FORGIVEN_AFTER_S: Final = 60.0
#: Addresses that are remembered; beyond that the one longest quiet goes.
ADDRESSES_MAX: Final = 10_000
#: After an error of accept itself, such as no descriptor left; the error is logged no more often than the second.
ACCEPT_AGAIN_S: Final = 0.1
SAY_AGAIN_S: Final = 5.0
#: What TLS says to somebody who speaks another protocol: alert, fatal, protocol version.
NO_TLS_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x46"

Factory = Callable[[], asyncio.Protocol]


class Penalties:
    """What failed handshakes cost the address they came from.

    :ivar failed_total: handshakes and credentials that were refused
    """

    def __init__(self) -> None:
        self.failed_total = 0
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, address: str, now_s: float) -> int:
        """One more failure of `address`; how many in a row."""
        self.failed_total += 1
        count = 1 + (self._failures.pop(address, (0, now_s))[0] if self.wait_s(address, now_s) >= 0 else 0)
        self._failures[address] = count, now_s
        if len(self._failures) > ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        return count

    def succeeded(self, address: str) -> None:
        """A credential of `address` was taken."""
        self._failures.pop(address, None)

    def wait_s(self, address: str, now_s: float) -> float:
        """For how long the refusal of `address` is to be held back."""
        count, at_s = self._failures.get(address, (0, now_s))
        if now_s - at_s > FORGIVEN_AFTER_S:
            self._failures.pop(address, None)
            return 0.0
        return min(PENALTY_FIRST_S * 2.0 ** min(count - FAILURES_FREE - 1, 16), PENALTY_MAX_S) if count > FAILURES_FREE else 0.0


class TlsServer:
    """Accepts connections, shakes hands by TLS, and only then makes their protocols.

    :param factory: makes the protocol of a connection
    :param context: from `credentials.server_context`
    """

    def __init__(self, factory: Factory, context: ssl.SSLContext, penalties: Penalties, handshake_timeout_s: float) -> None:
        self._factory = factory
        self._context = context
        self._penalties = penalties
        self._timeout_s = handshake_timeout_s
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], str] = {}  # handshakes: address
        self._held_back: dict[asyncio.Task[None], str] = {}  # refusals: address
        self._say_at_s = 0.0
        self._accepting: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that listen."""
        return tuple(self._sockets)

    def listen(self, address: str, port: int) -> None:
        """Begin, on every address that `address` means.

        :raises OSError: the port is taken or may not be used
        """
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, sockaddr in dict.fromkeys((each[0], each[4]) for each in found):
                self._listen_on(family, sockaddr)
        except OSError:
            self.close()
            raise

    def _listen_on(self, family: socket.AddressFamily, sockaddr: Any) -> None:
        sock = socket.create_server(
            sockaddr[:2], family=family, backlog=BACKLOG, dualstack_ipv6=sockaddr[0] == "::" and socket.has_dualstack_ipv6()
        )
        sock.setblocking(False)
        self._sockets.append(sock)
        self._accepting.append(self._loop.create_task(self._accept(sock), name="accept"))

    def close(self) -> None:
        """Listen no more; connections that stand go on."""
        for task in [*self._accepting, *self._tasks, *self._held_back]:
            task.cancel()
        for sock in self._sockets:
            # The loop watches the descriptor, not the socket: without this another socket of the same number would be taken for it.
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        self._accepting.clear()

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, peer = await self._loop.sock_accept(listening)
            except OSError as error:
                self._say("no connection can be accepted error=%s", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            address = str(peer[0])
            if len(self._tasks) >= HANDSHAKES_MAX or list(self._tasks.values()).count(address) >= HANDSHAKES_OF_ONE_MAX:
                self._penalties.failed_total += 1
                self._say("too many TLS handshakes at a time, connection closed peer=%s", address)
                sock.close()
                continue
            task = self._loop.create_task(self._shake_hands(sock, address), name=f"TLS handshake of {address}")
            self._tasks[task] = address
            task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _shake_hands(self, sock: socket.socket, address: str) -> None:
        context = _OverheardContext(self._context)
        last_words: socket.socket | None = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The loop closes its own descriptor when a handshake fails, without having said why.
            last_words = sock.dup()
            await self._loop.connect_accepted_socket(
                self._factory, sock, ssl=context, ssl_handshake_timeout=self._timeout_s, ssl_shutdown_timeout=1.0
            )
        except (ssl.SSLError, TimeoutError, ConnectionAbortedError) as error:  # the last one is how loops tell of their time-out
            sock.close()
            count = self._penalties.failed(address, self._loop.time())
            logger.warning("TLS handshake failed peer=%s in_a_row=%d error=%s", address, count, _why(error))
            if isinstance(error, ssl.SSLError) and last_words is not None:
                self._refuse_later(last_words, context.unsent or NO_TLS_ALERT, address)
                last_words = None
        except (OSError, EOFError) as error:  # it went away: a health check, a port scan, a client that gave up
            sock.close()
            logger.debug("gone before TLS peer=%s error=%s", address, _why(error))
        except asyncio.CancelledError:
            sock.close()
            raise
        finally:
            if last_words is not None:
                last_words.close()

    def _refuse_later(self, sock: socket.socket, alert: bytes, address: str) -> None:
        """Say why a handshake failed; the later, the more often this address has."""
        wait_s = self._penalties.wait_s(address, self._loop.time())
        held = self._held_back
        if len(held) >= HELD_BACK_MAX or list(held.values()).count(address) >= HELD_BACK_OF_ONE_MAX:
            sock.close()
            return

        async def refuse() -> None:
            try:
                await asyncio.sleep(wait_s)
                with contextlib.suppress(OSError):  # whoever does not listen need not be told
                    sock.send(alert, socket.MSG_DONTWAIT)
            finally:
                sock.close()

        task = self._loop.create_task(refuse(), name=f"refusal of {address}")
        held[task] = address
        task.add_done_callback(lambda done: held.pop(done, None))

    def _say(self, text: str, *values: Any) -> None:
        """Log what may happen a thousand times a second."""
        now_s = self._loop.time()
        if now_s >= self._say_at_s:
            self._say_at_s = now_s + SAY_AGAIN_S
            logger.error(text, *values)


class _OverheardContext(ssl.SSLContext):
    """Makes one connection by another context, and keeps what its handshake had still to say when it failed: the alert that says why.

    :ivar unsent: that alert, sealed if a key was agreed upon already; empty if there was none
    """

    unsent: bytes
    _inner: ssl.SSLContext

    def __new__(cls, inner: ssl.SSLContext) -> _OverheardContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context._inner, context.unsent = inner, b""
        return context

    def __init__(self, inner: ssl.SSLContext) -> None:
        """All is done in ``__new__``, as that of `ssl.SSLContext` wants it."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **named: Any) -> ssl.SSLObject:
        made = self._inner.wrap_bio(incoming, outgoing, *arguments, **named)
        shake_hands = made.do_handshake

        def do_handshake() -> None:
            try:
                shake_hands()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                self.unsent = outgoing.read()
                del made.do_handshake  # it refers to its own object: a cycle of forty kilobytes for each connection
                raise
            del made.do_handshake

        made.do_handshake = do_handshake  # type: ignore[method-assign]
        return made


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no handshake in time"
    if isinstance(error, ssl.SSLError) and error.reason in (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "UNSUPPORTED_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
    ):
        return f"this is no TLS ({error.reason})"
    return str(error) or type(error).__name__


async def listen(
    factory: Factory, address: str, port: int, *, context: ssl.SSLContext | None, penalties: Penalties, handshake_timeout_s: float
) -> Any:
    """Listen; the answer has ``sockets`` and ``close()``.

    :param context: None: no TLS
    :raises SettingsError: the port is taken or may not be used
    """
    try:
        if context is None:
            return await asyncio.get_running_loop().create_server(factory, address, port, backlog=BACKLOG)
        server = TlsServer(factory, context, penalties, handshake_timeout_s)
        server.listen(address, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {address}:{port}: {error.strerror or error}") from None
    return server
