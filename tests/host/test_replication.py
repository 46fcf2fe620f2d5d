"""Three replicas of each partition on three hosts, in one process: what callers see when primaries come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from host_actors import Box
from host_harness import CLUSTER, PARTITIONS, QUICK, HostByHost, free_port, make_config, run, seeds, until

from actorgrid import grid
from actorgrid.errors import NoWriteQuorumError, SettingsError
from actorgrid.host.host import Host
from actorgrid.settings import ClientSettings

PATIENT = ClientSettings(timeout_s=12.0, connect_timeout_s=0.5, retry_first_s=0.005, retry_max_s=0.05)


class Trio(HostByHost):
    """Three of them, with three replicas unless told otherwise."""

    def __init__(self, path, *, replicas=3):
        super().__init__(path, 3, replicas=replicas)

    def primaries(self):
        return {partition.id: host for host in self.up for partition in host.partitions.values() if partition.serving}

    async def until_served(self, timeout_s=8.0):
        await until(lambda: len(self.primaries()) == PARTITIONS + 1, timeout_s)

    async def until_equal(self, timeout_s=8.0):
        """All replicas have applied the same, and it is the same."""

        def equal():
            digests = [{row["id"]: (row["applied_lsn"], row["digest"]) for row in host.digests()} for host in self.up]
            return len(digests[0]) == PARTITIONS + 1 and all(each == digests[0] for each in digests)

        await until(equal, timeout_s)


@contextlib.asynccontextmanager
async def trio(path, **options):
    grid_of_three = Trio(path, **options)
    for index in range(3):
        await grid_of_three.start(index)
    await grid_of_three.hosts[0].administer("init", {})
    await grid_of_three.until_served()
    try:
        yield grid_of_three
    finally:
        for host in grid_of_three.up:
            await host.stop()


def test_a_change_is_on_every_replica(tmp_path):
    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=PATIENT) as client:
            for number in range(20):
                assert await client.get(Box, f"b{number}").add(number) == number
            await three.until_equal()

    run(main, timeout_s=30)


def test_an_orderly_stop_hands_every_partition_over_and_callers_notice_nothing(tmp_path):
    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=PATIENT) as client:
            for number in range(8):
                await client.get(Box, f"b{number}").add(1)
            began = time.monotonic()
            await three.stop(0)
            for number in range(8):
                assert await client.get(Box, f"b{number}").add(1) == 2
            # Without the hand-over the others would wait for an election timeout of two seconds at least.
            assert {host.config.name for host in three.primaries().values()} == {"host-2", "host-3"}
            assert time.monotonic() - began < 60
            await three.start(0)
            await three.until_equal()

    run(main, timeout_s=40)


def test_with_two_of_three_gone_writes_are_refused_and_nothing_is_read_unproven_until_one_returns(tmp_path):
    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=QUICK) as client:
            assert await client.get(Box, "b").add(1) == 1
            await three.stop(1)
            await three.stop(2)
            left = three.hosts[0]
            await until(lambda: not any(shell.hears_quorum(time.monotonic_ns()) for shell in left.shells.values()))
            short = client.with_options(timeout_s=2.0)
            for call in (short.get(Box, "b").add(1), short.get(Box, "b").look()):
                with pytest.raises(NoWriteQuorumError, match="does not hear a write quorum"):
                    await call
            await three.start(1)
            assert await client.with_options(timeout_s=12).get(Box, "b").add(1) == 2

    run(main, timeout_s=60)


def test_a_replica_that_is_retired_is_rebuilt_though_nobody_writes(tmp_path):
    """An idle partition sends its secondaries nothing that could be answered with "it is not here"."""

    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=PATIENT) as client:
            for number in range(20):
                await client.get(Box, f"b{number}").add(1)
            await three.until_equal()
            await asyncio.sleep(0.3)  # the last commits have been told: from here on there is nothing to say
            partition, primary = next((each, host) for each, host in three.primaries().items() if each)
            other = next(host for host in three.up if host is not primary)
            gone = other.shells[partition].me
            other.replicas.retire(other.shells[partition], "the test says so")
            await until(lambda: partition in other.shells and other.shells[partition].me > gone, 8)
            core = primary.shells[partition].core
            await until(lambda: other.shells[partition].me in core.configuration.voters, 8)
            await three.until_equal()

    run(main, timeout_s=40)


def test_a_replica_whose_data_is_lost_is_rebuilt_while_calls_go_on(tmp_path):
    import shutil

    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=PATIENT) as client:
            for number in range(20):
                await client.get(Box, f"b{number}").add(1)
            await three.stop(2)
            shutil.rmtree(tmp_path / "host-3")
            emptied = await three.start(2)
            error = await asyncio.wait_for(emptied.run_until_failed(), 10)
            assert "went back" in str(error) or "remembers" in str(error)
            await three.stop(2)
            await three.start(2)
            for number in range(20):
                assert await client.get(Box, f"b{number}").add(1) == 2
            await until(lambda: len(three.hosts[2].shells) == PARTITIONS + 1, 15)
            configurations = [shell.core.configuration for host in three.hosts[:2] for shell in host.shells.values()]
            await until(lambda: all(shell.core.role != "idle_secondary" for shell in three.hosts[2].shells.values()), 15)
            await three.until_equal(15)
            assert any(("host-3", 2) in configuration.members for configuration in configurations) or all(
                ("host-3", 2) in shell.core.configuration.voters for shell in three.hosts[0].shells.values()
            )

    run(main, timeout_s=60)


def test_a_host_with_another_grids_or_another_hosts_data_refuses_to_start(tmp_path):
    async def main():
        async with trio(tmp_path):
            pass
        (tmp_path / "host-1").rename(tmp_path / "kept")
        (tmp_path / "host-2").rename(tmp_path / "host-1")
        with pytest.raises(SettingsError, match="data of host 'host-2'"):
            await Host(make_config(tmp_path, ports=[free_port() for _ in range(3)], index=0, replicas=3)).start()
        (tmp_path / "host-1").rename(tmp_path / "host-2")
        (tmp_path / "kept").rename(tmp_path / "host-1")
        config = make_config(tmp_path, ports=[free_port() for _ in range(3)], index=0, replicas=3, cluster_id="another grid")
        with pytest.raises(SettingsError, match=f"data of grid '{CLUSTER}'"):
            await Host(config).start()

    run(main, timeout_s=30)


def test_init_may_be_repeated_and_changes_nothing(tmp_path):
    async def main():
        async with trio(tmp_path) as three, grid.connect(seeds(three.up), settings=PATIENT) as client:
            await client.get(Box, "b").add(5)
            assert (await three.hosts[1].administer("init", {}))["emptied"] == []
            assert await client.get(Box, "b").add(1) == 6

    run(main, timeout_s=30)


def test_the_grids_own_settings_are_in_the_system_partition(tmp_path):
    async def main():
        async with trio(tmp_path) as three:
            await until(lambda: all(host.grid_settings() is not None for host in three.up))
            assert three.hosts[0].grid_settings() == {"cluster_id": CLUSTER, "partition_count": PARTITIONS, "replica_set_size": 3}

    run(main, timeout_s=30)
