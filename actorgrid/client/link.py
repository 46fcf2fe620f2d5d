"""The way to one host: a connection that is made when it is needed and made again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Protocol

from actorgrid.client.connection import Connection, RefusedError, connect
from actorgrid.client.seeds import show_seed
from actorgrid.errors import AccessDeniedError, ActorGridError, HostUnavailableError, ProtocolError, TransientError
from actorgrid.settings import ClientSettings, WireSettings
from actorgrid.wire.messages import AdminReply, BatchReply, Hello, MapMessage, Reply, Welcome

log = logging.getLogger(__name__)

#: A host that said goodbye closes when it has answered what it has; one that does not is cut off after this.
_GOODBYE_GRACE_S = 10.0
#: Longer than a round trip within a continent: a host that does not take a connection by then may be gone, although nobody says so.
_SLOW_CONNECT_S = 0.1


class LinkOwner(Protocol):
    """What a link asks and tells; the `Caller` is one."""

    def hello(self) -> Hello:
        """The first frame to send."""

    def is_needed(self, link: Link) -> bool:
        """Whether to go on trying to connect."""

    def on_link_up(self, link: Link, welcome: Welcome) -> None:
        """A connection stands."""

    def on_link_writable(self, link: Link) -> None:
        """Calls may be written again."""

    def on_link_failed(self, link: Link) -> None:
        """An attempt to connect came to nothing."""

    def on_link_refused(self, link: Link, error: ActorGridError) -> None:
        """The host will not have this client."""

    def on_link_lost(self, link: Link, connection: Connection, error: ActorGridError) -> None:
        """A standing connection has ended."""

    def on_link_leaving(self, link: Link) -> None:
        """The host said goodbye."""

    def on_link_replies(self, connection: Connection, replies: list[Reply]) -> None:
        """Answers to calls."""

    def on_link_batch_replies(self, connection: Connection, replies: list[BatchReply]) -> None:
        """Answers to batches of reads."""

    def on_link_map(self, link: Link, message: MapMessage) -> None:
        """A map, asked for or not."""


class Link:
    """One host, by its address.

    :ivar connection: the standing connection, or None
    :ivar is_writable: calls may be written now
    :ivar last_error: why there is no connection, or why the last one ended
    :ivar has_refused: the host would not have this client, the last time it was asked
    """

    def __init__(
        self,
        owner: LinkOwner,
        host: str,
        port: int,
        settings: ClientSettings,
        wire: WireSettings,
        rng: random.Random,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.name = show_seed(host, port)
        self.address = (host, port)
        self.connection: Connection | None = None
        self.is_writable = False
        self.last_error: ActorGridError | None = None
        self.has_refused = False
        self._refused_since = 0.0
        self._owner = owner
        self._settings = settings
        self._wire = wire
        self._tls = tls
        self._rng = rng
        self._failures = 0
        self._connecting_since = 0.0
        self._task: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._is_closed = False

    def ensure_connected(self) -> None:
        """Start connecting unless a connection stands or is being made."""
        if self.connection is None and self._task is None and not self._is_closed:
            self._connecting_since = self._loop.time()
            self._task = self._loop.create_task(self._connect(), name=f"actorgrid connect {self.name}")

    @property
    def refused_for_s(self) -> float:
        """Since when the host has refused this client, without a break."""
        return self._loop.time() - self._refused_since if self.has_refused else 0.0

    @property
    def is_connecting(self) -> bool:
        """Whether a connection is being made, or waits for its backoff."""
        return self._task is not None

    @property
    def is_leaving(self) -> bool:
        """The host said goodbye: it answers what it has and takes nothing new."""
        return self._grace is not None

    @property
    def is_unreachable(self) -> bool:
        """There is no connection, and making one has failed before or takes long."""
        if self.connection is not None:
            return False
        return self._failures > 0 or (self._task is not None and self._loop.time() > self._connecting_since + _SLOW_CONNECT_S)

    async def _connect(self) -> None:
        try:
            while True:
                if self._failures:
                    await asyncio.sleep(self._backoff_s())
                try:
                    hello = self._owner.hello()
                    timeout_s = self._settings.connect_timeout_s
                    connection = await connect(self, *self.address, hello, wire=self._wire, timeout_s=timeout_s, tls=self._tls)
                    break
                except RefusedError as refusal:
                    self._fail(refusal.error)
                    if not isinstance(refusal.error, TransientError):
                        if not self.has_refused:
                            self._refused_since = self._loop.time()
                        self.has_refused = True
                        self._owner.on_link_refused(self, refusal.error)
                except AccessDeniedError as error:  # the own token cannot be read, perhaps for a moment only
                    self._fail(error)
                except (HostUnavailableError, ProtocolError) as error:
                    self._fail(error)
                if not self._owner.is_needed(self):
                    return
        finally:
            self._task = None
        self.connection = connection
        self.has_refused = False
        self.is_writable = not connection.is_paused
        assert connection.welcome is not None
        log.debug("connected host=%s address=%s", connection.welcome.host, self.name)
        self._owner.on_link_up(self, connection.welcome)

    def _fail(self, error: ActorGridError) -> None:
        self._failures += 1
        self.last_error = error
        log.debug("no connection address=%s failures=%d error=%s", self.name, self._failures, error)
        self._owner.on_link_failed(self)

    def _backoff_s(self) -> float:
        doubled = self._settings.retry_first_s * 2.0 ** min(self._failures - 1, 30)
        delay_s = min(doubled, self._settings.retry_max_s) * self._rng.uniform(0.5, 1.0)
        return max(delay_s, min(getattr(self.last_error, "retry_after_s", 0.0), self._settings.timeout_s))

    # -- Listener of the connection

    def on_replies(self, connection: Connection, replies: list[Reply]) -> None:
        """Pass on what proves that the host works."""
        # Only an answer proves that the host works: one that welcomes and dies at once must meet a growing backoff.
        self._failures = 0
        self._owner.on_link_replies(connection, replies)

    def on_batch_replies(self, connection: Connection, replies: list[BatchReply]) -> None:
        """Pass on what proves that the host works."""
        self._failures = 0
        self._owner.on_link_batch_replies(connection, replies)

    def on_map(self, connection: Connection, message: MapMessage) -> None:
        """Pass on a map."""
        self._owner.on_link_map(self, message)

    def on_admin_reply(self, connection: Connection, reply: AdminReply) -> None:
        """Refuse it: a caller asks no operator's questions."""
        raise ProtocolError(f"{self.name}: answer {reply.correlation} to an operator's question that was never asked here")

    def on_goodbye(self, connection: Connection, reason: str) -> None:
        """Write nothing new; what is open may still be answered."""
        if connection is self.connection and self._grace is None:
            log.debug("host stops address=%s reason=%s", self.name, reason)
            self.is_writable = False
            error = HostUnavailableError(f"{self.name}: the host is stopping: {reason}")
            self._grace = self._loop.call_later(_GOODBYE_GRACE_S, connection.close, error)
            self._owner.on_link_leaving(self)

    def on_writable(self, connection: Connection) -> None:
        """The peer reads again."""
        if connection is self.connection and self._grace is None:
            self.is_writable = True
            self._owner.on_link_writable(self)

    def on_lost(self, connection: Connection, error: ActorGridError) -> None:
        """The connection has ended."""
        if connection is not self.connection:
            return
        self._drop(error)
        self._failures += 1
        self._owner.on_link_lost(self, connection, error)

    def _drop(self, error: ActorGridError) -> None:
        self.connection = None
        self.is_writable = False
        self.last_error = error
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    async def close(self) -> None:
        """Close the connection without telling the owner, and wait for the link's own task."""
        self._is_closed = True
        connection = self.connection
        error = HostUnavailableError(f"{self.name}: the client was closed")
        self._drop(error)
        if connection is not None:
            connection.close(error)
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def __repr__(self) -> str:
        return f"Link({self.name}, {'up' if self.connection else self.last_error or 'not connected'})"
