"""A write quorum is lost for good: nothing is guessed, and an operator's decision begins the partitions anew from what is left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import ClassVar

import pytest
from host_actors import Box
from host_harness import PARTITIONS, run, seeds, until
from placement_harness import PATIENT, Grid

from actorgrid import grid
from actorgrid.errors import HostUnavailableError, ProtocolError, RequestError, TransientError
from actorgrid.host.recovery import Recovery
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.lineage import LSN_GAP, data_loss_number, first_epoch_after_loss, lineage
from actorgrid.settings import ClientSettings, HostSettings

SETTINGS = HostSettings(placement_quiet_s=0.3, replica_restart_wait_s=1.0)
HASTY = ClientSettings(timeout_s=1.0, connect_timeout_s=0.3)
BOXES = 12


async def add_one(made, settings=PATIENT):
    async with grid.connect(seeds(made.up), settings=settings) as client:
        return [await client.get(Box, f"b{number}").add(1) for number in range(BOXES)]


async def lagging_survivor(path):
    """Three hosts; host-3 was away while the others took the second round of changes, and is the only one that is left."""
    made = Grid(path, 3, settings=SETTINGS)
    await made.begin()
    assert await add_one(made) == [1] * BOXES
    await made.until_equal()
    await made.stop(2)
    assert await add_one(made) == [2] * BOXES
    await made.stop(1)
    await made.stop(0)
    await made.start(2)
    return made


def test_what_is_left_goes_on_after_data_loss_is_accepted_and_who_returns_gives_in(tmp_path):
    async def main():
        made = await lagging_survivor(tmp_path)
        try:
            survivor = made.hosts[2]
            await asyncio.sleep(3)  # longer than an election takes
            assert not any(partition.serving for partition in survivor.partitions.values())
            with pytest.raises(TransientError):
                await add_one(made, HASTY)

            looked = await survivor.administer("recover", {})
            assert {row["state"] for row in looked["partitions"]} == {"possible"}
            assert len(looked["partitions"]) == PARTITIONS + 1
            assert sorted(looked["silent_hosts"]) == ["host-1", "host-2"]
            assert not any(partition.serving for partition in survivor.partitions.values())

            before = {number: shell.core.last_lsn for number, shell in survivor.shells.items()}
            done = await survivor.administer("recover", {"accept_data_loss": True})
            assert {(row["state"], row["host"], row["data_loss_number"]) for row in done["partitions"]} == {("recovered", "host-3", 1)}
            await until(made.all_serve, 5)
            for number, shell in survivor.shells.items():
                assert shell.core.last_lsn > before[number] + LSN_GAP
                assert [member.host for member in shell.core.configuration.voters] == ["host-3"]
            assert await add_one(made) == [2] * BOXES  # the second round was lost, as was accepted

            # Those that were away have newer data and their old quorum. They give in, and are built anew.
            await made.start(0)
            await made.start(1)
            await made.until_equal(25)
            assert {data_loss_number(shell.core.epoch) for host in made.up for shell in host.shells.values()} == {1}
            assert await add_one(made) == [3] * BOXES

            # It is as durable as any other: all of them start again.
            await made.stop_all()
            for index in range(3):
                await made.start(index)
            await until(made.all_serve, 10)
            assert await add_one(made) == [4] * BOXES

            # Lost once more, it is accepted once more.
            await made.stop(0)
            await made.stop(1)
            await until(lambda: not any(partition.serving for partition in made.hosts[2].partitions.values()), 10)
            done = await made.hosts[2].administer("recover", {"accept_data_loss": True})
            assert {(row["state"], row["data_loss_number"]) for row in done["partitions"]} == {("recovered", 2)}
            assert await add_one(made) == [5] * BOXES
        finally:
            await made.stop_all()

    run(main, timeout_s=90)


def test_what_can_come_back_by_itself_is_not_begun_anew(tmp_path):
    async def main():
        made = await lagging_survivor(tmp_path)
        try:
            await made.start(1)
            await until(made.all_serve, 10)
            answer = await made.hosts[2].administer("recover", {"partitions": [1, 99], "accept_data_loss": True})
            assert [row["state"] for row in answer["partitions"]] == ["refused", "refused"]
            assert "is served by" in answer["partitions"][0]["why"]
            assert "nothing is left" in answer["partitions"][1]["why"]
            assert (await made.hosts[2].administer("recover", {"accept_data_loss": True}))["partitions"] == []
            with pytest.raises(RequestError, match="list of partition numbers"):
                await made.hosts[2].administer("recover", {"partitions": ["1"]})
            assert await add_one(made) == [3] * BOXES
        finally:
            await made.stop_all()

    run(main, timeout_s=90)


def test_who_asked_may_go_and_the_replica_is_begun_all_the_same(tmp_path):
    async def main():
        made = await lagging_survivor(tmp_path)
        try:
            survivor = made.hosts[2]
            shell = survivor.shells[1]
            incarnation, member = shell.me.incarnation, Member("host-3", shell.me.incarnation + 1)
            lsn, epoch = shell.core.last_lsn + LSN_GAP, first_epoch_after_loss(shell.core.epoch, 7)
            asking = asyncio.create_task(survivor.replicas.begin_anew(shell, Configuration(9, (member,)), lsn, epoch))
            await asyncio.sleep(0)
            assert list(survivor.replicas.beginning) == [1]
            assert 1 not in survivor.shells
            # Whoever looks now sees that it is taken care of, and a copy or a message for the new replica is for nobody yet.
            looked = await survivor.administer("recover", {"partitions": [1], "accept_data_loss": True})
            assert looked["partitions"][0]["state"] == "refused"
            assert survivor.replicas.next_incarnation_of(1) > incarnation + 1
            asking.cancel()
            await until(lambda: 1 in survivor.partitions and survivor.partitions[1].serving, 5)
            assert survivor.replicas.beginning == {}
        finally:
            await made.stop_all()

    run(main, timeout_s=40)


class FakeCore:
    def __init__(self, epoch):
        self.log = SimpleNamespace(last_epoch=epoch)


class FakeOwner:
    """A host with many partitions, of which some were begun anew."""

    has_begun = True
    beginning: ClassVar = {}

    def __init__(self, epochs):
        self.shells = {number: SimpleNamespace(core=FakeCore(epoch)) for number, epoch in epochs.items()}
        self.connected = []
        self.retired = []

    def retire(self, shell, why):
        self.retired.append(shell)


def test_every_host_is_told_of_every_lineage_until_it_has_heard_it():
    asked = []
    answers = {"host-2": [HostUnavailableError("busy"), {}]}

    async def ask_host(host, verb, arguments, timeout_s):
        asked.append((host, arguments["lineages"]))
        answer = answers[host].pop(0) if answers.get(host) else {}
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main():
        first = first_epoch_after_loss(5, 3)
        owner = FakeOwner({number: first + number for number in range(200)} | {200: 7})
        recovery = Recovery(owner, "host-1", list, lambda: owner.connected, ask_host)

        async def tick():
            recovery.tick()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        await tick()
        assert asked == []
        owner.connected = ["host-2", "host-3"]
        await tick()
        told = dict.fromkeys(range(200), lineage(first))  # one question for all of them
        assert asked == [("host-2", told), ("host-3", told)]
        await tick()
        assert asked[2:] == [("host-2", told)]
        await tick()
        assert len(asked) == 3
        owner.shells[200].core.log.last_epoch = first  # another one, while they are connected
        await tick()
        assert asked[3:] == [("host-2", {200: lineage(first)}), ("host-3", {200: lineage(first)})]
        recovery.peer_lost("host-3")
        await tick()
        assert asked[5:] == [("host-3", told | {200: lineage(first)})]

        # Who hears gives up what is older, whatever epoch it may have adopted from others.
        other = FakeOwner({1: 7, 2: first, 3: first_epoch_after_loss(first, 0)})
        hearing = Recovery(other, "host-2", list, list, ask_host)
        await hearing.answer("begun_anew", {"lineages": dict.fromkeys((1, 2, 3, 4), lineage(first))})
        assert other.retired == [other.shells[1]]
        with pytest.raises(ProtocolError):
            await Recovery(other, "host-2", list, list, ask_host).answer("begun_anew", {"lineages": "all"})

    run(main)
