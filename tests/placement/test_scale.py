"""A thousand hosts, ten thousand partitions: a join costs no more moves than it must, a drain what it has, then there is rest."""

from __future__ import annotations

import math
import random

import pytest

from placement.observation import Intent
from placement.simulation import Simulation

HOSTS, PARTITIONS = 1000, 10_000


@pytest.fixture(name="large")
def _large() -> Simulation:
    simulation = Simulation(random.Random(1))
    for number in range(HOSTS):
        simulation.add_host(f"h{number}", zone=f"z{number % 4}")
    simulation.create_partitions(PARTITIONS)
    simulation.now_s = 1000.0
    return simulation


@pytest.mark.slow
def test_a_host_that_joins_a_thousand_gets_its_share_and_no_more_moves_than_that(large: Simulation) -> None:
    simulation = large
    for _ in range(3):
        assert not simulation.tick().commands
    simulation.add_host("new", zone="z0")
    for _ in range(60):
        simulation.tick()
    share = 3 * PARTITIONS // (HOSTS + 1)
    assert simulation.replicas_on("new") >= share
    assert simulation.commands["Build"] <= 1.1 * share
    assert simulation.spread()[1] <= 1
    simulation.commands.clear()
    for _ in range(20):
        simulation.tick()
    assert not simulation.commands


@pytest.mark.slow
def test_a_drain_of_one_of_a_thousand_moves_what_it_has(large: Simulation) -> None:
    simulation = large
    had = simulation.replicas_on("h17")
    simulation.set_intent("node-of-h17", Intent.REMOVE_NODE)
    for _ in range(60):
        plan = simulation.tick()
        if plan.drains[0].is_done:
            break
    assert plan.drains[0].is_done
    assert simulation.commands["Build"] == had


def test_ten_thousand_ticks_of_a_grid_at_rest_order_nothing() -> None:
    simulation = Simulation(random.Random(1))
    for number in range(6):
        simulation.add_host(f"h{number}", zone=f"z{number % 3}")
    simulation.create_partitions(30)
    simulation.add_host("late", zone="z1")
    for _ in range(200):
        simulation.tick()
    simulation.commands.clear()
    rng = random.Random(2)
    for tick in range(10_000):
        # What is reported are means over a minute: a few percent up and down are no reason to move anything, nor is the time of day.
        day = 300.0 * (1.0 + 0.5 * math.sin(tick / 500))
        for partition in simulation.partitions:
            partition.calls_per_s = day * (0.96 + 0.08 * rng.random())
        simulation.tick()
    assert not simulation.commands
