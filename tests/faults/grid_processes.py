"""A grid of host processes that can be killed, stopped, cut from each other, and robbed of their disks.

Each host has a loopback address of its own, a data directory, a configuration file, and a file for what it writes to standard error
over all its lives. Hosts that die, by a fault or by themselves, are started again like Ray does it: see `Supervision`.

Nothing here decides at random; the plans do. All waiting is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.errors import ActorGridError, RequestError
from actorgrid.settings import WireSettings
from tests.faults import child
from tests.faults.network import Endpoint

ROOT = Path(__file__).parent.parent.parent
APPS = Path(__file__).parent / "apps"
POLL_S = 0.01
ASK_TIMEOUT_S = 1.0
RAY_RESTARTS_AFTER_S = 1.0
#: A host that ends by itself again and again is a finding, not something to wait for.
OWN_EXITS_MAX = 12


class NotHealthyError(Exception):
    """The grid did not become whole in time. The text says what is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Supervision:
    """What happens when a host process has died.

    :ivar restart_after_s: when it is started again
    :ivar tells: whether the other hosts are told at once ("supervised"), or nobody is ("silent")
    """

    restart_after_s: float = RAY_RESTARTS_AFTER_S
    tells: bool = False


@dataclasses.dataclass(slots=True)
class Exit:
    """One end of one host process."""

    host: str
    pid: int
    code: int
    at_ns: int
    wanted: bool


class HostProcess:
    """One host over all its lives."""

    def __init__(self, name: str, address: str, port: int, directory: Path) -> None:
        self.name = name
        self.endpoint = Endpoint(address, port)
        self.data_dir = directory / name
        self.log_path = directory / f"{name}.stderr"
        self.config_path = directory / f"{name}.json"
        self.kept_dir = directory / f"{name}.kept"
        self.process: subprocess.Popen[bytes] | None = None
        self.process_id: Any = None
        self.restart_at: float | None = None
        self.is_wanted = False
        self.is_stopped = False
        self.kill_expected = False
        self.supervision = Supervision()
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start the process; it serves some time later."""
        assert not self.is_alive, f"{self.name} runs already"
        self.process_id = None
        self.restart_at = None
        self.is_wanted = True
        self.kill_expected = False
        self.starts += 1
        with self.log_path.open("ab") as log:
            log.write(f"-- start {self.starts} of {self.name} at {time.monotonic_ns()} ns\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                child.command("actorgrid.host", str(self.config_path)),
                cwd=ROOT,
                env={**os.environ, child.PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        if self.is_alive:
            assert self.process is not None
            self.process.send_signal(number)

    def end(self) -> None:
        """Kill it and let it be dead."""
        self.is_wanted = False
        self.kill_expected = True
        self.restart_at = None
        if self.process is not None:
            if self.is_alive:
                self.process.kill()
            self.process.wait(timeout=20)


@dataclasses.dataclass(frozen=True, slots=True)
class ReplicaView:
    """What one host says about one of its replicas."""

    host: str
    partition: int
    role: str
    serving: bool
    epoch: int
    committed_lsn: int
    applied_lsn: int


class Observation:
    """What every host said of itself at about one moment; nothing from hosts that are down or do not answer."""

    def __init__(self, statuses: dict[str, dict[str, Any]]) -> None:
        self.statuses = statuses
        self.replicas = [
            ReplicaView(
                host,
                row["id"],
                row["role"],
                bool(row.get("serving")),
                row["epoch"],
                row.get("committed_lsn", 0),
                row.get("applied_lsn", 0),
            )
            for host, status in statuses.items()
            for row in status["partitions"]
        ]

    @property
    def primaries(self) -> dict[int, ReplicaView]:
        """For each partition the serving primary with the highest epoch."""
        found: dict[int, ReplicaView] = {}
        for replica in self.replicas:
            if (
                replica.role == "primary"
                and replica.serving
                and (replica.partition not in found or found[replica.partition].epoch < replica.epoch)
            ):
                found[replica.partition] = replica
        return found

    def primaries_of(self, host: str) -> list[int]:
        """Partitions of callers that `host` serves; the system partition, 0, has none."""
        return sorted(partition for partition, replica in self.primaries.items() if replica.host == host and partition > 0)

    def hosts_by_primaries(self, names: Iterable[str]) -> list[str]:
        """Hosts with the most primaries first."""
        return sorted(names, key=lambda name: (-len(self.primaries_of(name)), name))

    def counter(self, host: str, word: str) -> int:
        """Sum of the counters of a host whose names contain `word`."""
        counters = self.statuses.get(host, {}).get("counters", {})
        return sum(value for name, value in counters.items() if word in name and isinstance(value, int))


class GridProcesses:
    """The hosts of one grid, with a supervisor for them. ``async with GridProcesses(...) as hosts`` starts all and bootstraps the grid.

    :param directory: for everything: data, configurations, logs
    :param hosts: how many; they listen on 127.0.0.2 and up
    :param watches_processes: whether the hosts see each other's processes die by themselves, as hosts on one machine do
    """

    def __init__(
        self,
        directory: Path,
        *,
        hosts: int = 3,
        partitions: int = 16,
        replica_set_size: int = 3,
        app: str = "fault_ledger",
        settings: dict[str, Any] | None = None,
        watches_processes: bool = True,
    ) -> None:
        self.directory = directory.resolve()
        self.partition_count = partitions
        self.replica_set_size = replica_set_size
        self.cluster_id = f"faults-{os.getpid()}"
        self.exits: list[Exit] = []
        self.told: list[dict[str, Any]] = []
        self._app = app
        self._settings = settings or {}
        self._watches_processes = watches_processes
        self._supervisor: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.hosts = {
            f"host-{i + 1}": HostProcess(f"host-{i + 1}", f"127.0.0.{i + 2}", free_port(f"127.0.0.{i + 2}"), self.directory)
            for i in range(hosts)
        }

    # -- life

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start every host, bootstrap the grid, and wait until it is whole."""
        for host in self.hosts.values():
            host.data_dir.mkdir(parents=True, exist_ok=True)
            host.config_path.write_text(json.dumps(self._config(host), indent=1))
            host.spawn()
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise())
        await self.wait_answering()
        with contextlib.suppress(RequestError):  # hosts that keep one replica know no such verb, and need none
            await self.ask(next(iter(self.hosts)), "init", {}, timeout_s=30)
        await self.wait_healthy()

    async def add(self, name: str) -> None:
        """One more host, which knows the others; returns when it answers."""
        address = f"127.0.0.{len(self.hosts) + 2}"
        host = self.hosts[name] = HostProcess(name, address, free_port(address), self.directory)
        host.data_dir.mkdir(parents=True, exist_ok=True)
        host.config_path.write_text(json.dumps(self._config(host), indent=1))
        host.spawn()
        await self.wait_answering()

    async def stop(self) -> None:
        """Kill every host."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        for task in self._telling:
            task.cancel()
        for host in self.hosts.values():
            host.end()

    def _config(self, host: HostProcess) -> dict[str, Any]:
        return {
            "cluster_id": self.cluster_id,
            "name": host.name,
            "node": host.name.replace("host", "node"),
            "data_dir": str(host.data_dir),
            "address": host.endpoint.address,
            "port": host.endpoint.port,
            "partition_count": self.partition_count,
            "replica_set_size": self.replica_set_size,
            "hosts": [[each.name, each.endpoint.address, each.endpoint.port] for each in self.hosts.values()],
            "app": [self._app],
            "app_path": [str(APPS)],
            "settings": self._settings,
            "watches_processes": self._watches_processes,
        }

    @property
    def seeds(self) -> str:
        """The address of the grid, for clients."""
        return ",".join(f"{host.endpoint.address}:{host.endpoint.port}" for host in self.hosts.values())

    @property
    def own_exits(self) -> list[Exit]:
        """Ends that no fault of ours caused."""
        return [each for each in self.exits if not each.wanted]

    # -- supervision

    async def _supervise(self) -> None:
        """See deaths, tell of them if asked, and start again."""
        while True:
            now = time.monotonic()
            for host in self.hosts.values():
                if not host.is_wanted or host.is_alive:
                    continue
                if host.restart_at is None:
                    self._died(host, now)
                elif now >= host.restart_at:
                    host.spawn()
            await asyncio.sleep(POLL_S)

    def _died(self, host: HostProcess, now: float) -> None:
        assert host.process is not None
        code = host.process.returncode
        self.exits.append(Exit(host.name, host.pid, code, time.monotonic_ns(), wanted=host.kill_expected))
        host.is_stopped = False
        if len(self.own_exits) > OWN_EXITS_MAX:
            host.is_wanted = False
            return
        host.restart_at = now + host.supervision.restart_after_s
        if host.supervision.tells:
            for other in self.hosts.values():
                if other is not host and other.is_alive and not other.is_stopped:
                    task = asyncio.get_running_loop().create_task(self._tell(other.name, host.name, host.process_id))
                    self._telling.add(task)
                    task.add_done_callback(self._telling.discard)

    async def _tell(self, to: str, dead: str, process_id: Any) -> None:
        answer = "process id never learnt, nobody was told"
        if process_id is not None:
            try:
                answer = repr(await self.ask(to, "process_died", {"host": dead, "process_id": process_id}))
            except ActorGridError as error:
                answer = f"{type(error).__name__}: {error}"
        self.told.append({"at_ns": time.monotonic_ns(), "to": to, "dead": dead, "process_id": process_id, "answer": answer[:200]})

    # -- faults

    def kill(self, name: str, supervision: Supervision) -> int:
        """SIGKILL. The supervisor starts it again as told.

        :return: the pid that died
        """
        host = self.hosts[name]
        assert host.is_alive, f"{name} is dead already"
        host.supervision = supervision
        host.kill_expected = True
        host.signal(signal.SIGKILL)
        return host.pid

    async def kill_for_good(self, name: str) -> int:
        """SIGKILL, and nobody starts it again until `revive`; returns when it is dead."""
        host = self.hosts[name]
        pid = host.pid
        host.is_wanted = False
        host.kill_expected = True
        host.signal(signal.SIGKILL)
        await _until(lambda: not host.is_alive, 10, f"{name} is dead")
        assert host.process is not None
        self.exits.append(Exit(name, pid, host.process.returncode, time.monotonic_ns(), wanted=True))
        return pid

    def revive(self, name: str) -> None:
        """Start a host that was killed for good."""
        self.hosts[name].spawn()

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self.hosts[name].is_stopped = True
        self.hosts[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.hosts[name].is_stopped = False
        self.hosts[name].signal(signal.SIGCONT)

    # -- looking

    async def ask(self, name: str, verb: str, arguments: dict[str, Any] | None = None, timeout_s: float = ASK_TIMEOUT_S) -> Any:
        """Ask one host, as an operator's tool does."""
        endpoint = self.hosts[name].endpoint
        return await admin.ask(
            endpoint.address,
            endpoint.port,
            verb,
            arguments or {},
            client_id=new_client_id(),
            cluster_id=self.cluster_id,
            wire=WireSettings(),
            timeout_s=timeout_s,
        )

    async def observe(self) -> Observation:
        """Ask every host that can answer for its status."""
        return Observation({name: status for name, status in (await self._ask_all("status", ASK_TIMEOUT_S)).items() if status is not None})

    async def _ask_all(self, verb: str, timeout_s: float) -> dict[str, Any]:
        async def one(name: str) -> Any:
            host = self.hosts[name]
            process = host.process
            try:
                answer = await self.ask(name, verb, timeout_s=timeout_s)
            except ActorGridError:
                return None
            if verb == "status" and host.process is process:
                host.process_id = answer["host"].get("process_id")
            return answer

        names = [name for name, host in self.hosts.items() if host.is_alive and not host.is_stopped]
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(one(name)) for name in names}
        return {name: task.result() for name, task in tasks.items()}

    async def wait_answering(self, timeout_s: float = 60.0) -> None:
        """Until every host answers an operator."""
        deadline = time.monotonic() + timeout_s
        while len((await self.observe()).statuses) < len(self.hosts):
            if time.monotonic() > deadline or len(self.own_exits) > OWN_EXITS_MAX:
                raise NotHealthyError(f"not every host answers after {timeout_s:g} s: {self._describe_processes()}")
            await asyncio.sleep(0.1)

    async def wait_healthy(self, timeout_s: float = 60.0) -> Observation:
        """Until every partition has one primary and all its replicas have what was committed when this wait saw that primary first.

        :raises NotHealthyError: not in time
        """
        deadline = time.monotonic() + timeout_s
        target: dict[int, tuple[int, int]] = {}
        while True:
            seen = await self.observe()
            missing = self._missing(seen, target)
            if not missing:
                return seen
            if time.monotonic() > deadline or len(self.own_exits) > OWN_EXITS_MAX:
                what = f"{len(missing)} things, the first: {'; '.join(missing[:6])}"
                raise NotHealthyError(f"not whole after {timeout_s:g} s: {what}; {self._describe_processes()}")
            await asyncio.sleep(0.1)

    def _missing(self, seen: Observation, target: dict[int, tuple[int, int]]) -> list[str]:
        missing = [f"{name} does not answer" for name in self.hosts if name not in seen.statuses]
        primaries = seen.primaries
        has_system_partition = any(replica.partition == 0 for replica in seen.replicas)
        for partition in range(0 if has_system_partition else 1, self.partition_count + 1):
            primary = primaries.get(partition)
            if primary is None:
                missing.append(f"partition {partition} has no primary")
                continue
            if target.get(partition, (0, 0))[0] != primary.epoch:
                target[partition] = (primary.epoch, primary.committed_lsn)
            epoch, lsn = target[partition]
            replicas = [each for each in seen.replicas if each.partition == partition and each.role in ("primary", "active_secondary")]
            if len(replicas) != min(self.replica_set_size, len(self.hosts)):
                missing.append(f"partition {partition} has {len(replicas)} voting replicas")
            for each in replicas:
                if each.epoch != epoch or (each.role == "primary") != (each.host == primary.host):
                    missing.append(f"partition {partition} on {each.host} is {each.role} of epoch {each.epoch}, the primary's is {epoch}")
                elif each.applied_lsn < lsn:
                    missing.append(f"partition {partition} on {each.host} has applied {each.applied_lsn} of {lsn}")
        return missing

    def _describe_processes(self) -> str:
        return ", ".join(
            f"{name} {'stopped' if host.is_stopped else 'alive' if host.is_alive else 'dead'} (start {host.starts})"
            for name, host in self.hosts.items()
        ) + (f"; ended by themselves: {[(each.host, each.code) for each in self.own_exits]}" if self.own_exits else "")

    async def digests(self, timeout_s: float = 60.0) -> dict[int, dict[str, tuple[int, str, str]]]:
        """For each partition and host: applied_lsn, digest of the applied state, role; a host that cannot say is left out."""
        found: dict[int, dict[str, tuple[int, str, str]]] = {}
        for name, answer in (await self._ask_all("digests", timeout_s)).items():
            for row in (answer or {}).get("partitions", ()):
                digest = row["digest"]
                text = digest.hex() if isinstance(digest, bytes) else str(digest)
                found.setdefault(row["id"], {})[name] = (row["applied_lsn"], text, row["role"])
        return found


def free_port(address: str) -> int:
    """A port nobody listens on at `address`, outside the range that the kernel gives to outgoing connections."""
    for attempt in range(200):
        port = 20_000 + (os.getpid() * 37 + attempt * 61 + int(address.rsplit(".", 1)[1]) * 7) % 12_000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise AssertionError(f"200 ports of {address} in a row are in use")


async def _until(condition: Any, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def paused(hosts: GridProcesses, name: str) -> AsyncIterator[None]:
    """The host is stopped inside, and goes on afterwards in any case."""
    hosts.pause(name)
    try:
        yield
    finally:
        hosts.resume(name)
