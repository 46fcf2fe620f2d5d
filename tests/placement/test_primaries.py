"""Primaries become even wherever they can, whatever lasts elsewhere."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from placement.limits import Limits
from placement.simulation import SimulatedPartition, Simulation

FEW, MANY = [f"few-{number}" for number in range(3)], [f"many-{number}" for number in range(4)]


def primaries(simulation: Simulation) -> Counter[str]:
    return Counter(partition.primary for partition in simulation.partitions)


@pytest.mark.parametrize("lasts_on", ["", MANY[0], MANY[3]])
def test_a_group_with_few_is_evened_beside_one_with_many_in_which_a_build_lasts(lasts_on: str) -> None:
    simulation = Simulation(random.Random(1), limits=Limits(quiet_s=0))
    for group, label in ((FEW, "few"), (MANY, "many")):
        for name in group:
            simulation.add_host(name, labels={"group": label})
    for number in range(12):  # all on the first one
        simulation.partitions.append(SimulatedPartition(number, list(FEW), 1000, 1.0, {"group": "few"}))
    for number in range(12, 92):
        voters = [MANY[(number + place) % 4] for place in range(3)]
        simulation.partitions.append(SimulatedPartition(number, voters, 1000, 1.0, {"group": "many"}))
    if lasts_on:
        built = next(each for each in simulation.partitions[12:] if lasts_on not in each.voters)
        built.building = {lasts_on: 1e9}
    for _ in range(60):
        simulation.tick()
    assert [primaries(simulation)[name] for name in FEW] == [4, 4, 4]
    assert simulation.commands["Swap"] <= 12
    counts = [primaries(simulation)[name] for name in MANY]
    assert max(counts) - min(counts) <= (2 if lasts_on else 1)  # what would go over others waits for the replica on its way


def test_nothing_goes_over_a_third_host_while_replicas_arrive() -> None:
    simulation = Simulation(random.Random(1))
    for number in range(6):
        simulation.add_host(f"host-{number}")
    simulation.create_partitions(96)
    for _ in range(40):
        simulation.tick()
    simulation.commands.clear()
    simulation.add_host("host-6")
    before = {partition.id: partition.primary for partition in simulation.partitions}
    for _ in range(120):
        simulation.tick()
    moved = [partition for partition in simulation.partitions if partition.primary != before[partition.id]]
    assert {partition.primary for partition in moved} == {"host-6"}
    assert simulation.commands["Swap"] == len(moved) == primaries(simulation)["host-6"]
    assert max(primaries(simulation).values()) - min(primaries(simulation).values()) <= 1
