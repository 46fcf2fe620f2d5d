"""The mark: rough measuring servers that only prove what two cores can do in Python, where ``ACTORGRID_PROTOTYPE`` names their directory.

They are no part of this repository. They speak length-prefixed (little-endian) arrays of tuples, on fixed ports: ``proto_srv.py`` answers
calls on one host and keeps nothing; ``durp_srv.py INDEX SYNC PARTITIONS`` three times is a change on three replicas with a synced quorum.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import cast

import msgspec

from bench.load import Load, closed_loop
from bench.peers.interface import KEYS, Peer, key
from bench.peers.processes import LOOPBACK, MissingPeerError, PeerError, is_listening

DIRECTORY_VARIABLE = "ACTORGRID_PROTOTYPE"
READ_PORT = 9901
WRITE_PORTS = (9910, 9911, 9912)
PARTITIONS = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, int, object]]).decode


class Client(asyncio.Protocol):
    """`call` gives a future of the answer; the calls of one tick travel together."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._unsent: list[tuple[int, int, int, str, int, tuple[int, str], int]] = []
        self._last = 0
        self._keys = [key(number) for number in range(KEYS)]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(PeerError("the prototype's connection is lost"))

    def call(self, number: int) -> asyncio.Future[object]:
        """Add one to the counter that `number` goes to."""
        self._last = correlation = self._last + 1
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((correlation, 17, 1, self._keys[number % KEYS], 0, (1, "abc"), correlation))
        self._waiting[correlation] = answer = self._loop.create_future()
        return answer

    def _flush(self) -> None:
        payload = _encode(self._unsent)
        self._unsent.clear()
        self.transport.write(len(payload).to_bytes(4, "little") + payload)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        offset, size = 0, len(buffer)
        while size - offset >= 4:
            end = offset + 4 + int.from_bytes(buffer[offset : offset + 4], "little")
            if end > size:
                break
            for correlation, _, result in _decode(buffer[offset + 4 : end]):
                self._waiting.pop(correlation).set_result(result)
            offset = end
        del buffer[:offset]


class Prototype(Peer):
    """Writes on three synced replicas, reads on one host; the operations share nothing."""

    name = "prototype"
    what = "write: change on 3 replicas; read: call on one host that keeps nothing; no sessions, no leases, no elections"
    durability = "write: fdatasync on 2 of 3 copies; read: none"

    async def _open(self, directory: Path) -> None:
        source = _source()
        for port in (READ_PORT, *WRITE_PORTS):
            if await is_listening(port):
                raise MissingPeerError(f"the prototype's port {port} is taken, and cannot be chosen")
        servers = [("proto_srv", READ_PORT, ["proto_srv.py"])]
        # The primary last: it connects to the others as it starts.
        servers += [(f"durp_srv-{index}", WRITE_PORTS[index], ["durp_srv.py", str(index), "1", str(PARTITIONS)]) for index in (1, 2, 0)]
        for name, port, (script, *arguments) in servers:
            await self.processes.start(name, [sys.executable, source / script, *arguments])
            await self.processes.wait_for_port(name, port)
        loop = asyncio.get_running_loop()
        _, self._reads = await loop.create_connection(Client, LOOPBACK, READ_PORT)
        _, self._writes = await loop.create_connection(Client, LOOPBACK, WRITE_PORTS[0])

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        if operation == "read":
            return await closed_loop(self._reads.call, in_flight=in_flight, duration_s=duration_s)
        return await closed_loop(self._writes.call, in_flight=in_flight, duration_s=duration_s, book=self.book)

    async def _close(self) -> None:
        for client in (getattr(self, "_reads", None), getattr(self, "_writes", None)):
            if client is not None:
                client.transport.close()


def _source() -> Path:
    named = os.environ.get(DIRECTORY_VARIABLE)
    if not named:
        raise MissingPeerError(f"{DIRECTORY_VARIABLE} does not name the directory of its servers, which are no part of this repository")
    for script in ("proto_srv.py", "durp_srv.py"):
        if not (Path(named) / script).is_file():
            raise MissingPeerError(f"{DIRECTORY_VARIABLE}: there is no {script} in {named}")
    return Path(named).resolve()
