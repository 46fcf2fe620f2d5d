"""Starts and ends the client processes of a campaign, and knows how much they do."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import msgspec

from tests.faults import child
from tests.faults.grid_processes import ROOT, GridProcesses
from tests.faults.history import Record, load
from tests.faults.load_client import STOP_WITHIN_S, ClientStatus, Ledger, LoadConfig

__all__ = ["CAMPAIGN_CALLERS", "Ledger", "LoadProcesses"]

#: Callers of each of four processes in a campaign. Eight hot ones fight for two actors at a time.
CAMPAIGN_CALLERS = {"mixed": 6, "hot": 2, "follower": 2, "impatient": 2}
STARTED_WITHIN_S = 30.0
_decode_status = msgspec.json.Decoder(ClientStatus).decode


class LoadProcesses:
    """Client processes; ``async with`` starts them, and returns when each has had a change acknowledged (or has asked, if it only reads).

    :param directory: for configurations, histories, logs
    :param callers: how many of each habit in each process, see `tests.faults.load_client`
    :param processes: how many of them; one more, which only probes, is started if `probe` is given
    """

    def __init__(
        self,
        directory: Path,
        hosts: GridProcesses,
        *,
        seed: int,
        processes: int = 4,
        callers: dict[str, int] | None = None,
        probe: bool = True,
        think_s: float = 0.03,
        generation_s: float = 60.0,
        cold_actors: int = 48,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        endpoints = [(host.name, host.endpoint.address, host.endpoint.port) for host in hosts.hosts.values()]
        count = processes + probe
        self.configs = [
            LoadConfig(
                process=number,
                processes=count,
                seed=f"{seed}",
                seeds=hosts.seeds,
                directory=directory,
                partitions=hosts.partition_count,
                callers=dict(callers or CAMPAIGN_CALLERS) if number < processes else {},
                probe=[] if number < processes else endpoints,
                think_s=think_s,
                generation_s=generation_s,
                cold_actors=cold_actors,
            )
            for number in range(count)
        ]
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        for config in self.configs:
            path = self._directory / f"client-{config.process}.config.json"
            path.write_bytes(msgspec.json.encode(config, enc_hook=str))
            with (self._directory / f"client-{config.process}.stderr").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        child.command("tests.faults.load_client", str(path)),
                        cwd=ROOT,
                        env={**os.environ, child.PARENT: str(os.getpid())},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        try:
            deadline = time.monotonic() + STARTED_WITHIN_S
            while not all(status.acknowledged_writes > 0 or not config.callers for config, status in self._pairs()):
                self.check_alive()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no client process got an answer within {STARTED_WITHIN_S:g} s: see {self._directory}")
                await asyncio.sleep(0.1)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM, and wait until all has been written down; whoever takes too long is killed."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S + 10
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)

    def check_alive(self) -> None:
        """A client process that ended by itself is a defect: of the client library, or of these tests."""
        for config, process in zip(self.configs, self._processes, strict=True):
            if (code := process.poll()) is not None:
                raise RuntimeError(f"client process {config.process} ended with {code}: see {self._directory}")

    def _pairs(self) -> list[tuple[LoadConfig, ClientStatus]]:
        return [(config, self._status(config)) for config in self.configs]

    def _status(self, config: LoadConfig) -> ClientStatus:
        try:
            return _decode_status(config.status_path.read_bytes())
        except FileNotFoundError:
            return ClientStatus(config.process, 0, 0, 0, 0, {}, {}, [], is_over=False)

    def statuses(self) -> list[ClientStatus]:
        return [status for _, status in self._pairs()]

    @property
    def acknowledged_writes(self) -> int:
        """Up to about a second ago."""
        return sum(status.acknowledged_writes for status in self.statuses())

    def records(self) -> list[Record]:
        """All that was written down, in the order in which the calls began. After `stop`."""
        return load(sorted(self._directory.glob("history-*.jsonl")))
