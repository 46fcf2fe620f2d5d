"""Ray actor calls: a handful of actor processes, as is the idiom, and callers that await object references.

Ray wants its driver for itself, so a child process is the driver: ``python -m bench.peers.ray_actors async|sync``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from bench.load import Call, Load
from bench.peers.child import Child, serve
from bench.peers.interface import Peer
from bench.peers.processes import MissingPeerError

#: An actor is a process: more of them than a few times the cores only take turns.
ACTORS = 4
OBJECT_STORE_BYTES = 128 << 20
#: So many calls an async actor may have under way at once; Ray's default is 1,000.
CONCURRENCY_MAX = 2000


class SyncCounter:
    """An ordinary actor: one call at a time, in its main thread."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def read(self) -> int:
        return self.value


class AsyncCounter:
    """An actor with an event loop."""

    def __init__(self) -> None:
        self.value = 0

    async def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    async def read(self) -> int:
        return self.value


class RayAsync(Peer):
    """Actors with async methods."""

    name = "ray-async"
    what = f"call of one of {ACTORS} Ray actors with async methods, one process each, awaited"
    durability = "none, state is in memory"
    actors = ACTORS
    kind = "async"

    async def _open(self, directory: Path) -> None:
        self._child = Child(self.processes, "ray-driver")
        await self._child.start([sys.executable, "-m", "bench.peers.ray_actors", self.kind])

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        return await self._child.load(operation, in_flight=in_flight, duration_s=duration_s, book=self.book)

    async def _close(self) -> None:
        if hasattr(self, "_child"):
            await self._child.close()


class RaySync(RayAsync):
    """Actors with ordinary methods."""

    name = "ray-sync"
    what = f"call of one of {ACTORS} Ray actors with ordinary methods, one process each, awaited"
    kind = "sync"


@contextlib.asynccontextmanager
async def opened(kind: str) -> AsyncIterator[dict[str, Call]]:
    """A Ray of our own with its actors, in this process."""
    if importlib.util.find_spec("ray") is None:
        raise MissingPeerError("the package ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Sockets lie below it, and a socket's path has at most 107 bytes: not in the peer's directory.
    with tempfile.TemporaryDirectory(prefix="bench-ray-", ignore_cleanup_errors=True) as temporary:
        actors = await asyncio.to_thread(_start, kind, temporary)
        adds: list[Callable[[int], Any]] = [actor.add.remote for actor in actors]
        reads: list[Callable[[], Any]] = [actor.read.remote for actor in actors]
        try:
            yield {"write": lambda number: adds[number % ACTORS](1), "read": lambda number: reads[number % ACTORS]()}
        finally:
            await asyncio.to_thread(_stop)


def _start(kind: str, directory: str) -> list[Any]:
    import ray

    # "local": never the cluster that an environment variable may name.
    ray.init(
        address="local",
        num_cpus=ACTORS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=directory,
    )
    made: list[Any]
    if kind == "async":
        asynchronous = ray.remote(AsyncCounter).options(num_cpus=1, max_concurrency=CONCURRENCY_MAX)
        made = [asynchronous.remote() for _ in range(ACTORS)]
    else:
        ordinary = ray.remote(SyncCounter).options(num_cpus=1)
        made = [ordinary.remote() for _ in range(ACTORS)]
    ray.get([actor.read.remote() for actor in made], timeout=60)
    return made


def _stop() -> None:
    import ray

    ray.shutdown()


if __name__ == "__main__":
    # Not uvloop: Ray's own futures are made for the standard loop.
    asyncio.run(serve(lambda: opened(sys.argv[1])))
