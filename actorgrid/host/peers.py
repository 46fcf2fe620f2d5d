"""The other hosts: one connection to each, one frame per tick on it, and the beats by which hosts support each other.

Of two hosts the one whose name comes first connects. Whoever knows more about the other's store than the other itself says so and refuses
(I6); whoever hears that of itself has a disk that went back in time. A connection on which nothing arrives for a while is given up and made
anew, so that what a cut swallowed does not wait for TCP's own patience. Beats are sent by the loop that serves, and only while the disk
answers: a host that is stuck loses its leases by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, cast

import msgspec

from actorgrid import ambient
from actorgrid.credentials import Credentials, check_host, client_context, identity_of
from actorgrid.errors import AccessDeniedError, ActorGridError, ProtocolError
from actorgrid.host.commit import PATIENCE_S
from actorgrid.host.supervision import Supervisor
from actorgrid.replication import frames
from actorgrid.replication.frames import Beat, BeatAnswer, PeerFrame, PeerHello, PeerRefused, PeerWelcome, StoreMark
from actorgrid.replication.liveness import Announcement, Liveness
from actorgrid.replication.messages import Append, Message
from actorgrid.wire import messages as wire
from actorgrid.wire.framing import FrameReader, frame
from actorgrid.wire.messages import HostInfo

logger = logging.getLogger(__name__)

#: Hosts of one grid trust each other's sizes more than strangers': a record is as large as the turns of a tick made it.
PEER_FRAME_BYTES_MAX: Final = 512 << 20
#: Messages of one tick are cut into frames of about this size, so that a beat never waits behind more.
FRAME_BYTES: Final = 4 << 20
#: A smaller frame is copied behind its length sooner than both are written one after the other.
JOINED_BYTES_MAX: Final = 64 << 10
BUFFER_HIGH_BYTES: Final = 8 << 20
BUFFER_LOW_BYTES: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 0.5
#: With a look-up of a name, and two handshakes' worth of work on a busy processor.
TLS_CONNECT_TIMEOUT_S: Final = 2.0
#: For TLS only; identity is in the certificate, and a host's name need not be one of the network's.
TLS_NAME: Final = "host.actorgrid"
HANDSHAKE_TIMEOUT_S: Final = 1.0
RETRY_FIRST_S: Final = 0.01
RETRY_MAX_S: Final = 0.25
#: A connection that was silent for so long is given up: six beats.
SILENCE_S: Final = 1.5
ASK_OFTEN_S: Final = 3.0
ALONE_AFTER_S: Final = 5.0


class PeerOwner(Protocol):
    """What peers need of their host."""

    def peer_frame(self, host: str, incarnation: int, messages: list[Message]) -> None:
        """Messages of replicas arrived."""

    def peer_other(self, host: str, incarnation: int, message: Any) -> None:
        """A frame that belongs to a copy arrived."""

    def peer_up(self, host: str) -> None: ...
    def peer_down(self, host: str) -> None: ...
    def peer_paused(self, host: str, *, paused: bool) -> None: ...
    def support_changed(self, host: str) -> None: ...
    def primaries_changed(self) -> None: ...
    def host_died(self, host: str, incarnation: int) -> None: ...
    def disk_went_back(self, known: StoreMark, said_by: str) -> None: ...
    def synced_position(self) -> int: ...
    def may_beat(self, now_ns: int) -> bool: ...


class PeerConnection(asyncio.Protocol):
    """An open connection to a peer, during and after the handshake."""

    def __init__(self, peers: Peers, link: PeerLink | None) -> None:
        self._peers = peers
        self.link = link
        self.incarnation = 0
        self.expires_ms = 0
        self.transport: asyncio.Transport | None = None
        self.welcomed: asyncio.Future[None] = peers.loop.create_future()
        self._reader = FrameReader(PEER_FRAME_BYTES_MAX)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.adopt(cast(asyncio.Transport, transport))
        if self.link is None:
            return
        try:
            self._peers.check_answerer(self.link, transport)
        except AccessDeniedError as error:
            if str(error) != self.link.denied_why:
                self.link.denied_why = str(error)
                logger.warning("peer connection closed peer=%s error=%s", self.link.name, error)
            self.close()
            return
        self.expires_ms = self._peers.expiry_of(transport)
        self.write(self._peers.hello_to(self.link))

    def adopt(self, transport: asyncio.Transport) -> None:
        """Take over `transport`, new or from the connection that read the handshake."""
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_HIGH_BYTES, low=BUFFER_LOW_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2 * SILENCE_S * 1000))

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                if self.transport is None:
                    return
                self._peers.received(self, payload)
        except ActorGridError as error:
            logger.warning("peer connection closed peer=%s error=%s", self.link.name if self.link else "?", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if not self.welcomed.done():
            self.welcomed.cancel()
        if self.link is not None:
            self.link.lost(self)

    def pause_writing(self) -> None:
        if self.link is not None and self.link.connection is self:
            self.link.is_paused = True
            self._peers.owner.peer_paused(self.link.name, paused=True)

    def resume_writing(self) -> None:
        if self.link is not None and self.link.connection is self:
            self.link.is_paused = False
            self._peers.owner.peer_paused(self.link.name, paused=False)

    def write(self, message: Any) -> None:
        if self.transport is not None:
            self.transport.write(frame(frames.encode(message)))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class PeerLink:
    """One other host.

    :ivar connection: after its handshake, or None; :ivar is_down: there is none
    :ivar mark: how far its store is known to be (I6)
    """

    def __init__(self, peers: Peers, info: HostInfo, mark: StoreMark) -> None:
        self.name = info.name
        self.info = info
        self.mark = mark
        self.connection: PeerConnection | None = None
        self.is_down = asyncio.Event()
        self.is_down.set()
        self.is_paused = False
        self.denied_why = ""
        self.process_id = ""
        self.incarnation = 0
        self.outbox: list[Message] = []
        self.outbox_bytes = 0
        self.beat: Beat | None = None
        self.answer: BeatAnswer | None = None
        self.answered_version = 0
        self.heard_s = 0.0
        self.up_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self.death_watch: asyncio.Task[None] | None = None
        self._peers = peers

    def up(self, connection: PeerConnection, mark: StoreMark, process_id: str) -> None:
        """A handshake has succeeded."""
        old, self.connection = self.connection, connection
        self.is_down.clear()
        connection.link = self
        connection.incarnation = mark.incarnation
        if old is not None and old is not connection:
            old.link = None
            old.close()
            self._peers.owner.peer_down(self.name)
        self.process_id = process_id
        self.incarnation = mark.incarnation
        self.is_paused = False
        self.answered_version = 0
        self.heard_s = self.up_s = self._peers.loop.time()
        self._peers.remember(self, mark)
        if self.death_watch is not None:
            self.death_watch.cancel()
            self.death_watch = None
        self._peers.link_up(self)

    def lost(self, connection: PeerConnection) -> None:
        """`connection` has ended."""
        if connection is not self.connection:
            return
        self.connection = None
        self.is_down.set()
        self.outbox, self.outbox_bytes = [], 0
        self.beat = self.answer = None
        self._peers.link_down(self)


class Peers:
    """The connections to all other hosts of the grid, and the beats on them.

    :param marks: what is remembered of the peers' stores
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        owner: PeerOwner,
        cluster_id: str,
        me: HostInfo,
        others: Iterable[HostInfo],
        own_mark: Callable[[], StoreMark],
        marks: dict[str, StoreMark],
        liveness: Liveness,
        supervisor: Supervisor,
        beat_s: float,
        credentials: Credentials | None = None,
    ) -> None:
        self.loop = loop
        self.owner = owner
        self.liveness = liveness
        self._cluster_id = cluster_id
        self._me = me
        self._own_mark = own_mark
        self._supervisor = supervisor
        self._beat_s = beat_s
        self._tls = client_context(credentials) if credentials is not None else None
        # Of several loopback addresses on one machine, each host has one: faults are injected between them.
        self._from = (me.address, 0) if me.address.startswith("127.") else None
        self._rng = ambient.new_random()  # jitter of retries
        self._marks = marks
        self.links = {info.name: PeerLink(self, info, marks.get(info.name, frames.NOTHING_KNOWN)) for info in others}
        self._marks_changed: dict[str, StoreMark] = {}
        self._flush_scheduled = False
        self._waiting: dict[PeerLink, None] = {}
        self._patient: dict[PeerLink, None] = {}  # with nothing to send that somebody waits for
        self._patience_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._primaries: dict[int, int] = {}
        self._primaries_version = 1
        self._is_started = False
        self._is_stopped = False
        self.frames_sent_total = 0
        self.frames_received_total = 0

    # -- life

    def start(self) -> None:
        """Connect, and go on doing so; send beats."""
        self._is_started = True
        for link in self.links.values():
            self._start_link(link)
        self._beat()

    def _start_link(self, link: PeerLink) -> None:
        if self._me.name < link.name:
            link.task = self.loop.create_task(self._keep_connected(link), name=f"peer {link.name}")

    def set_others(self, others: Iterable[HostInfo]) -> None:
        """The grid has other hosts now: connect to new ones, leave those that are gone."""
        wanted = {info.name: info for info in others}
        for name, link in list(self.links.items()):
            if name not in wanted:
                del self.links[name]
                self._leave(link)
        for name, info in wanted.items():
            known = self.links.get(name)
            if known is None:
                link = self.links[name] = PeerLink(self, info, self._marks.get(name, frames.NOTHING_KNOWN))
                if self._is_started:
                    self._start_link(link)
            else:
                known.info = info

    def _leave(self, link: PeerLink) -> None:
        self._marks[link.name] = link.mark
        for task in (link.task, link.death_watch):
            if task is not None:
                task.cancel()
        connection = link.connection
        if connection is not None:
            link.connection = None
            link.is_down.set()
            connection.link = None
            connection.close()
            self.owner.peer_down(link.name)

    async def stop(self) -> None:
        """Close everything."""
        self._end_patience()
        self._is_stopped = True
        for timer in (self._timer, self._patience_timer):
            if timer is not None:
                timer.cancel()
        tasks = [task for link in self.links.values() for task in (link.task, link.death_watch) if task is not None]
        for task in tasks:
            task.cancel()
        for link in self.links.values():
            if link.connection is not None:
                link.connection.close()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _keep_connected(self, link: PeerLink) -> None:
        delay_s = RETRY_FIRST_S
        while not self._is_stopped and self.links.get(link.name) is link:
            if link.connection is not None:
                delay_s = RETRY_FIRST_S
                await link.is_down.wait()
                await asyncio.sleep(RETRY_FIRST_S)
                continue
            connection = PeerConnection(self, link)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S if self._tls is None else TLS_CONNECT_TIMEOUT_S):
                    await self.loop.create_connection(
                        lambda made=connection: made,
                        link.info.address,
                        link.info.port,
                        ssl=self._tls,
                        server_hostname=TLS_NAME if self._tls is not None else None,
                        local_addr=self._from,
                    )
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    await asyncio.shield(connection.welcomed)
            except (OSError, UnicodeError, asyncio.CancelledError) as error:  # TimeoutError is an OSError; a name may be none
                if isinstance(error, asyncio.CancelledError) and not connection.welcomed.cancelled():
                    connection.close()
                    raise
                connection.close()
                if not connection.welcomed.done():
                    connection.welcomed.cancel()
                await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, RETRY_MAX_S)

    # -- handshake

    def hello_to(self, link: PeerLink) -> PeerHello:
        """The first frame to `link`."""
        return PeerHello(
            wire.MAGIC,
            wire.PROTOCOL_VERSION_OLDEST,
            wire.PROTOCOL_VERSION,
            self._cluster_id,
            self._me.name,
            self._own_mark(),
            self._supervisor.process_id,
            link.mark,
        )

    def check_answerer(self, link: PeerLink, transport: asyncio.BaseTransport) -> None:
        """Make sure that what answers at the address of `link` is that host.

        :raises AccessDeniedError: its certificate says something else
        """
        if self._tls is not None:
            check_host(transport.get_extra_info("peercert"), self._cluster_id, link.name)

    def expiry_of(self, transport: asyncio.BaseTransport) -> int:
        """Date from which on the certificate of the other side proves nothing; 0: there is none."""
        identity = identity_of(transport.get_extra_info("peercert")) if self._tls is not None else None
        return identity.expires_ms if identity is not None else 0

    def _close_expired(self) -> None:
        now_ms = ambient.wall_clock_ns() // 1_000_000
        for link in list(self.links.values()):
            if link.connection is not None and 0 < link.connection.expires_ms <= now_ms:
                logger.warning("peer's certificate has expired, its connection is closed host=%s", link.name)
                link.connection.close()

    def greeted(self, transport: asyncio.Transport, payload: bytes) -> PeerConnection | None:
        """A peer's first frame arrived on `transport`; its connection from here on, or None if it was refused.

        :raises AccessDeniedError: the certificate shown is another host's
        :raises ProtocolError: it is no handshake, of another grid, or of nobody known
        """
        try:
            hello = frames.decode_peer_hello(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"the first frame is no handshake of a host: {error}") from None
        if self._tls is not None:
            check_host(transport.get_extra_info("peercert"), self._cluster_id, hello.host)
        link = self.links.get(hello.host)
        if hello.magic != wire.MAGIC or hello.cluster_id != self._cluster_id or link is None:
            raise ProtocolError(f"host {hello.host!r:.60} of grid {hello.cluster_id!r:.60} is no peer of {self._me.name}")
        version = min(hello.version_newest, wire.PROTOCOL_VERSION)
        if version < max(hello.version_oldest, wire.PROTOCOL_VERSION_OLDEST):
            raise ProtocolError(f"no common protocol version with host {hello.host}")
        if self._is_behind(hello.mark, link.mark):
            logger.warning("peer refused, its disk went back host=%s has=%s known=%s", hello.host, hello.mark, link.mark)
            transport.write(frame(frames.encode(PeerRefused("this store is older than what is known of it", link.mark))))
            transport.close()
            return None
        if self._is_behind(self._own_mark(), hello.known):
            self.owner.disk_went_back(hello.known, hello.host)
            transport.close()
            return None
        connection = PeerConnection(self, link)
        connection.adopt(transport)
        connection.expires_ms = self.expiry_of(transport)
        connection.welcomed.set_result(None)
        connection.write(PeerWelcome(version, self._me.name, self._own_mark(), self._supervisor.process_id, link.mark))
        link.up(connection, hello.mark, hello.process_id)
        return connection

    @staticmethod
    def _is_behind(mark: StoreMark, known: StoreMark) -> bool:
        """Whether a store that says `mark` of itself is older than what is known of it (I6)."""
        if mark.store_id == known.store_id:
            return mark.incarnation < known.incarnation or mark.position < known.position
        return mark.incarnation <= known.incarnation

    def _answered(self, connection: PeerConnection, payload: bytes) -> None:
        link = connection.link
        assert link is not None
        try:
            answer = frames.decode_peer_answer(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"{link.name} does not answer as a host: {error}") from None
        if isinstance(answer, PeerRefused):
            if self._is_behind(self._own_mark(), answer.known):
                self.owner.disk_went_back(answer.known, link.name)
            raise ProtocolError(f"refused by {link.name}: {answer.message}")
        if answer.host != link.name:
            raise ProtocolError(f"{answer.host} answers at the address of {link.name}")
        if self._is_behind(answer.mark, link.mark):
            raise ProtocolError(f"the disk of {link.name} went back: it has {answer.mark}, known is {link.mark}")
        if self._is_behind(self._own_mark(), answer.known):
            self.owner.disk_went_back(answer.known, link.name)
            raise ProtocolError("this disk went back")
        if self.links.get(link.name) is not link:
            raise ProtocolError(f"{link.name} is of the grid no more")
        connection.welcomed.set_result(None)
        link.up(connection, answer.mark, answer.process_id)

    # -- frames in

    def received(self, connection: PeerConnection, payload: bytes) -> None:
        """A frame arrived.

        :raises ProtocolError: it is not what a peer may say
        """
        if not connection.welcomed.done():
            self._answered(connection, payload)
            return
        link = connection.link
        if link is None or link.connection is not connection:
            return  # followed by another connection
        decoder = frames.PEER_DECODERS.get(payload[1] if len(payload) > 1 else -1)
        if decoder is None:
            raise ProtocolError(f"frame of unknown kind from host {link.name}")
        try:
            message = decoder(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"frame of host {link.name} does not have its form: {error}") from None
        now_ns = ambient.monotonic_ns()
        link.heard_s = self.loop.time()
        self.liveness.heard(link.name, now_ns)
        if type(message) is not PeerFrame:
            self.owner.peer_other(link.name, connection.incarnation, message)
            return
        self.frames_received_total += 1
        if message.position > link.mark.position:
            self.remember(link, StoreMark(link.mark.incarnation, message.position, link.mark.store_id))
        if message.beat is not None:
            self._on_beat(link, connection, message.beat, now_ns)
        if message.answer is not None:
            answer = message.answer
            link.answered_version = max(link.answered_version, answer.version)
            if self.liveness.support_answered(link.name, answer.number, answer.sent_ns, now_ns):
                self.owner.support_changed(link.name)
        if message.messages:
            self.owner.peer_frame(link.name, connection.incarnation, message.messages)

    def _on_beat(self, link: PeerLink, connection: PeerConnection, beat: Beat, now_ns: int) -> None:
        number = self.liveness.beat_received(link.name, connection.incarnation, now_ns)
        if beat.primaries is not None:
            announcement = Announcement(connection.incarnation, beat.version, beat.primaries)
            if self.liveness.announced(link.name, announcement):
                self.owner.primaries_changed()
        link.answer = BeatAnswer(beat.sent_ns, number, self.liveness.announced_version(link.name))
        self._wake(link)

    def remember(self, link: PeerLink, mark: StoreMark) -> None:
        """Keep what is known of a peer's store; durable with the next batch."""
        link.mark = self._marks[link.name] = self._marks_changed[link.name] = mark

    def take_marks(self) -> dict[str, StoreMark]:
        """What has changed since the last time."""
        marks, self._marks_changed = self._marks_changed, {}
        return marks

    # -- frames out

    def send(self, host: str, message: Message, *, may_wait: bool = False) -> None:
        """Send `message` with this tick's frame; it is lost if there is no connection.

        :param may_wait: nobody waits for it: it goes with the next frame that leaves for whatever reason, or after `PATIENCE_S`
        """
        link = self.links.get(host)
        if link is None or link.connection is None:
            return
        link.outbox.append(message)
        if type(message) is Append:
            for record in message.records:
                link.outbox_bytes += len(record)
            if link.outbox_bytes > FRAME_BYTES:
                self._flush_link(link)
                return
        if may_wait:
            self._wake_later(link)
        else:
            self._wake(link)

    def send_frame(self, host: str, message: Any) -> bool:
        """Send a frame of a copy at once; whether there is a connection."""
        link = self.links.get(host)
        if link is None or link.connection is None:
            return False
        link.connection.write(message)
        return True

    def is_up(self, host: str) -> bool:
        link = self.links.get(host)
        return link is not None and link.connection is not None

    def connected(self) -> list[str]:
        """The hosts that a connection stands to."""
        return [name for name, link in self.links.items() if link.connection is not None]

    def is_alone(self) -> bool:
        """Whether there are others, and none of them is connected, for longer than a moment."""
        return bool(self.links) and all(
            link.connection is None and self.loop.time() - link.heard_s > ALONE_AFTER_S for link in self.links.values()
        )

    def is_steady(self, host: str, for_s: float) -> bool:
        """Whether the connection to `host` has stood for so long."""
        link = self.links.get(host)
        return link is not None and link.connection is not None and self.loop.time() - link.up_s >= for_s

    def _wake(self, link: PeerLink) -> None:
        self._waiting[link] = None
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _wake_later(self, link: PeerLink) -> None:
        self._patient[link] = None
        if self._patience_timer is None:
            self._patience_timer = self.loop.call_later(PATIENCE_S, self._end_patience)

    def _end_patience(self) -> None:
        self._patience_timer = None
        patient, self._patient = self._patient, {}
        for link in patient:
            self._flush_link(link)

    def flush_now(self) -> None:
        """Send what waits for the end of the loop's turn."""
        if self._waiting:
            self._flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        waiting, self._waiting = self._waiting, {}
        for link in waiting:
            self._flush_link(link)

    def _flush_link(self, link: PeerLink) -> None:
        self._patient.pop(link, None)
        outbox, link.outbox, link.outbox_bytes = link.outbox, [], 0
        beat, link.beat = link.beat, None
        answer, link.answer = link.answer, None
        connection = link.connection
        if connection is None or connection.transport is None or not (outbox or beat or answer):
            return
        self.frames_sent_total += 1
        payload = frames.encode(PeerFrame(self.owner.synced_position(), beat, answer, outbox))
        header = len(payload).to_bytes(4, "big")
        if self._tls is not None or len(payload) <= JOINED_BYTES_MAX:
            connection.transport.write(header + payload)  # one call of the kernel, and one TLS record, not two
        else:
            connection.transport.write(header)
            connection.transport.write(payload)

    # -- beats

    def announce(self, partition: int, epoch: int) -> None:
        """This host is primary of `partition` in `epoch`; 0: it is no more."""
        if epoch:
            self._primaries[partition] = epoch
        elif self._primaries.pop(partition, None) is None:
            return
        self._primaries_version += 1
        self.loop.call_soon(self._beat_to_all)

    def _beat(self) -> None:
        self._timer = self.loop.call_later(self._beat_s, self._beat)
        now_s = self.loop.time()
        for link in list(self.links.values()):
            if link.connection is not None and now_s - link.heard_s > SILENCE_S:
                logger.warning("peer is silent, its connection is given up host=%s silent_s=%.2f", link.name, now_s - link.heard_s)
                link.connection.close()
        if self._tls is not None:
            self._close_expired()
        self._beat_to_all()

    def _beat_to_all(self) -> None:
        now_ns = ambient.monotonic_ns()
        if self._is_stopped or not self.owner.may_beat(now_ns):
            return
        version = self._primaries_version
        for link in self.links.values():
            if link.connection is not None:
                link.beat = Beat(now_ns, version, None if link.answered_version == version else dict(self._primaries))
                self._wake(link)

    # -- up and down

    def link_up(self, link: PeerLink) -> None:
        logger.info("peer up host=%s incarnation=%d", link.name, link.incarnation)
        self.liveness.met(link.name, link.incarnation)
        self.liveness.heard(link.name, ambient.monotonic_ns())
        self.owner.peer_up(link.name)
        self.loop.call_soon(self._beat_to_all)

    def link_down(self, link: PeerLink) -> None:
        logger.info("peer down host=%s incarnation=%d", link.name, link.incarnation)
        self.owner.peer_down(link.name)
        if not self._is_stopped and link.death_watch is None and self.links.get(link.name) is link:
            link.death_watch = self.loop.create_task(
                self._watch_death(link, link.process_id, link.incarnation), name=f"death of {link.name}"
            )

    async def _watch_death(self, link: PeerLink, process_id: str, incarnation: int) -> None:
        """Ask the supervisor whether the process has ended, often at first, until it says so or there is a connection again."""
        began_s = self.loop.time()
        while not self._is_stopped:
            if await self._supervisor.is_dead(link.name, process_id):
                self.process_died(link.name, process_id)
                break
            await asyncio.sleep(0.01 if self.loop.time() - began_s < ASK_OFTEN_S else 0.25)
        link.death_watch = None

    def process_died(self, host: str, process_id: str) -> bool:
        """Whoever supervises `host` saw this process of it end; whether that is the one known here."""
        link = self.links.get(host)
        if link is None or not process_id or link.process_id != process_id:
            return False
        if not self.liveness.is_dead(host, link.incarnation):
            logger.warning("host process is dead host=%s incarnation=%d", host, link.incarnation)
            self.liveness.died(host, link.incarnation)
            if link.connection is not None:
                link.connection.close()
            self.owner.host_died(host, link.incarnation)
        return True
