"""What a peer is to the harness.

A peer is started once, loaded as often as wanted, one load at a time, and stopped. It counts in `Peer.book` which changes its callers were
told of; `Peer.verdict` holds that against what it has stored.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from pathlib import Path

from bench.book import Book, Verdict
from bench.load import Load
from bench.peers.processes import MissingPeerError, PeerError, Processes

__all__ = ["KEYS", "MissingPeerError", "Peer", "PeerError", "known"]

#: Keys (counters, actors) that calls go to in turn, as many as the grid's own scenarios have actors.
KEYS = 10_000
#: Three members on a busy machine are ready after ten seconds; builds and downloads of first use have deadlines of their own.
START_S = 120.0
STOP_S = 30.0


class Peer(abc.ABC):
    """One system to compare with.

    A peer implements `_open` and `_load`, where needed `_prepare` and `_close`, and with ``faults = True`` also `kill_one` and `read_back`.
    Processes go through `processes`, which ends them also when `_open` fails half-way.

    :cvar name: in tables and on the command line
    :ivar what: what a call is, in the peer's own idiom; final once it is started, as some choose their client then
    :ivar durability: what an answer promises, stated beside every figure
    :cvar operations: of ``write``, ``read`` and ``echo``
    :cvar actors: how many keys, or actors, the calls go to in turn
    :cvar faults: `kill_one` and `read_back` work
    :ivar book: what callers of ``write`` were told since the start
    """

    name: str
    what: str
    durability: str
    operations: tuple[str, ...] = ("write", "read")
    actors: int = KEYS
    faults: bool = False

    def __init__(self) -> None:
        self.book = Book(KEYS)
        self.processes = Processes()

    async def start(self, directory: Path) -> None:
        """Start everything; nothing is left running when it fails.

        :param directory: an empty directory for its data and logs, on the disk that is to be measured
        :raises MissingPeerError: it cannot be had on this machine
        :raises PeerError: it does not start
        """
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        self.book = Book(KEYS)
        self.processes = Processes(directory)
        await self._prepare()
        try:
            async with asyncio.timeout(START_S):
                await self._open(directory)
        except TimeoutError as error:
            await self.stop()
            raise PeerError(f"{self.name} is not ready after {START_S:g} s; its logs are in {directory}") from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything that was started; harmless when repeated."""
        try:
            async with asyncio.timeout(STOP_S):
                await self._close()
        finally:
            await self.processes.stop()

    def pids(self) -> list[int]:
        """Its live processes with their descendants, foreign clients included, this process not."""
        return self.processes.pids()

    async def load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        """A closed loop of `in_flight` callers, one call at a time each.

        :raises ValueError: the peer has no such operation
        """
        if operation not in self.operations:
            raise ValueError(f"{self.name} has no operation {operation!r}: it has {', '.join(self.operations)}")
        return await self._load(operation, in_flight=in_flight, duration_s=duration_s)

    async def kill_one(self) -> None:
        """Kill one node without warning (SIGKILL), the one that hurts most where there is such a one. It does not come back."""
        raise NotImplementedError(f"{self.name} has no node to spare")

    async def read_back(self) -> dict[str, int]:
        """Effects by key (see `key`) as they are stored now; a key without any may be absent."""
        raise NotImplementedError(f"{self.name} cannot be read back")

    async def verdict(self) -> Verdict:
        """What is stored, held against what callers were told."""
        stored = await self.read_back()
        return self.book.judge([stored.get(key(number), 0) for number in range(KEYS)])

    async def _prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Find, fetch or build what it needs, with deadlines of its own: the first time may take minutes. Nothing runs afterwards."""

    @abc.abstractmethod
    async def _open(self, directory: Path) -> None:
        """Start it and connect."""

    @abc.abstractmethod
    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        """`load`, with an operation that it has."""

    async def _close(self) -> None:  # noqa: B027 - most have something to close, not all
        """Close connections; it may be half open or not open at all. Processes are ended afterwards."""


def key(number: int) -> str:
    """The key that the call numbered `number` goes to."""
    return f"counter-{number % KEYS}"


def known() -> dict[str, Callable[[], Peer]]:
    """All peers, by name. What a peer needs is looked for when it is started."""
    # Here and not above: peers import this module.
    from bench.peers.echo import Echo
    from bench.peers.etcd import Etcd
    from bench.peers.prototype import Prototype
    from bench.peers.ray_actors import RayAsync, RaySync
    from bench.peers.redis_server import RedisAof, RedisPipelined, RedisWait
    from bench.peers.restate_server import RestateOne, RestateThree
    from bench.peers.xoscar_actors import Xoscar

    peers: tuple[Callable[[], Peer], ...] = (
        Echo,
        Prototype,
        RayAsync,
        RaySync,
        Xoscar,
        RedisAof,
        RedisPipelined,
        RedisWait,
        Etcd,
        RestateOne,
        RestateThree,
    )
    return {peer().name: peer for peer in peers}
