"""The grid that is measured: a local one on Ray, started when a scenario needs it, and kept while the next ones want the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from actorgrid import grid
from actorgrid.cluster.local import LocalGrid

ROOT = Path(__file__).parent.parent
Say = Callable[[str], None]


class Shape(NamedTuple):
    """What a grid is made of."""

    hosts: int
    partitions: int
    replicas: int


class Measured(Protocol):
    """A running grid, as far as loads need to know it."""

    shape: Shape

    @property
    def client(self) -> grid.Client:
        """A client of it in this process."""

    @property
    def address(self) -> str:
        """Of all its hosts."""

    def pids(self) -> list[int]:
        """Of all processes that take part in calls, but this one."""


class Target:
    """A running grid, and a client of it in this process."""

    def __init__(self, shape: Shape, directory: Path) -> None:
        self.shape = shape
        self.directory = directory
        self._local = LocalGrid(
            nodes=shape.hosts,
            app=["bench.actors"],
            app_path=[ROOT],
            data=directory / "grid",
            port=0,
            partitions=shape.partitions,
            replicas=shape.replicas,
        )
        self._client: grid.Client | None = None

    @property
    def client(self) -> grid.Client:
        assert self._client is not None, "the grid is not started"
        return self._client

    @property
    def address(self) -> str:
        return self._local.address

    @property
    def hosts(self) -> list[str]:
        """Names."""
        return [each.name for each in self._local.hosts]

    def node_of(self, host: str) -> str:
        return next(each.node for each in self._local.hosts if each.name == host)

    def pids(self) -> list[int]:
        """Of the hosts that have a process right now. Ray's own processes take no part in calls, and are not among them."""
        return list(self._local.host_pids().values())

    def pids_by_host(self) -> dict[str, int]:
        return self._local.host_pids()

    async def start(self) -> None:
        """Start it and connect.

        :raises StartFailedError: it did not come up
        """
        await asyncio.to_thread(self._local.start)
        self._client = await grid.connect(self.address).open()

    async def stop(self) -> None:
        """Close the client and end every process. The data stay."""
        if self._client is not None:
            with contextlib.suppress(Exception):  # it may be broken by what was done to the grid; the processes must end all the same
                await self._client.close()
            self._client = None
        await asyncio.to_thread(self._local.stop)

    async def restart(self) -> None:
        """All hosts end in order and start again on their data: nothing is in memory any more."""
        await self.stop()
        await self.start()

    async def kill(self, host: str) -> int:
        """SIGKILL; Ray starts it again. Returns its pid."""
        return await asyncio.to_thread(self._local.kill_host, host)

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """An operator's question, to the first host, which takes it to the placement manager."""
        entry = self._local.hosts[0]
        return await self.client.admin(entry.address, entry.port, verb, arguments)

    async def whole(self, timeout_s: float = 60.0) -> None:
        """Return when every partition has all its replicas.

        :raises StartFailedError: not in time
        """
        await asyncio.to_thread(lambda: self._local.wait_until_whole(timeout_s=timeout_s))

    def disk_bytes(self) -> int:
        """What its directory takes on disk."""
        total = 0
        for directory, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(OSError):  # files come and go
                    total += (Path(directory) / name).stat().st_blocks * 512
        return total


class Grids:
    """Gives out grids, one at a time.

    :param parent: where their data go: the disk that is measured
    """

    def __init__(self, say: Say, parent: Path | None = None) -> None:
        self._say = say
        self._parent = parent
        self._target: Target | None = None

    async def of(self, shape: Shape, *, fresh: bool = False) -> Target:
        """A grid of this shape; the one that runs, if it fits and may have been used."""
        if self._target is not None and (fresh or self._target.shape != shape):
            await self.close()
        if self._target is None:
            self._say(f"starting a grid: hosts {shape.hosts}, partitions {shape.partitions:,}, replicas {shape.replicas}")
            directory = Path(tempfile.mkdtemp(prefix="actorgrid-bench-", dir=self._parent))
            self._target = Target(shape, directory)
            try:
                await self._target.start()
            except BaseException:
                await self.close()
                raise
        return self._target

    async def close(self) -> None:
        """Stop what runs, and remove its data."""
        target, self._target = self._target, None
        if target is not None:
            try:
                await target.stop()
            finally:
                await asyncio.to_thread(shutil.rmtree, target.directory, ignore_errors=True)
