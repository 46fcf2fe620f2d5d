"""Simulated processes: hosts, and whoever calls them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from actorgrid.errors import ActorGridError
from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.host.offload import run_offloaded
from actorgrid.host.watchdog import Watchdog
from actorgrid.testing.simulation.disk import SimDisk
from actorgrid.testing.simulation.loop import make_loop

if TYPE_CHECKING:
    from actorgrid.testing.simulation.cluster import SimCluster

logger = logging.getLogger(__name__)

#: A supervisor sees within so long that a process has ended.
NOTICED_S: Final = 0.03
ANSWERED_S: Final = 0.05
OFFLOADED_S: Final = 0.005


class Process:
    """A loop and what runs in it, on one machine.

    :ivar is_over: it has ended, by itself or not
    """

    def __init__(self, cluster: SimCluster, name: str, machine: str, *, clock_per_mille: int = 1000, clock_offset_ns: int = 0) -> None:
        self.name = name
        self.machine = machine
        self.loop = make_loop(cluster.world, cluster.network, name, machine, clock_per_mille, clock_offset_ns)
        self.is_over = False
        self.ended_ns = 0
        self.latest: asyncio.Task[Any] | None = None
        self._cluster = cluster

    def start(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run `main` in it."""

        def begin() -> None:
            self.latest = self.loop.create_task(main(), name=f"main of {self.name}")

        self.latest = None
        self.loop.call_soon(begin)

    @property
    def main_is_over(self) -> bool:
        """Whether what was started last has ended."""
        return self.latest is not None and self.latest.done()

    def end(self) -> None:
        """It runs nothing any more, and the kernel closes what it had open."""
        if not self.is_over:
            self.is_over = True
            self.ended_ns = self._cluster.world.now_ns
            self.loop.kill()
            self._cluster.network.process_died(self.loop)

    def pause(self) -> None:
        """SIGSTOP."""
        self.loop.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.loop.resume()
        self._cluster.network.resumed(self.loop)

    def sweep(self) -> None:
        """Let go of coroutines that will never go on, when the simulation is over; what they do then reaches nobody."""
        self.loop.kill()
        for task in self.loop.tasks_left():
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            if coroutine is not None:
                with contextlib.suppress(BaseException):
                    coroutine.close()


class StillWatchdog(Watchdog):
    """Looks at nothing: no turn takes time here."""

    def __init__(self) -> None:
        super().__init__(1.0, 1.0)

    def start(self) -> None:
        """There is no thread."""


class SimSupervisor:
    """Sees processes of the cluster end a little later, if the cluster is supervised at all and the machine is still there to say so."""

    def __init__(self, cluster: SimCluster, process: str) -> None:
        self.process_id = process
        self._cluster = cluster

    async def is_dead(self, host: str, process_id: str) -> bool:
        """See `supervision.Supervisor`. What is not known is asked again and again, so the answer takes its time."""
        known = self._cluster.is_known_dead(process_id)
        if not known:
            await asyncio.sleep(ANSWERED_S)
        return known

    def close(self) -> None:
        """There is nothing to close."""


class SimOffloader:
    """Runs offloaded functions at once, and answers a little later."""

    def __init__(self, app_path: tuple[str, ...]) -> None:
        self._app_path = app_path

    async def run(self, function: str, args: bytes, *, cpus: float, memory_bytes: int | None) -> bytes:
        """See `offload.Offloader`."""
        await asyncio.sleep(OFFLOADED_S)
        return run_offloaded(function, args, self._app_path)

    async def close(self) -> None:
        """There is nothing to end."""


class SimHost:
    """One host of the grid, over all its lives.

    :ivar disk: outlives the process
    :ivar process: the running one, or None
    :ivar host: the real host in it, once it serves, or None
    :ivar is_wanted: when the process ends it is started again
    """

    def __init__(self, cluster: SimCluster, config: HostConfig, disk: SimDisk, clock_per_mille: int, clock_offset_ns: int) -> None:
        self.name = config.name
        self.config = config
        self.disk = disk
        self.clock_per_mille = clock_per_mille
        self.clock_offset_ns = clock_offset_ns
        self.date_offset_ns = 0
        self.process: Process | None = None
        self.host: Host | None = None
        self.is_wanted = False
        self.lives = 0
        self._cluster = cluster

    @property
    def is_up(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        """Start a process, unless one runs."""
        if self.process is not None:
            return
        self.is_wanted = True
        self.lives += 1
        cluster = self._cluster
        process = Process(
            cluster, f"{self.name}/{self.lives}", self.name, clock_per_mille=self.clock_per_mille, clock_offset_ns=self.clock_offset_ns
        )
        process.loop.date_offset_ns = self.date_offset_ns
        self.process = process
        cluster.register(process)
        self.disk.schedule = cluster.world.after
        process.start(lambda: self._main(process))

    async def _main(self, process: Process) -> None:
        cluster = self._cluster
        host = Host(
            self.config,
            offloader=SimOffloader(self.config.app_path),
            supervisor=SimSupervisor(cluster, process.name),
            home=self.disk.home(),
            watchdog=StillWatchdog(),
        )
        try:
            await host.start()
        except ActorGridError as error:
            self._fails(process, f"does not start: {error}")
            return
        self.host = host
        cluster.world.note(f"{process.name} serves")
        self._fails(process, f"leaves duty: {await host.run_until_failed()}")

    def _fails(self, process: Process, why: str) -> None:
        self._cluster.world.note(f"{process.name} {why}")
        process.loop.call_soon(self._ended, process)

    def _ended(self, process: Process) -> None:
        """The process ends by itself."""
        if process is self.process:
            self.kill()
            if self.is_wanted:
                self._cluster.world.after(self._cluster.restart_delay_s(), self._start_again, self.lives)

    def _start_again(self, life: int) -> None:
        if self.is_wanted and life == self.lives:
            self.start()

    def kill(self) -> None:
        """SIGKILL: what was written stays, synced or not."""
        process, self.process, self.host = self.process, None, None
        if process is not None:
            self.disk.kill()
            process.end()

    async def leave_and_stop(self) -> None:
        """SIGTERM: let the others do without it, then end in order. Runs in the host's own loop."""
        host, process = self.host, self.process
        if host is None or process is None:
            return
        await host.leave()
        await host.stop()
        if process is self.process:
            process.loop.call_soon(self._ended, process)
