"""A grid of real hosts in this process whose placement is looked at, and callers that never stop."""

from __future__ import annotations

import asyncio
import contextlib
import time

from host_actors import Box
from host_harness import PARTITIONS, HostByHost, free_port, until

from actorgrid.errors import TransientError
from actorgrid.settings import ClientSettings, HostSettings

PATIENT = ClientSettings(timeout_s=15.0, connect_timeout_s=0.5)
SETTINGS = HostSettings(placement_quiet_s=0.3, replica_restart_wait_s=2.0)


class Grid(HostByHost):
    """Hosts of one grid, each on a node of its own: host-1 on node-1 and so on."""

    def __init__(self, path, count, settings=SETTINGS, partitions=PARTITIONS, **options):
        super().__init__(path, count, replicas=3, settings=settings, **options)
        self.partitions = partitions

    async def add(self):
        """One more host, which knows the others; they do not know it."""
        self.ports.append(free_port())
        self.hosts.append(None)
        return await self.start(len(self.hosts) - 1)

    def manager(self):
        return next((host for host in self.up if 0 in host.partitions and host.partitions[0].serving), None)

    def members(self):
        """partition -> hosts of its configuration, as its primary has it."""
        return {
            partition.id: sorted(member.host for member in partition.replica.configuration.members)
            for host in self.up
            for partition in host.partitions.values()
            if partition.serving
        }

    def held(self, index):
        return sorted(self.hosts[index].shells)

    def primaries(self, index):
        return sorted(partition.id for partition in self.hosts[index].partitions.values() if partition.serving)

    async def operate(self, verb, **arguments):
        """Ask some host, as a tool would; again while the manager is moving."""
        deadline = time.monotonic() + 10
        while True:
            try:
                return await self.up[-1].administer(verb, arguments)
            except TransientError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def nodes(self):
        return {node["name"]: node for node in (await self.operate("nodes"))["nodes"]}

    async def intents(self):
        return {name: node["intent"] for name, node in (await self.nodes()).items()}

    async def drained(self, node, timeout_s=15):
        """Wait until the drain of `node` is done; its row."""
        deadline = time.monotonic() + timeout_s
        while (row := await self.operate("drain_status", node=node))["state"] != "done":
            assert time.monotonic() < deadline, row
            await asyncio.sleep(0.05)
        return row

    def all_serve(self):
        return len(self.members()) == self.partitions + 1

    async def until_equal(self, timeout_s=10):
        """Every replica of every partition has applied the same, and it is the same."""

        def equal():
            found = {}
            for host in self.up:
                for row in host.digests():
                    found.setdefault(row["id"], []).append((row["applied_lsn"], row["digest"]))
            return len(found) == self.partitions + 1 and all(len(rows) == 3 and len(set(rows)) == 1 for rows in found.values())

        await until(equal, timeout_s)

    async def begin(self):
        """Start all of them, and the grid."""
        for index in range(len(self.hosts)):
            await self.start(index)
        await self.hosts[0].administer("init", {})
        await until(self.all_serve, 10)

    async def stop_all(self):
        for index, host in enumerate(self.hosts):
            if host is not None:
                await self.stop(index)


@contextlib.asynccontextmanager
async def hosts_of(path, count, **options):
    made = Grid(path, count, **options)
    try:
        await made.begin()
        yield made
    finally:
        await made.stop_all()


class Load:
    """Callers that never stop, and what they saw."""

    def __init__(self, client, callers=8):
        self._client = client
        self._callers = callers
        self.acknowledged = dict.fromkeys(range(callers), 0)
        self.gaps = []
        self._tasks = []
        self._is_over = False

    async def _call(self, number):
        box = self._client.get(Box, f"b{number}")
        while not self._is_over:
            began = time.monotonic()
            assert await box.add(1) == self.acknowledged[number] + 1  # once each, whatever moves
            self.acknowledged[number] += 1
            self.gaps.append(time.monotonic() - began)

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(self._callers)]
        await asyncio.sleep(0.2)
        return self

    async def __aexit__(self, *_):
        self._is_over = True
        for task in self._tasks:
            await task
