"""A stand-in host for tests of the client: it speaks the wire protocol on a real socket and answers what the test says.

Everything it received is kept in order, as the host saw it. It runs on the test's own loop.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from actorgrid.errors import ActorGridError, to_wire
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame
from actorgrid.wire.messages import (
    Admin,
    AdminReply,
    Call,
    CallGroup,
    ErrorPayload,
    Hello,
    HostInfo,
    MapMessage,
    Refused,
    Replies,
    Reply,
    Welcome,
    encode,
)

CLUSTER_ID = "grid-of-the-test"
FRAME_BYTES_MAX = 16 << 20


#: Hosts that `run` stops at the end of a test.
_started: list[StandInHost] = []


class Applied(NamedTuple):
    """A result as of a position of the log: what a replica answers to a read that it may answer."""

    result: Any
    lsn: int


class Received(NamedTuple):
    """A call as it arrived: the group's header, the call, and the connection that it came by."""

    group: CallGroup
    call: Call
    connection: HostConnection
    frame_number: int

    @property
    def number(self) -> int:
        return self.call.correlation

    @property
    def again(self) -> bool:
        return self.call.extra is not None and self.call.extra.again

    @property
    def any_replica(self) -> bool:
        return self.call.extra is not None and self.call.extra.any_replica

    @property
    def args(self) -> list[Any]:
        return msgspec.msgpack.decode(self.call.args)

    def reply(self, result: Any = None) -> None:
        self.connection.send(self.replies(result))

    def replies(self, result: Any) -> Replies:
        """The frame that `reply` sends."""
        return Replies([_reply_to(self.number, result)])


def _reply_to(number: int, result: Any) -> Reply:
    if isinstance(result, ActorGridError):
        return Reply(number, messages.STATUS_ERROR, Raw(encode(ErrorPayload(*to_wire(result)))))
    result, lsn = result if isinstance(result, Applied) else (result, 0)
    return Reply(number, messages.STATUS_OK, Raw(encode(result)), lsn)


class HostConnection(asyncio.Protocol):
    """The host's end of one connection."""

    def __init__(self, host: StandInHost) -> None:
        self.host = host
        self.hello: Hello | None = None
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self.is_cut = False  # nothing that is sent arrives, and no end of it is seen
        self._reader = FrameReader(256 << 20)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.host.connections.append(self)
        self.host.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.host.changed.set()

    def data_received(self, data: bytes) -> None:
        for payload in self._reader.feed(data):
            if self.is_cut:
                continue
            if self.hello is None:
                self.hello = messages.decode_hello(payload)
                self.host.on_hello(self)
                self.host.changed.set()
            else:
                self.host.on_frame(self, messages.HOST_DECODERS[payload[1]](payload))

    def send(self, message: Any) -> None:
        self.send_bytes(frame(encode(message)))

    def send_bytes(self, data: bytes) -> None:
        if not self.is_lost:
            self.transport.write(data)

    def drop(self) -> None:
        self.transport.abort()


class StandInHost:
    """A host whose behaviour the test sets.

    :ivar answer: called with each `Received`; what it returns is the reply (an `ActorGridError` an error, an `Applied` a result with
        its position), `SILENCE` no reply
    :ivar refuse: an error to answer handshakes with
    :ivar is_silent: do not even answer handshakes
    :ivar map: what it sends in Welcome and as answer to GetMap; None: one with this host as primary of everything
    """

    def __init__(self, name: str = "node-0", partitions: int = 8) -> None:
        self.name = name
        self.partitions = partitions
        self.port = 0
        self.answer: Callable[[Received], Any] = lambda received: 1
        self.refuse: ActorGridError | None = None
        self.is_silent = False
        self.map: MapMessage | None = None
        self.positions: dict[int, int] = {}
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.connections: list[HostConnection] = []
        self.calls: list[Received] = []
        self.frames: list[Any] = []
        self.maps_asked = 0
        self.admin: Callable[[Admin], Any] = lambda admin: {"verb": admin.verb, **admin.arguments}
        self.changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def info(self) -> HostInfo:
        return HostInfo(self.name, "127.0.0.1", self.port)

    async def start(self) -> StandInHost:
        """Listen; after `stop`, on the same port again."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: HostConnection(self), "127.0.0.1", self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]
        _started.append(self)
        return self

    async def stop(self) -> None:
        """Die: no listener, and every connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections:
            if not connection.is_lost:
                connection.drop()
        await asyncio.sleep(0)

    def push(self, message: MapMessage) -> None:
        """Send a map, unasked, to every client that is connected, and to those that connect or ask later."""
        self.map = message
        for connection in self.connections:
            if not connection.is_lost and connection.hello is not None:
                connection.send(message)

    @property
    def is_connected(self) -> bool:
        return any(not connection.is_lost and connection.hello is not None for connection in self.connections)

    def own_map(self, version: int = 1) -> MapMessage:
        return make_map([self], version=version, partitions=self.partitions)

    def on_hello(self, connection: HostConnection) -> None:
        if self.is_silent:
            return
        if self.refuse is not None:
            connection.send(Refused(*to_wire(self.refuse)))
            connection.transport.close()
            return
        connection.send(Welcome(1, CLUSTER_ID, self.name, 1, self.frame_bytes_max, self.map or self.own_map(), self.positions))

    def on_frame(self, connection: HostConnection, message: Any) -> None:
        self.frames.append(message)
        if isinstance(message, messages.Calls):
            replies = []
            for group in message.groups:
                for call in group.calls:
                    received = Received(group, call, connection, len(self.frames))
                    self.calls.append(received)
                    result = self.answer(received)
                    if result is SILENCE:
                        continue
                    replies.append(_reply_to(call.correlation, result))
            if replies:
                connection.send(Replies(replies))
        elif isinstance(message, messages.GetMap):
            self.maps_asked += 1
            if not self.is_silent:
                connection.send(self.map or self.own_map())
        elif isinstance(message, messages.Ping):
            connection.send(messages.Pong(message.token))
        elif isinstance(message, Admin):
            result = self.admin(message)
            if result is not SILENCE:
                error = to_wire(result) if isinstance(result, ActorGridError) else None
                payload = encode(ErrorPayload(*error)) if error else encode(result)
                connection.send(AdminReply(message.correlation, 1 if error else 0, Raw(payload)))
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until `condition` holds; it is looked at whenever something arrives here."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_calls(self, count: int) -> None:
        await self.until(lambda: len(self.calls) >= count)


class _Silence:
    def __repr__(self) -> str:
        return "SILENCE"


SILENCE = _Silence()


def make_map(
    hosts: list[StandInHost],
    *,
    version: int = 1,
    partitions: int = 8,
    primary: int | None = 0,
    epoch: int = 0,
    secondaries: list[int] | None = None,
    cluster_id: str = CLUSTER_ID,
) -> MapMessage:
    """A map of `hosts`; `primary` is the index of the host that has all partitions, None to deal them out in turn.

    `epoch` is that of every partition, 0 for a map without epochs; `secondaries` are the indexes of every partition's other replicas.
    """
    primaries = [i % len(hosts) if primary is None else primary for i in range(partitions)]
    epochs = [epoch] * partitions if epoch else []
    replicas = [secondaries] * partitions if secondaries is not None else []
    return MapMessage(version, cluster_id, [host.info for host in hosts], primaries, epochs, replicas)


async def begin_anew(hosts: Iterable[StandInHost]) -> None:
    """Wait until a client is connected to all of them, and forget what that took."""
    hosts = list(hosts)
    for host in hosts:
        await host.until(lambda host=host: host.is_connected, 2)  # type: ignore[misc]
    await asyncio.sleep(0.02)
    for host in hosts:
        host.calls.clear()
        host.frames.clear()


def run(main: Callable[[], Coroutine[Any, Any, None]], timeout_s: float = 20.0) -> None:
    """Run a test's coroutine on a loop of its own; afterwards no task may be left and nothing may have gone wrong unheard."""

    async def guarded() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        try:
            async with asyncio.timeout(timeout_s):
                await main()
        finally:
            while _started:
                await _started.pop().stop()
        await asyncio.sleep(0)
        gc.collect()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, left
        assert not problems, problems

    asyncio.run(guarded())
