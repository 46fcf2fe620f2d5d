"""Placement with real hosts of this process: drains, restarts, their manager's own moves, and what operators are told."""

from __future__ import annotations

import asyncio
import time

import pytest
from host_harness import PARTITIONS, make_config, run, seeds, until
from placement_harness import PATIENT, SETTINGS, Load, hosts_of

from actorgrid import grid
from actorgrid.errors import RequestError
from actorgrid.host.host import Host


def test_a_node_is_emptied_while_callers_go_on(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            async with Load(client) as load:
                row = await made.operate("drain", node="node-2", intent="remove_node")
                assert row["intent"] == "remove_node"
                await made.drained("node-2")
                assert made.held(1) == [] or not await until(lambda: not made.held(1), 5)
                assert all(members == ["host-1", "host-3", "host-4"] for members in made.members().values())
            assert min(load.acknowledged.values()) > 0
            await made.until_equal()
            # Taken back, it gets its share again.
            await made.operate("undrain", node="node-2")
            await until(lambda: len(made.held(1)) >= 3 and made.primaries(1), 15)
            nodes = (await made.operate("nodes"))["nodes"]
            assert {node["name"]: node["intent"] for node in nodes} == dict.fromkeys((f"node-{i}" for i in range(1, 5)), "none")

    run(main, timeout_s=60)


def test_every_node_is_emptied_in_turn_the_managers_own_among_them(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            async with Load(client):
                for number in range(1, 5):
                    await made.operate("drain", node=f"node-{number}", intent="remove_node")
                    await made.drained(f"node-{number}", 20)
                    assert not any(f"host-{number}" in members for members in made.members().values())
                    await made.operate("undrain", node=f"node-{number}")
            await made.until_equal()

    run(main, timeout_s=90)


def test_a_restart_moves_primaries_and_no_data(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            before = made.members()
            async with Load(client):
                await made.operate("drain", node="node-1", intent="restart")
                row = await made.drained("node-1")
                assert (row["primaries_left"], row["replicas_left"]) == (0, 0)
                assert made.primaries(0) == []
                await made.stop(0)
                await asyncio.sleep(0.3)
                await made.start(0)
                await made.operate("undrain", node="node-1")
                await until(lambda: made.primaries(0), 15)
            await until(lambda: made.members() == before, 5)  # one that is being swapped just now is missing for a moment
            await made.until_equal()

    run(main, timeout_s=60)


def test_a_drain_that_cannot_end_says_within_two_seconds_which_rule_stops_it_and_shrinks_nothing(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            before = made.members()
            began = time.monotonic()
            row = await made.operate("drain", node="node-3", intent="remove_node")
            while not any(each["rule"] == "no_candidate" for each in row["pending"]):
                await asyncio.sleep(0.05)
                row = await made.operate("drain_status", node="node-3")
                assert time.monotonic() - began < 2.0, row
            stopping = next(each for each in row["pending"] if each["rule"] == "no_candidate")
            assert "no host may take a replica" in stopping["why"]
            assert "add a node" in stopping["help"]
            await until(lambda: not made.primaries(2), 10)
            await asyncio.sleep(1.0)
            assert made.members() == before
            row = await made.operate("drain_status", node="node-3")
            assert (row["state"], row["estimate_s"]) == ("blocked", -1.0)
            lines = (await made.operate("explain", partition=stopping["partition"]))["lines"]
            assert any("waits (no_candidate)" in line for line in lines)

    run(main, timeout_s=40)


def test_intents_outlive_their_manager(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            async with Load(client):
                await made.operate("drain", node="node-1", intent="pause")
                await made.operate("freeze", reason="the quarter ends")
                index = made.hosts.index(made.manager())
                await made.stop(index)
                await until(lambda: made.manager() is not None, 10)
                answer = await made.operate("nodes")
                assert {node["name"]: node["intent"] for node in answer["nodes"]}["node-1"] == "pause"
                assert answer["frozen_why"] == "the quarter ends"
                await made.start(index)
                await made.operate("unfreeze")
                await made.operate("undrain", node="node-1")
            await made.until_equal()

    run(main, timeout_s=60)


def test_a_host_that_is_gone_for_good_is_replaced(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            async with Load(client):
                await made.stop(1)
                await until(lambda: len(made.members()) == PARTITIONS + 1, 10)
                await until(lambda: not any("host-2" in members for members in made.members().values()), 20)
            await made.start(1)
            await until(lambda: made.held(1), 15)
            await made.until_equal()

    run(main, timeout_s=60)


def test_a_host_joins_and_gets_its_share_and_another_one_is_forgotten(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            async with Load(client):
                await made.add()
                await until(lambda: len(made.held(3)) >= 3 and made.primaries(3), 15)
                assert all(len(host.roster.hosts) == 4 for host in made.up)
                await made.operate("drain", node="node-1", intent="remove_node")
                await made.drained("node-1", 20)
                await made.stop(0)
                await until(lambda: all("host-1" not in host.roster.hosts for host in made.up), 10)
                nodes = (await made.operate("nodes"))["nodes"]
                assert {node["name"]: node["intent"] for node in nodes} == {"node-2": "none", "node-3": "none", "node-4": "none"}
            await made.until_equal()
            assert sorted(info.name for info in client.partition_map.hosts) == ["host-2", "host-3", "host-4"]
            # A host that was restarted remembers the others, whatever it is told.
            await made.stop(1)
            made.hosts[1] = Host(make_config(made.path, ports=made.ports[:3], index=1, replicas=3, settings=SETTINGS))
            await made.hosts[1].start()
            assert sorted(made.hosts[1].roster.hosts) == ["host-2", "host-3", "host-4"]
            await until(lambda: len(made.members()) == PARTITIONS + 1, 10)
            await made.until_equal()
            # The one that was forgotten comes back: it joins anew.
            await made.start(0)
            await until(lambda: made.held(0), 15)

    run(main, timeout_s=90)


@pytest.mark.parametrize(
    ("verb", "arguments", "why"),
    [
        ("drain", {"node": "node-9", "intent": "restart"}, "there is no node 'node-9'; known are node-1, node-2, node-3"),
        ("drain", {"node": "node-1", "intent": "explode"}, "intent must be one of pause, restart, remove_data, remove_node, got 'explode'"),
        ("drain", {"node": "node-1"}, "intent must be one of"),
        ("drain", {"node": "node-1", "intent": "pause", "deadline_s": "soon"}, "deadline_s must be seconds"),
        ("explain", {"partition": 99}, "there is no partition 99"),
        ("explain", {}, "partition must be a number"),
        ("freeze", {"reason": " "}, "a freeze needs a reason"),
    ],
)
def test_what_an_operator_may_not_ask_is_told(tmp_path, verb, arguments, why):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            with pytest.raises(RequestError, match=why):
                await made.operate(verb, **arguments)

    run(main, timeout_s=30)


def test_intents_only_rise(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-1", intent="restart")
            with pytest.raises(RequestError, match="has the intent restart already, and intents only rise"):
                await made.operate("drain", node="node-1", intent="pause")
            assert (await made.operate("drain", node="node-1", intent="remove_node"))["intent"] == "remove_node"
            assert (await made.operate("undrain", node="node-1"))["intent"] == "none"
            assert (await made.operate("drain", node="node-1", intent="pause", deadline_s=60))["state"] == "done"

    run(main, timeout_s=30)
