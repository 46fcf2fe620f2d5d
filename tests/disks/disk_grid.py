"""A grid of host processes on disks that fail, under load, and the judgement afterwards. On top of `tests.faults.grid_processes`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from actorgrid.storage.store import StoreIdentity
from tests.faults import checkers, child
from tests.faults.campaign import read_back
from tests.faults.checkers import Verdict
from tests.faults.grid_processes import ROOT, Exit, GridProcesses, HostProcess, Observation
from tests.faults.history import Record
from tests.faults.load import LoadProcesses

PARTITIONS = 16
APPS = Path(__file__).parent / "apps"
#: Enough callers that some sync is always under way, on two cores that the hosts need too.
CALLERS = {"writer": 10, "mixed": 6, "follower": 4}
LOSS_OF_LIFE_S = 20.0


class DiskHost(HostProcess):
    """A host process whose program can be another one than ``actorgrid.host``.

    :ivar program: the module that is run
    :ivar environment: further variables
    """

    program = "actorgrid.host"
    environment: dict[str, str] = {}

    def spawn(self) -> None:
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
                child.command(self.program, str(self.config_path)),
                cwd=ROOT,
                env={**os.environ, child.PARENT: str(os.getpid()), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self, word: str, since: int = 0) -> list[str]:
        """Lines with `word` that it has written to standard error since byte `since` of that."""
        with self.log_path.open("rb") as log:
            log.seek(since)
            return [line for line in log.read().decode(errors="replace").splitlines() if word in line]

    @property
    def log_bytes(self) -> int:
        return self.log_path.stat().st_size

    @property
    def store(self) -> Path:
        return self.data_dir / "store"

    @property
    def stores_aside(self) -> list[Path]:
        return sorted(self.data_dir.glob("store.corrupt.*[0-9]"))


class DiskGrid(GridProcesses):
    """Hosts that can be killed all at once, and whose data directories can be file systems of their own."""

    hosts: dict[str, DiskHost]  # type: ignore[assignment]

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **{"partitions": PARTITIONS, **options})
        self.hosts = {name: DiskHost(name, host.endpoint.address, host.endpoint.port, self.directory) for name, host in self.hosts.items()}

    def _config(self, host: HostProcess) -> dict[str, Any]:
        config = super()._config(host)
        return {**config, "app": [*config["app"], "disk_actors"], "app_path": [*config["app_path"], str(APPS)]}

    def identity(self, name: str) -> StoreIdentity:
        """Whose data the store of `name` says it is."""
        return StoreIdentity(self.cluster_id, name, self.partition_count)

    async def kill_now(self, names: Iterable[str], then: Callable[[], None] = lambda: None) -> None:
        """SIGKILL to all of them within the same millisecond; returns when they are dead. `revive` starts them again.

        :param then: called before anybody waits: what they asked of a disk is not answered yet, and they do nothing more themselves
        """
        victims = [self.hosts[name] for name in names]
        pids = {host.name: host.pid for host in victims}
        for host in victims:
            host.is_wanted = False
            host.kill_expected = True
        for host in victims:
            host.signal(signal.SIGKILL)
        then()
        await until(lambda: not any(host.is_alive for host in victims), LOSS_OF_LIFE_S, "the hosts are dead")
        for host in victims:
            assert host.process is not None
            self.exits.append(Exit(host.name, pids[host.name], host.process.returncode, time.monotonic_ns(), wanted=True))

    async def wait_for(self, what: str, condition: Callable[[Observation], bool], timeout_s: float = 30.0) -> Observation:
        """Until `condition` holds of what the hosts say.

        :raises TimeoutError: not in time
        """
        deadline = time.monotonic() + timeout_s
        while True:
            seen = await self.observe()
            if condition(seen):
                return seen
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}; {self._describe_processes()}")
            await asyncio.sleep(0.05)


class Trial:
    """One grid under load, from its first call to the judgement. An asynchronous context manager; call `judge` inside.

    :param directory: for everything; it is what a failed run leaves
    :ivar verdicts: filled by `judge`
    """

    def __init__(
        self,
        hosts: DiskGrid,
        directory: Path,
        *,
        seed: int,
        callers: dict[str, int] | None = None,
        probe: bool = False,
        think_s: float = 0.004,
    ) -> None:
        self.hosts = hosts
        self.verdicts: list[Verdict] = []
        self.records: list[Record] = []
        self._stopped = False
        self.load = LoadProcesses(
            directory,
            hosts,
            seed=seed,
            processes=1,
            callers=callers or CALLERS,
            probe=probe,
            think_s=think_s,
            generation_s=5.0,
            cold_actors=32,
        )

    async def __aenter__(self) -> Self:
        await self.load.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._stopped:
            await self.load.stop()

    async def more_writes(self, count: int, timeout_s: float = 30.0) -> int:
        """Until `count` more changes were acknowledged than now; how many have been so far."""
        before = self.load.acknowledged_writes
        await until(lambda: self.load.acknowledged_writes >= before + count, timeout_s, f"{count} more writes than {before}")
        self.load.check_alive()
        return self.load.acknowledged_writes

    async def stop_load(self) -> list[Record]:
        """No more calls; all that was called."""
        if not self._stopped:
            self._stopped = True
            await self.load.stop()
            self.records = self.load.records()
        return self.records

    async def judge(self, *, floor: int, patient: bool = True, digests: bool = True) -> list[Verdict]:
        """Stop the load, read every actor, compare the replicas.

        :param floor: of acknowledged changes
        :param patient: whether no caller with the default deadline may have seen an error
        """
        records = await self.stop_load()
        unexpected = [each for status in self.load.statuses() for each in status.unexpected]
        after = await read_back(self.hosts, records)
        expected, told = checkers.judge_errors(records, unexpected)
        self.verdicts = [
            checkers.judge_exactly_once(records, after),
            *checkers.judge_order(records, after),
            checkers.judge_money(records, after),
            expected,
            *([told] if patient else []),
            checkers.judge_traffic(records, floor),
        ]
        if digests:
            self.verdicts.append(await self._judge_digests())
        return self.verdicts

    async def _judge_digests(self, within_s: float = 30.0) -> Verdict:
        deadline = time.monotonic() + within_s
        replicas = min(self.hosts.replica_set_size, len(self.hosts.hosts))
        while True:
            verdict = checkers.judge_digests(await self.hosts.digests(), partitions=self.hosts.partition_count, replicas=replicas)
            if verdict or time.monotonic() > deadline:
                return verdict
            await asyncio.sleep(0.3)

    def check(self) -> None:
        """Every promise was kept.

        :raises AssertionError: the first that was not, with what proves it
        """
        assert self.verdicts, "not judged"
        for verdict in self.verdicts:
            assert verdict, "\n".join([str(verdict), *verdict.details])

    def show(self) -> None:
        for verdict in self.verdicts:
            print(verdict)


async def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for `condition`.

    :raises TimeoutError: not in time
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.02)


def keep_copies(hosts: Sequence[DiskHost]) -> None:
    """Data directories that go with their file systems are kept beside them, for whoever looks for the reason."""
    for host in hosts:
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(host.data_dir, host.data_dir.with_name(f"{host.name}.after"), dirs_exist_ok=True)


@dataclasses.dataclass(slots=True)
class Timer:
    """How long things took, for the report."""

    began_s: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s
