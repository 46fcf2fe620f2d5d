"""A whole grid in one thread: hosts, their disks, clients, and the network between them, on virtual time.

The hosts are the real ones, with everything in them, from the wire to the placement manager; what is simulated is what they stand on: the
clock, the event loop, the network, the disk below RocksDB's place, and processes that end. With the same seed and the same calls
everything happens again, in the same order.

    with SimCluster(seed=7, app=["bank"]) as cluster:
        cluster.begin()
        balance = cluster.call(lambda client: client.get(Account, "alice").deposit(100))
        cluster.kill("host-1")
        cluster.run_for(2.0)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from actorgrid import ambient
from actorgrid.client.admin import ask
from actorgrid.client.client import Client
from actorgrid.errors import TransientError
from actorgrid.host.config import HostConfig
from actorgrid.ids import HostName
from actorgrid.settings import ClientSettings, HostSettings, WireSettings
from actorgrid.testing.simulation.disk import SimDisk
from actorgrid.testing.simulation.network import Network
from actorgrid.testing.simulation.processes import NOTICED_S, Process, SimHost
from actorgrid.testing.simulation.world import SECOND_NS, World
from actorgrid.wire.messages import HostInfo

T = TypeVar("T")

CLUSTER_ID: Final = "simulated"
PORT: Final = 7400
OPERATOR_TIMEOUT_S: Final = 10.0
BEGIN_TIMEOUT_S: Final = 60.0


class SimulationError(AssertionError):
    """The simulation went another way than it had to; with what happened last."""

    def __init__(self, what: str, world: World) -> None:
        super().__init__(f"{what}\nseed {world.seed}, at {world.now_ns / 1e9:.6f} s; before that:\n" + "\n".join(list(world.tail)[-60:]))


class _Listener(logging.Handler):
    """Log records of the grid: into the tail of the world, and what tells of a bug among the problems."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        running = self._world.running
        line = f"{running.name if running is not None else '-'}: {record.getMessage()}"
        self._world.tail.append(f"{self._world.now_ns / 1e9:11.6f} {line}")
        if record.exc_info is not None or "by a bug" in line:
            self._world.problems.append(f"{line}\n{logging.Formatter().formatException(record.exc_info) if record.exc_info else ''}")


class SimCluster:
    """A simulated grid. Use it as a context manager, from one thread; only one at a time in a process.

    :param seed: decides everything that is left to chance
    :param app: modules with actor classes, or the classes
    :param clocks: speeds of the hosts' monotonic clocks, per mille of true time
    :param supervised: somebody sees processes die, as Ray does; if not, only their silence tells
    :param logs: collect the grid's log records of this level and above, for readers of failed runs
    """

    def __init__(
        self,
        seed: int,
        app: Iterable[str | type | types.ModuleType],
        *,
        hosts: int = 3,
        partitions: int = 4,
        replicas: int = 3,
        settings: HostSettings | None = None,
        client_settings: ClientSettings | None = None,
        wire: WireSettings | None = None,
        clocks: tuple[int, ...] = (),
        supervised: bool = True,
        zones: tuple[str, ...] = (),
        logs: int = logging.WARNING,
    ) -> None:
        self.seed = seed
        self.world = World(seed)
        self.network = Network(self.world)
        self.hosts: dict[str, SimHost] = {}
        self.is_supervised = supervised
        self.client_settings = client_settings or ClientSettings()
        self._wire = wire or WireSettings()
        self._app = tuple(_name_of(each) for each in app)
        self.partition_count = partitions
        self.replica_set_size = replicas
        self._settings = settings or HostSettings()
        self._clocks = clocks
        self._zones = zones
        self._logs = logs
        self._rng: random.Random = self.world.stream("cluster")
        self._processes: dict[str, Process] = {}
        self._clients = 0
        self._undo = contextlib.ExitStack()
        self._operator: Process | None = None
        for number in range(1, hosts + 1):
            self._define(number, hosts)

    # -- life

    def __enter__(self) -> Self:
        if isinstance(getattr(ambient.monotonic_ns, "__self__", None), World):
            raise RuntimeError(
                "another TestGrid or SimCluster is open: each replaces time for the whole process, so there can be one at a time; "
                "leave the `with` block of the other one first (a fixture of a wider scope may hold it)"
            )
        self._undo.enter_context(ambient.replaced_by(self.world))
        self._undo.callback(gc.enable) if gc.isenabled() else None
        gc.disable()  # what a collection ends would end at another moment in each run
        logger = logging.getLogger("actorgrid")
        listener, level, propagates = _Listener(self.world), logger.level, logger.propagate
        logger.addHandler(listener)
        logger.setLevel(self._logs)
        logger.propagate = False

        def restore() -> None:
            logger.removeHandler(listener)
            logger.setLevel(level)
            logger.propagate = propagates

        self._undo.callback(restore)
        self._operator = self._process("operator", "operator")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.sweep()
        self._undo.close()

    def _define(self, number: int, count: int) -> SimHost:
        name = f"host-{number}"
        infos = {f"host-{i}": HostInfo(f"host-{i}", f"127.0.1.{i}", PORT) for i in range(1, count + 1)}
        infos |= {known.name: HostInfo(known.name, known.config.address, PORT) for known in self.hosts.values()}
        infos[name] = HostInfo(name, f"127.0.1.{number}", PORT)
        config = HostConfig(
            cluster_id=CLUSTER_ID,
            name=HostName(name),
            node=f"node-{number}",
            zone=self._zones[(number - 1) % len(self._zones)] if self._zones else "",
            data_dir=Path("/simulated") / name,
            address=f"127.0.1.{number}",
            port=PORT,
            partition_count=self.partition_count,
            replica_set_size=self.replica_set_size,
            hosts=tuple(infos.values()),
            app=self._app,
            settings=self._settings,
            wire=self._wire,
        )
        clock = self._clocks[(number - 1) % len(self._clocks)] if self._clocks else 1000
        disk = SimDisk(self.world.stream(f"disk {name}"))
        host = self.hosts[name] = SimHost(self, config, disk, clock, self._rng.randrange(1, 1_000_000) * 1_000_000)
        self.network.add_machine(name, config.address)
        return host

    def register(self, process: Process) -> None:
        """Keep `process`: what is dead is not to be collected while the simulation runs."""
        self._processes[process.name] = process

    def _process(self, name: str, machine: str) -> Process:
        process = Process(self, name, machine)
        if machine not in self.network.address_of:
            self.network.add_machine(machine, f"127.0.2.{len(self.network.address_of) % 250}")
        self.register(process)
        return process

    def restart_delay_s(self) -> float:
        """After how long whoever supervises a process starts it again."""
        return self._rng.uniform(0.1, 1.0)

    def is_known_dead(self, process: str) -> bool:
        """Whether somebody has seen that the process has ended."""
        known = self._processes.get(process)
        if known is None or not known.is_over or not self.is_supervised or known.machine in self.network.gone:
            return False
        return self.world.now_ns - known.ended_ns > NOTICED_S * SECOND_NS

    # -- time

    @property
    def now_s(self) -> float:
        """Seconds of true time since the beginning."""
        return self.world.now_ns / 1e9

    def run_for(self, seconds: float) -> None:
        """Let so much time pass.

        :raises SimulationError: something went wrong that nobody would have heard of
        """
        self.world.run_until(self.world.now_ns + int(seconds * SECOND_NS))
        self.check()

    def run_until(self, is_over: Callable[[], bool], timeout_s: float = 30.0, what: str = "", *, every_s: float = 0.0) -> None:
        """Let time pass until `is_over()`.

        :param every_s: ask no more often; 0: after everything that happens
        :raises SimulationError: it is not within `timeout_s`, or something went wrong unheard
        """
        end_ns = self.world.now_ns + int(timeout_s * SECOND_NS)
        over = is_over()
        while not over and self.world.now_ns < end_ns:
            if every_s:
                self.world.run_until(min(end_ns, self.world.now_ns + int(every_s * SECOND_NS)))
                over = is_over()
            else:
                over = self.world.run_until(end_ns, is_over)
            self.check()
        if not over:
            raise SimulationError(f"not within {timeout_s} s: {what or is_over}", self.world)

    def check(self) -> None:
        """Nothing went wrong unheard.

        :raises SimulationError: something did
        """
        if self.world.problems:
            raise SimulationError("\n".join(self.world.problems), self.world)

    # -- the grid

    def begin(self) -> None:
        """Start all hosts, and the grid; returns when every partition is served."""
        for host in self.hosts.values():
            host.start()
        self.run_until(lambda: all(host.host is not None for host in self.hosts.values()), BEGIN_TIMEOUT_S, "hosts start")
        self.operate("init")
        self.run_until(self.all_serve, BEGIN_TIMEOUT_S, "every partition is served")

    def stop(self, timeout_s: float = 60.0) -> None:
        """Stop every host in order, one after another.

        :raises SimulationError: one does not stop, or leaves a task behind
        """
        for host in self.hosts.values():
            process = host.process
            if process is None or host.host is None:
                continue
            host.is_wanted = False
            stopping = host.host.stop

            process.start(stopping)
            self.run_until(lambda: process.main_is_over, timeout_s, f"{host.name} stops")  # noqa: B023 - it is asked in this round only
            left = [task for task in process.loop.tasks_left() if not task.get_name().startswith("main of")]
            if left:
                raise SimulationError(f"{host.name} has stopped and left {left}", self.world)
            host.kill()

    def add_host(self) -> SimHost:
        """One more host, which knows the others and asks to join."""
        host = self._define(len(self.hosts) + 1, 0)
        host.start()
        return host

    def all_serve(self) -> bool:
        """Whether every partition has a primary that serves."""
        return len(self.primaries()) == self.partition_count + 1

    def primaries(self) -> dict[int, str]:
        """The hosts of primaries that serve, as these see it, by partition; of two the one of the later epoch."""
        found: dict[int, tuple[int, str]] = {}
        for name, host in self.hosts.items():
            if host.host is not None and host.process is not None and not host.process.loop.is_paused:
                for partition in host.host.partitions.values():
                    if partition.serving:
                        found[partition.id] = max(found.get(partition.id, (0, "")), (partition.replica.epoch, name))
        return {partition: name for partition, (_, name) in found.items()}

    def operate(self, verb: str, *, ask_host: str = "", timeout_s: float = OPERATOR_TIMEOUT_S, **arguments: Any) -> Any:
        """Ask a host as an operator's tool does, over the network, and wait for the answer.

        :raises ActorGridError: what it answered, or that it did not
        """
        host = self.hosts[ask_host] if ask_host else next((each for each in self.hosts.values() if each.host is not None), None)
        assert host is not None, "no host is up"
        config = host.config

        async def asking() -> Any:
            return await ask(
                config.address,
                config.port,
                verb,
                arguments,
                client_id=ambient.new_client_id(),
                cluster_id=CLUSTER_ID,
                wire=self._wire,
                timeout_s=timeout_s,
            )

        assert self._operator is not None, "use the cluster as a context manager"
        return self._wait(self._operator, asking, 2 * timeout_s)

    def spawn_operator(self, asking: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let an operator ask something, and do not wait."""
        assert self._operator is not None, "use the cluster as a context manager"
        self._operator.start(asking)

    def configuration_of(self, partition: int) -> tuple[str, list[str], dict[str, int]] | None:
        """The host of the primary, the hosts of all voters, and by how many entries each of them is behind; None: nobody serves it.

        Of a voter whose host does not run, or is behind by more than is known, nothing is said.
        """
        name = self.primaries().get(partition)
        host = self.hosts[name].host if name is not None else None
        if name is None or host is None:
            return None
        core = host.partitions[partition].replica
        lag = {name: 0}
        for member in core.configuration.voters:
            other, progress = self.hosts.get(member.host), core.progress.get(member)
            if member.host != name and progress is not None and other is not None and other.host is not None:
                lag[member.host] = core.last_lsn - progress.match_lsn
        return name, [member.host for member in core.configuration.voters], lag

    # -- callers

    def client(self, settings: ClientSettings | None = None) -> SimClient:
        """A client in a process of its own, on a machine of its own."""
        self._clients += 1
        name = f"client-{self._clients}"
        process = self._process(name, name)
        seeds = ",".join(f"{host.config.address}:{host.config.port}" for host in self.hosts.values())
        return SimClient(self, process, lambda: Client(seeds, settings=settings or self.client_settings))

    def call(self, calling: Callable[[Client], Awaitable[T]], timeout_s: float = 60.0) -> T:
        """Connect a client, call something, and wait for the answer."""
        return self.client().call(calling, timeout_s)

    def _wait(self, process: Process, doing: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        done: list[tuple[T | None, BaseException | None]] = []

        async def main() -> None:
            try:
                done.append((await doing(), None))
            except BaseException as error:  # noqa: BLE001 - it belongs to who waits
                done.append((None, error))

        process.start(main)
        self.run_until(lambda: bool(done), timeout_s, f"an answer in {process.name}")
        result, error = done[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


class SimClient:
    """A client and its process."""

    def __init__(self, cluster: SimCluster, process: Process, make: Callable[[], Client]) -> None:
        self.process = process
        self.client = make()
        self._make = make
        self._cluster = cluster
        self._opening: asyncio.Task[Client] | None = None

    async def opened(self) -> Client:
        """The client, connected; in its own loop. While no host of the grid can be reached it tries again and again."""
        if self._opening is None:
            self._opening = self.process.loop.create_task(self._open(), name=f"opening of {self.process.name}")
        return await asyncio.shield(self._opening)

    async def _open(self) -> Client:
        while True:
            try:
                return await self.client.open()
            except TransientError:
                self.client = self._make()

    def call(self, calling: Callable[[Client], Awaitable[T]], timeout_s: float = 60.0) -> T:
        """Call something, and wait for the answer."""

        async def doing() -> T:
            return await calling(await self.opened())

        return self._cluster._wait(self.process, doing, timeout_s)

    def spawn(self, working: Callable[[Client], Awaitable[Any]]) -> None:
        """Let something run beside everything else; what it raises is a problem of the simulation."""

        async def doing() -> None:
            await working(await self.opened())

        self.process.start(doing)

    def close(self) -> None:
        """Close the client in order."""
        if self._opening is not None and self._opening.done():
            self._cluster._wait(self.process, self.client.close, OPERATOR_TIMEOUT_S)


def _name_of(app: str | type | types.ModuleType) -> str:
    if isinstance(app, str):
        return app
    if isinstance(app, types.ModuleType):
        return app.__name__
    return f"{app.__module__}:{app.__qualname__}"
