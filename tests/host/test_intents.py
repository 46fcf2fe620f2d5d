"""Whose an intent is: an operator's, a host's own, or that of the watcher of Kubernetes."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from host_harness import run, until
from placement_harness import hosts_of

from actorgrid.errors import RequestError
from actorgrid.host.manager import KUBERNETES, IntentRecord, PlacementState
from placement import Intent


class RecordBefore(msgspec.Struct, array_like=True):
    intent: int
    number: int
    deadline_ms: int = 0
    by: str = ""
    kept: int = 0


class StateBefore(msgspec.Struct):
    intents: dict[str, RecordBefore] = {}


async def standing(made, node):
    row = (await made.nodes())[node]
    return row["intent"], row["by"]


async def until_standing(made, node, wanted, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while (found := await standing(made, node)) != wanted:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


def test_what_kubernetes_wants_does_not_end_by_itself_and_is_taken_back_by_it_alone(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-2", intent="restart", by=KUBERNETES, deadline_s=30)
            row = (await made.nodes())["node-2"]
            assert (row["intent"], row["by"]) == ("restart", KUBERNETES)
            assert 25 < row["deadline_left_s"] <= 30
            assert (await made.nodes())["node-1"] | {"intent": "none", "by": "", "deadline_left_s": None} == (await made.nodes())["node-1"]
            await made.drained("node-2")
            await asyncio.sleep(1)  # its host runs and does not leave: a wish of its own would be over
            assert await standing(made, "node-2") == ("restart", KUBERNETES)
            answer = await made.operate("undrain", node="node-2", by="host-2")
            assert (answer["intent"], answer["by"]) == ("restart", KUBERNETES)
            assert await made.operate("undrain", node="node-2", by=KUBERNETES) == {"node": "node-2", "intent": "none"}
            assert await made.operate("undrain", node="node-2", by=KUBERNETES) == {"node": "node-2", "intent": "none"}

    run(main, timeout_s=40)


def test_an_operator_has_the_last_word(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-1", intent="restart")
            await made.operate("drain", node="node-1", intent="restart", by=KUBERNETES, deadline_s=5)
            assert (await made.nodes())["node-1"]["deadline_left_s"] is None
            assert await standing(made, "node-1") == ("restart", "")  # it is the operator's still
            assert (await made.operate("undrain", node="node-1", by=KUBERNETES))["by"] == ""
            assert await standing(made, "node-1") == ("restart", "")

            await made.operate("drain", node="node-1", intent="remove_data", by=KUBERNETES)  # raised, and the operator's kept
            assert await standing(made, "node-1") == ("remove_data", KUBERNETES)
            with pytest.raises(RequestError, match="intents only rise"):
                await made.operate("drain", node="node-1", intent="restart", by=KUBERNETES)
            answer = await made.operate("undrain", node="node-1", by=KUBERNETES)
            assert (answer["intent"], answer["by"]) == ("restart", "")
            assert await standing(made, "node-1") == ("restart", "")

            await made.operate("drain", node="node-1", intent="remove_data", by=KUBERNETES)
            assert await made.operate("undrain", node="node-1") == {"node": "node-1", "intent": "none"}  # an operator's is of all of it
            await made.operate("drain", node="node-1", intent="pause", by=KUBERNETES)
            await made.operate("drain", node="node-1", intent="pause")
            assert await standing(made, "node-1") == ("pause", "")  # and what Kubernetes wants becomes an operator's

    run(main, timeout_s=40)


def test_a_host_that_leaves_takes_over_what_kubernetes_wanted_and_ends_it_when_it_is_back(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-2", intent="restart", by=KUBERNETES, deadline_s=20)
            await made.hosts[1].leave()
            assert await standing(made, "node-2") == ("restart", "host-2")
            await made.operate("drain", node="node-2", intent="restart", by=KUBERNETES)  # of another watcher, a moment later
            assert await standing(made, "node-2") == ("restart", "host-2")
            await made.stop(1)
            await made.start(1)
            await until_standing(made, "node-2", ("none", ""))

            await made.operate("drain", node="node-2", intent="pause", by="host-2")
            await made.operate("drain", node="node-2", intent="restart", by=KUBERNETES)  # more than a host wants
            assert await standing(made, "node-2") == ("restart", KUBERNETES)

    run(main, timeout_s=40)


def test_a_host_leaves_at_once_when_kubernetes_removes_its_node(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 4) as made:
            await made.operate("drain", node="node-4", intent="remove_node", by=KUBERNETES)
            await made.drained("node-4")
            began = time.monotonic()
            await made.hosts[3].leave()
            assert time.monotonic() - began < 2
            assert await standing(made, "node-4") == ("remove_node", KUBERNETES)
            await made.stop(3)
            deadline = time.monotonic() + 15
            while "node-4" in await made.nodes():  # its intent goes with it
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    run(main, timeout_s=40)


def test_the_next_manager_knows_what_kubernetes_wants(tmp_path):
    async def main():
        async with hosts_of(tmp_path, 3) as made:
            await made.operate("drain", node="node-3", intent="pause")
            await made.operate("drain", node="node-3", intent="restart", by=KUBERNETES, deadline_s=60)
            manager = made.manager()
            index = made.hosts.index(manager)
            await made.stop(index)
            await until(lambda: made.manager() not in (None, manager), 10)
            await until_standing(made, "node-3", ("restart", KUBERNETES))
            assert 30 < (await made.nodes())["node-3"]["deadline_left_s"] < 60
            await made.start(index)
            await made.operate("undrain", node="node-3", by=KUBERNETES)
            assert await standing(made, "node-3") == ("pause", "")

    run(main, timeout_s=40)


def test_records_of_the_release_before_are_read_and_the_other_way_round():
    ours = PlacementState(intents={"node-1": IntentRecord(int(Intent.RESTART), 7, 5_000, KUBERNETES, int(Intent.PAUSE))})
    theirs = StateBefore(intents={"node-1": RecordBefore(int(Intent.RESTART), 7, 5_000, KUBERNETES, int(Intent.PAUSE))})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ours), type=StateBefore) == theirs
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(theirs), type=PlacementState) == ours
    first = msgspec.msgpack.encode({"intents": {"node-1": [2, 1]}})  # of a release that knew neither deadlines nor whose it is
    assert msgspec.msgpack.decode(first, type=PlacementState).intents["node-1"] == IntentRecord(2, 1)
