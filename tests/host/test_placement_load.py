"""What hosts may be given, what replicas weigh, what actors report, and on which nodes replicas may be: with real hosts of this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import msgspec
import pytest
from host_harness import actor_on, make_config, run, seeds, until
from load_actors import Worker
from placement_harness import PATIENT, Grid

from actorgrid import grid
from actorgrid.errors import ActorError, InvalidArgumentError, RequestError, SettingsError
from actorgrid.host.host import Host
from actorgrid.host.manager import PlacementState
from actorgrid.host.reports import Capacity, HostRecord, HostReport, LedPartition, Overview
from actorgrid.ids import HostName
from actorgrid.replication.configuration import Member
from actorgrid.settings import HostSettings

SETTINGS = HostSettings(placement_quiet_s=0.3, replica_restart_wait_s=30.0)
FAST = {"labels": {"disk": "ssd"}}


class Capacities(Grid):
    """Hosts that are told what they may be given."""

    def __init__(self, path, capacities, **options):
        super().__init__(path, len(capacities), app="load_actors", **options)
        self.capacities = capacities

    async def start(self, index):
        config = make_config(self.path, ports=self.ports, index=index, **self._options)
        host = self.hosts[index] = Host(dataclasses.replace(config, partition_count=self.partitions, **self.capacities[index]))
        await host.start()
        return host

    def counts(self):
        """Replicas on each host, by the configurations."""
        everywhere = [name for members in self.members().values() for name in members]
        return [everywhere.count(f"host-{number}") for number in range(1, len(self.hosts) + 1)]

    def primary_of(self, partition):
        return next((index for index, host in enumerate(self.hosts) if host is not None and host.partitions[partition].serving), None)

    def moves(self):
        """What was ordered, whoever was manager then: the system partition's primary may be swapped too."""
        return [move for host in self.up for move in host._placing._manager.moves.last]


@contextlib.asynccontextmanager
async def hosts_of(path, capacities, partitions=4, settings=SETTINGS):
    made = Capacities(path, capacities, partitions=partitions, settings=settings)
    try:
        await made.begin()
        yield made
    finally:
        await made.stop_all()


@contextlib.asynccontextmanager
async def one_host(path, **settings):
    async with (
        hosts_of(path, [{}], settings=dataclasses.replace(SETTINGS, **settings)) as made,
        grid.connect(seeds(made.up), settings=PATIENT) as client,
    ):
        yield made, client


# -- what hosts may be given


def test_a_constraint_moves_replicas_onto_the_nodes_with_the_label_and_outlives_the_manager(tmp_path):
    async def main():
        async with hosts_of(tmp_path, [{}, {}, FAST, FAST, FAST]) as made, grid.connect(seeds(made.up), settings=PATIENT) as client:
            fast = ["host-3", "host-4", "host-5"]
            labels = {name: node["labels"] for name, node in (await made.nodes()).items()}
            assert labels == {f"node-{number}": {"disk": "ssd"} if number > 2 else {} for number in range(1, 6)}
            calls = [client.get(Worker, f"w{number}").work(1.0) for number in range(20)]
            answer = await made.operate("constrain", labels={"disk": "ssd"})
            assert answer == {"constraint": {"disk": "ssd"}, "constraints": [], "warnings": []}
            await until(lambda: len(made.members()) == 5 and all(members == fast for members in made.members().values()), 20)
            assert [await call for call in calls] == [1] * 20
            assert any("only on nodes with disk=ssd" in line for line in (await made.operate("explain", partition=1))["lines"])
            # A node that is down has its labels still, also for the next manager: nothing is misplaced.
            index = made.hosts.index(made.manager())
            await made.stop(index)
            await until(lambda: made.manager() is not None and len(made.members()) == 5, 10)
            answer = await made.operate("nodes")
            down = next(node for node in answer["nodes"] if node["name"] == f"node-{index + 1}")
            assert (down["state"], down["labels"]) == ("down", {"disk": "ssd"})
            assert answer["constraint"] == {"disk": "ssd"}
            await asyncio.sleep(1.0)
            assert all(members == fast for members in made.members().values())
            await made.start(index)
            # Of one partition, in place of the grid's; without any, everything is shared by all again.
            await made.operate("constrain", clear=True)
            answer = await made.operate("constrain", labels={"disk": "ssd"}, partitions=[2])
            assert (answer["constraint"], answer["constraints"]) == ({}, [{"partition": 2, "labels": {"disk": "ssd"}}])
            await until(lambda: min(made.counts()) == 3 and made.members().get(2) == fast, 20)
            answer = await made.operate("constrain", clear=True, partitions=[2])
            assert answer["constraints"] == []

    run(main, timeout_s=60)


def test_a_constraint_that_too_few_nodes_satisfy_is_kept_with_a_warning_and_shrinks_nothing(tmp_path):
    async def main():
        async with hosts_of(tmp_path, [{}, {}, {}, FAST]) as made:
            answer = await made.operate("constrain", labels={"gpu": "yes"}, partitions=[1])
            assert answer["warnings"] == ["no node has gpu=yes: replicas stay where they are, and none that is lost can be replaced"]
            before = made.members()[1]
            answer = await made.operate("constrain", labels={"disk": "ssd"})
            assert answer["warnings"] == [
                "node-4 alone has disk=ssd: 2 of 3 replicas stay elsewhere, and cannot be replaced there if they are lost"
            ]
            await until(
                lambda: all("host-4" in members and len(members) == 3 for number, members in made.members().items() if number != 1), 15
            )
            assert made.members()[1] == before
            lines = (await made.operate("explain", partition=1))["lines"]
            assert any("waits (no_candidate)" in line and "lacks the label gpu=yes" in line for line in lines), lines

    run(main, timeout_s=40)


def test_a_host_of_twice_the_weight_gets_twice_the_replicas(tmp_path):
    async def main():
        async with hosts_of(tmp_path, [{"weight": 2.0}, {}, {}, {}, {}], partitions=11) as made:
            await until(lambda: made.counts() == [12, 6, 6, 6, 6], 20)
            assert {name: node["capacity"] for name, node in (await made.nodes()).items()}["node-1"] == {
                "host-1": {"weight": 2.0, "replicas_max": None}
            }

    run(main, timeout_s=30)


def test_a_host_has_no_more_replicas_than_it_may(tmp_path):
    async def main():
        async with hosts_of(tmp_path, [{}, {}, {}, {"replicas_max": 2}]) as made:
            await until(lambda: made.counts()[3] == 2, 15)
            await asyncio.sleep(1.0)
            assert made.counts()[3] == 2
            assert sum(made.counts()) == 15
            assert (await made.nodes())["node-4"]["capacity"]["host-4"]["replicas_max"] == 2

    run(main, timeout_s=30)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "a constraint has one label at least"),
        ({"labels": {"disk": "ssd"}, "clear": True}, "a constraint has one label at least"),
        ({"labels": ["disk"]}, "labels must be names with values"),
        ({"labels": {"": "ssd"}}, "label '': a name has"),
        ({"labels": {"disk": "s s d"}}, "label disk='s s d': a value has"),
        ({"labels": {"disk": 7}}, "label disk=7: a value has"),
        ({"labels": {"disk": "ssd"}, "partitions": [1, 5]}, "there is no partition 5; they are 0..4"),
        ({"labels": {"disk": "ssd"}, "partitions": ["one"]}, "partitions must be numbers"),
        ({"labels": {"disk": "ssd"}, "partitions": [True]}, "partitions must be numbers"),
    ],
)
def test_nonsense_is_no_constraint(tmp_path, arguments, why):
    async def main():
        async with hosts_of(tmp_path, [{}]) as made:
            with pytest.raises(RequestError, match=why):
                await made.operate("constrain", **arguments)
            answer = await made.operate("nodes")
            assert (answer["constraint"], answer["constraints"]) == ({}, [])

    run(main, timeout_s=20)


@pytest.mark.parametrize(
    ("capacity", "why"),
    [
        ({"weight": 0.0}, r"weight 0.0 is outside the allowed range 0.01..1000"),
        ({"weight": float("nan")}, "weight nan"),
        ({"replicas_max": -1}, "replicas_max -1 is outside the allowed range 0.."),
        ({"replicas_max": 2.5}, "replicas_max 2.5"),
        ({"labels": {"a b": "c"}}, "label 'a b'"),
        ({"labels": {f"l{number}": "" for number in range(65)}}, "65 labels are more than the 64 allowed"),
    ],
)
def test_a_host_that_is_told_nonsense_does_not_start(tmp_path, capacity, why):
    with pytest.raises(SettingsError, match=why):
        dataclasses.replace(make_config(tmp_path), **capacity)


def test_labels_as_kubernetes_has_them_are_labels(tmp_path):
    labels = {"topology.kubernetes.io/zone": "eu-west-1a", "node-role.kubernetes.io/control-plane": "", "disk": "ssd"}
    assert dataclasses.replace(make_config(tmp_path), labels=labels).labels == labels


def test_what_was_remembered_before_there_were_labels_is_read():
    old = msgspec.msgpack.encode({"intents": {"node-1": [2, 1, 0]}, "nodes": {"host-1": ["node-1", "zone-1"]}, "frozen_why": ""})
    state = msgspec.msgpack.decode(old, type=PlacementState)
    assert state.nodes == {"host-1": HostRecord("node-1", "zone-1", Capacity())}
    assert (state.constraint, state.constraints) == ({}, {})
    new = PlacementState(nodes={"host-1": HostRecord("node-1", "", Capacity({"disk": "ssd"}, 2.0, 7))}, constraints={3: {"gpu": "yes"}})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=PlacementState) == new


def test_a_host_tells_of_each_partition_how_large_it_is(tmp_path):
    async def main():
        async with one_host(tmp_path) as (made, client):
            await client.get(Worker, actor_on(1, "Worker")).keep(300_000)
            await client.get(Worker, actor_on(3, "Worker")).keep(100_000)

            def sizes():
                return {led.id: led.bytes for led in made.hosts[0]._placing.own_report().led}

            await until(lambda: sizes()[1] > 300_000 and sizes()[3] > 100_000, 5)
            assert sizes()[1] < 310_000
            assert sizes()[3] < 110_000
            assert max(sizes()[number] for number in (2, 4)) < 1_000
            while (await made.nodes())["node-1"]["bytes"] < 400_000:  # the manager has not looked again yet
                await asyncio.sleep(0.05)
            assert (await made.nodes())["node-1"]["bytes"] < 420_000
            await made.stop(0)
            await made.start(0)
            await until(lambda: len(made.members()) == 5, 10)
            assert 235_000 < sizes()[1] < 365_000  # what is stored is within 64 KiB

    run(main, timeout_s=20)


# -- what actors report


def test_the_load_of_a_partition_is_the_sum_over_its_actors_in_memory(tmp_path):
    async def main():
        async with one_host(tmp_path, activation_idle_s=0.5) as (made, client):
            partition = made.hosts[0].partitions[2]
            one, other = (actor_on(2, "Worker", prefix) for prefix in ("a", "b"))
            await client.get(Worker, one).work(2.5)
            await client.get(Worker, other).work(1)
            assert partition.load.total == 3.5
            await client.get(Worker, one).look(4)
            assert partition.load.total == 5.0
            with pytest.raises(ActorError, match="it came to nothing"):
                await client.get(Worker, one).work_and_fail(6)
            assert partition.load.total == 7.0  # it is no state
            await client.get(Worker, other).work_in_a_thread(0.5)
            assert partition.load.total == 6.5
            assert sum(each.load.total for each in made.hosts[0].partitions.values()) == 6.5
            await client.get(Worker, one).work(1e300)
            await client.get(Worker, one).work(0)
            assert partition.load.total == 0.5
            await until(lambda: not partition.activations, 10)
            assert partition.load.total == 0.0

    run(main, timeout_s=30)


@pytest.mark.parametrize("what", [-1, -0.001, "nan", "inf", "much", None, True, [1]])
def test_what_is_no_load_is_refused(tmp_path, what):
    async def main():
        async with one_host(tmp_path) as (made, client):
            worker = client.get(Worker, "w")
            await worker.work(3)
            with pytest.raises(ActorError, match=r"grid.report_load: load must be a finite number, 0 or more, got") as caught:
                await worker.say(what)
            assert caught.value.remote_type.endswith(InvalidArgumentError.__name__)
            assert sum(each.load.total for each in made.hosts[0].partitions.values()) == 3.0

    run(main, timeout_s=20)


def test_outside_a_turn_there_is_no_load_to_report():
    with pytest.raises(RequestError, match=r"grid.report_load\(\) work only inside a turn"):
        grid.report_load(1.0)


def test_a_host_with_much_reported_load_gives_primaries_away_and_none_comes_back(tmp_path):
    async def main():
        async with (
            hosts_of(tmp_path, [{}, {}, {}], partitions=8) as made,
            grid.connect(seeds(made.up), settings=PATIENT) as client,
        ):
            await until(lambda: sorted(sum(p.serving for p in host.partitions.values()) for host in made.up) == [3, 3, 3], 15)
            busiest = next(index for index in range(3) if index != made.hosts.index(made.manager()))
            hot = [number for number in range(1, 9) if made.primary_of(number) == busiest]
            assert len(hot) == 3
            workers = [client.get(Worker, actor_on(number, "Worker", count=8)) for number in hot]
            is_over = False

            async def work(worker):
                while not is_over:
                    await worker.work(10.0)
                    await asyncio.sleep(0.02)

            working = [asyncio.create_task(work(worker)) for worker in workers]
            await until(lambda: sorted(made.primary_of(number) or 0 for number in hot) == [0, 1, 2], 20)
            moves = [*made.moves()]
            assert any("load, the mean is" in move.why for move in moves), moves
            await asyncio.sleep(3.0)
            assert sorted(made.primary_of(number) for number in hot) == [0, 1, 2]
            assert [*made.moves()] == moves
            loads = [node["load"] for node in (await made.nodes()).values()]
            assert min(loads) > 0.5 * max(loads), loads
            is_over = True
            for task in working:
                await task

    run(main, timeout_s=45)


def report_of(name, epoch, load, is_led=True):
    led = LedPartition(1, epoch, 1, False, False, [Member("a", 1), Member("b", 1)], [], "", ["a", "b"], ["a", "b"], [], 0, 10 * load, load)
    return HostReport(HostName(name), name, "", 0, False, [led] if is_led else [], [])


def test_what_a_partition_did_is_not_forgotten_when_its_primary_changes():
    overview = Overview(["a", "b"], 0.0)

    def load_at(now_s):
        view = overview.observation(
            now_s,
            intents={},
            nodes={},
            replica_set_size=2,
            partition_count=1,
            busy={},
            frozen_why="",
            constraint_of=lambda _: {},
        ).partitions[0]
        assert view.calls_per_s == pytest.approx(10 * view.load)
        return view.load

    overview.take(report_of("a", 1, 5.0), 0.0)
    assert load_at(0.0) == 5.0
    overview.take(report_of("a", 1, 0.0, is_led=False), 1.0)
    overview.take(report_of("b", 2, 0.0), 1.0)  # which measures from nothing on
    assert load_at(1.0) == 5.0
    overview.take(report_of("b", 2, 5.0 * 0.632), 61.0)
    assert load_at(61.0) == pytest.approx(5.0, abs=0.01)
    overview.take(report_of("a", 3, 0.0), 62.0)
    assert load_at(62.0) == pytest.approx(5.0, abs=0.05)  # and so is what was known of the one before
    assert load_at(122.0) == pytest.approx(5.0 * 0.368, abs=0.05)
    assert load_at(600.0) == 0.0
