"""The limit: a bare uvloop server that answers each call with itself, with the grid's own frames and codec and no semantics.

The client groups the calls of one tick by partition, as the grid's client does, and encodes them as one frame; the server decodes it with
the decoder of a host and answers all its calls with one frame. Nothing is looked up, kept, checked or retried.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop
from msgspec import Raw

from actorgrid.ids import make_address, partition_of
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame
from bench.load import Load, closed_loop
from bench.peers.interface import KEYS, Peer, key
from bench.peers.processes import LOOPBACK, PeerError, free_ports

PARTITIONS = 64
FRAME_BYTES_MAX = 16 << 20
TIMEOUT_MS = 10_000
#: The array of arguments of most calls: a one.
ONE = Raw(messages.encode([1]))

_decode_calls = cast(Callable[[bytes], messages.Calls], messages.HOST_DECODERS[messages.KIND_CALLS])
_decode_replies = cast(Callable[[bytes], messages.Replies], messages.CLIENT_DECODERS[messages.KIND_REPLIES])


class Server(asyncio.Protocol):
    """One connection's worth of the echo: an answer carries the arguments of its call."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not isinstance: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._reader = FrameReader(FRAME_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        reply, ok = messages.Reply, messages.STATUS_OK
        replies = [
            reply(call.correlation, ok, call.args)
            for payload in self._reader.feed(data)
            for group in _decode_calls(payload).groups
            for call in group.calls
        ]
        if replies:
            self._transport.write(frame(messages.encode(messages.Replies(replies))))


class Client(asyncio.Protocol):
    """`call` gives a future of the answer's payload; the calls of one tick travel together."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(FRAME_BYTES_MAX)
        self._waiting: dict[int, asyncio.Future[Raw]] = {}
        self._unsent: dict[int, list[messages.Call]] = {}
        self._last = 0
        addresses = [make_address("Counter", key(number)) for number in range(KEYS)]
        self._targets = [(address, partition_of(address, PARTITIONS)) for address in addresses]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(PeerError("the echo's connection is lost"))

    def call(self, number: int, args: Raw = ONE) -> asyncio.Future[Raw]:
        """Call the actor that `number` goes to; the answer is `args`."""
        address, partition = self._targets[number % KEYS]
        self._last = correlation = self._last + 1
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.setdefault(partition, []).append(messages.Call(correlation, address, "read", TIMEOUT_MS, args))
        self._waiting[correlation] = answer = self._loop.create_future()
        return answer

    def _flush(self) -> None:
        last = self._last
        groups = [messages.CallGroup(partition, b"", last, last, 0, calls) for partition, calls in self._unsent.items()]
        self._unsent.clear()
        self.transport.write(frame(messages.encode(messages.Calls(groups))))

    def data_received(self, data: bytes) -> None:
        for payload in self._reader.feed(data):
            for reply in _decode_replies(payload).replies:
                self._waiting.pop(reply.correlation).set_result(reply.payload)


class Echo(Peer):
    """The limit of frames and codec."""

    name = "echo"
    what = "bare uvloop echo of the grid's own frames with its codec, no semantics"
    durability = "none, nothing is kept"
    operations = ("echo",)

    async def _open(self, directory: Path) -> None:
        (port,) = free_ports(1)
        await self.processes.start("echo", [sys.executable, "-m", "bench.peers.echo", str(port)])
        await self.processes.wait_for_port("echo", port)
        _, self._client = await asyncio.get_running_loop().create_connection(Client, LOOPBACK, port)

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        return await closed_loop(self._client.call, in_flight=in_flight, duration_s=duration_s)

    async def call(self, number: int, args: bytes) -> bytes:
        """One call with the encoded array of arguments, and the answer's payload as it came."""
        return bytes(await self._client.call(number, Raw(args)))

    async def _close(self) -> None:
        if hasattr(self, "_client"):
            self._client.transport.close()


async def serve(port: int) -> None:
    """Answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Server, LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
