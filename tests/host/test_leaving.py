"""A host that is told to end (SIGTERM) leaves first: nobody misses it, and no two that are needed go at a time."""

from __future__ import annotations

import asyncio
import time

from host_harness import run, until
from placement_harness import PATIENT, Load, hosts_of

from actorgrid import grid


async def until_intents(made, wanted, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while (found := await made.intents()) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


def test_a_host_that_leaves_is_missed_by_nobody_and_its_wish_ends_when_it_is_back(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            seeds = ",".join(f"127.0.0.1:{port}" for port in made.ports)
            async with grid.connect(seeds, settings=PATIENT) as client, Load(client) as load:
                for index in (2, 0, 1):  # wherever the manager is
                    await made.hosts[index].leave()
                    assert made.primaries(index) == []
                    assert (await made.intents())[f"node-{index + 1}"] == "restart"
                    await made.stop(index)
                    await asyncio.sleep(0.3)
                    assert (await made.intents())[f"node-{index + 1}"] == "restart"
                    await made.start(index)
                    await until_intents(made, dict.fromkeys(("node-1", "node-2", "node-3"), "none"))
            assert min(load.acknowledged.values()) > 0
            assert max(load.gaps) < 2.0  # far below any election timeout with silence
            await made.until_equal()

    run(main, timeout_s=60)


def test_while_one_is_away_another_that_every_partition_needs_waits(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.hosts[0].leave()
            await made.stop(0)
            waiting = asyncio.create_task(made.hosts[1].leave())
            await asyncio.sleep(1.5)
            assert not waiting.done()  # with two of three gone nothing would be served
            assert (await made.intents())["node-2"] == "restart"
            await made.start(0)
            async with asyncio.timeout(9):
                await waiting
            await until(lambda: made.primaries(1) == [], 5)
            await made.stop(1)
            assert all(host.state == "serving" for host in made.up)

    run(main, timeout_s=40)


def test_what_an_operator_wants_of_the_node_stays_when_its_host_is_back(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made:
            await made.operate("drain", node="node-2", intent="restart")
            await made.hosts[1].leave()
            await made.stop(1)
            await made.start(1)
            await asyncio.sleep(1)
            assert (await made.intents())["node-2"] == "restart"
            await made.operate("drain", node="node-3", intent="remove_node")
            began = time.monotonic()
            await made.hosts[2].leave()  # more is wanted already, and looked after
            assert time.monotonic() - began < 2
            assert (await made.intents())["node-3"] == "remove_node"

    run(main, timeout_s=40)


def test_a_lower_intent_of_an_operator_is_raised_for_the_restart_and_counts_again_afterwards(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-2", intent="pause")
            await made.hosts[1].leave()
            assert (await made.intents())["node-2"] == "restart"
            assert made.primaries(1) == []
            await made.stop(1)
            await made.start(1)
            await until_intents(made, {"node-1": "none", "node-2": "pause", "node-3": "none"})

    run(main, timeout_s=40)


def test_a_grid_without_a_manager_lets_a_host_go_when_its_time_is_up(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.stop(0)
            await made.stop(1)
            host = made.hosts[2]
            await until(lambda: not any(partition.serving for partition in host.partitions.values()), 10)
            placing = host._placing
            began = time.monotonic()
            assert not await placing.leave("node-3", 1.0)
            assert 0.9 < time.monotonic() - began < 3

    run(main, timeout_s=40)
