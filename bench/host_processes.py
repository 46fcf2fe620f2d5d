"""A grid of plain host processes, without Ray: for measuring what a way of running hosts costs, the same in everything else."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from actorgrid import grid
from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import credential_files
from actorgrid.credentials import ROLE_CALLER, ROLE_HOST, Credentials
from actorgrid.errors import ActorGridError
from actorgrid.host.config import HostConfig
from actorgrid.ids import HostName
from actorgrid.settings import WireSettings
from actorgrid.wire.messages import HostInfo
from bench.peers.processes import LOOPBACK, free_ports
from bench.target import ROOT, Shape

CLUSTER = "bench"
READY_S = 60.0
POLL_S = 0.1
STOP_S = 10.0


class HostProcesses:
    """So many hosts on loopback: ``async with HostProcesses(shape, directory, is_secure=True) as target``.

    :param is_secure: TLS on every connection, certificates on both sides
    """

    def __init__(self, shape: Shape, directory: Path, *, is_secure: bool) -> None:
        self.shape = shape
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._client: grid.Client | None = None
        self._ports = free_ports(shape.hosts)
        self._credentials: dict[str, Credentials | None] = {ROLE_HOST: None, ROLE_CALLER: None}
        if is_secure:
            credential_files.make(directory / "credentials", CLUSTER)
            self._credentials = {role: credential_files.credentials_of(directory / "credentials" / role) for role in self._credentials}

    @property
    def client(self) -> grid.Client:
        assert self._client is not None, "the grid is not started"
        return self._client

    @property
    def address(self) -> str:
        return ",".join(f"{LOOPBACK}:{port}" for port in self._ports)

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.poll() is None]

    async def __aenter__(self) -> HostProcesses:
        try:
            self._start()
            async with asyncio.timeout(READY_S):
                await self._until_answered("init")
                while not (await self._until_answered("status"))["grid"]["map_is_complete"]:
                    await asyncio.sleep(POLL_S)
            self._client = await grid.Client(self.address, credentials=self._credentials[ROLE_CALLER]).open()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def _start(self) -> None:
        names = [HostName(f"host-{place + 1}") for place in range(self.shape.hosts)]
        infos = tuple(HostInfo(name, LOOPBACK, port) for name, port in zip(names, self._ports, strict=True))
        for name, port in zip(names, self._ports, strict=True):
            config = HostConfig(
                cluster_id=CLUSTER,
                name=name,
                node=f"node-{name}",
                data_dir=self._directory / name,
                address=LOOPBACK,
                port=port,
                partition_count=self.shape.partitions,
                replica_set_size=self.shape.replicas,
                hosts=infos,
                app=("bench.actors",),
                app_path=(str(ROOT),),
                credentials=self._credentials[ROLE_HOST],
            )
            path = self._directory / f"{name}.json"
            path.write_bytes(msgspec.json.encode(config, enc_hook=str))
            with (self._directory / f"{name}.log").open("wb") as log:
                command = [sys.executable, "-P", "-m", "actorgrid.host", str(path)]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    async def _until_answered(self, verb: str) -> Any:
        while True:
            if any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"a host ended by itself; its log is in {self._directory}")
            try:
                return await admin.ask(
                    LOOPBACK,
                    self._ports[0],
                    verb,
                    {},
                    client_id=new_client_id(),
                    cluster_id=CLUSTER,
                    wire=WireSettings(),
                    timeout_s=READY_S,
                    credentials=self._credentials[ROLE_HOST],
                )
            except ActorGridError:
                await asyncio.sleep(POLL_S)

    async def _end(self) -> None:
        if self._client is not None:
            with contextlib.suppress(ActorGridError):
                await self._client.close()
            self._client = None
        for process in self._processes:
            process.kill()  # what is stored is thrown away
        for process in self._processes:
            await asyncio.to_thread(process.wait, STOP_S)
        self._processes.clear()
