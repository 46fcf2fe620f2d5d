"""Xoscar actor calls across processes: a pool of two worker processes, and the caller in a third.

The third is ``python -m bench.peers.xoscar_actors PORT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.load import Call, Load
from bench.peers.child import Child, serve
from bench.peers.interface import Peer
from bench.peers.processes import LOOPBACK, MissingPeerError, free_ports

PROCESSES = 2
ACTORS = 64


class Xoscar(Peer):
    """Actors in other processes of the machine."""

    name = "xoscar"
    what = f"call of one of {ACTORS} actors in {PROCESSES} other processes, awaited one by one"
    durability = "none, state is in memory"
    actors = ACTORS

    async def _open(self, directory: Path) -> None:
        if importlib.util.find_spec("xoscar") is None:
            raise MissingPeerError("the package xoscar is not installed")
        self._child = Child(self.processes, "xoscar")
        await self._child.start([sys.executable, "-m", "bench.peers.xoscar_actors", str(free_ports(1)[0])])

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        return await self._child.load(operation, in_flight=in_flight, duration_s=duration_s, book=self.book)

    async def _close(self) -> None:
        if hasattr(self, "_child"):
            await self._child.close()


@contextlib.asynccontextmanager
async def opened(port: int) -> AsyncIterator[dict[str, Call]]:
    """A pool with its actors; this process has the main pool, which has none of them."""
    import xoscar  # type: ignore[import-untyped]

    from bench.peers.xoscar_counter import Counter

    pool = await xoscar.create_actor_pool(f"{LOOPBACK}:{port}", n_process=PROCESSES)
    try:
        references: list[Any] = []
        for number in range(ACTORS):
            place = xoscar.allocate_strategy.ProcessIndex(1 + number % PROCESSES)
            reference = await xoscar.create_actor(Counter, address=pool.external_address, uid=f"counter-{number}", allocate_strategy=place)
            references.append(reference)
        yield {
            "write": lambda number: references[number % ACTORS].add(1),
            "read": lambda number: references[number % ACTORS].read(),
        }
    finally:
        await pool.stop()


if __name__ == "__main__":
    asyncio.run(serve(lambda: opened(int(sys.argv[1]))))
