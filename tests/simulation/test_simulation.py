"""A slice of the simulation for the ordinary suite; ``make sim`` and ``make sim-many`` run more."""

from __future__ import annotations

import collections
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actorgrid.testing.simulation.disk import SimDatabase
from tests.simulation import plan as plans
from tests.simulation.deeds import Deeds
from tests.simulation.run import run

HERE = Path(__file__).parent
SCENARIOS = sorted((HERE / "scenarios").glob("*.plan"))
SEEDS = (3, 17, 40, 96, 107, 212, 311)


@pytest.mark.pure  # the judge's counts
@pytest.mark.parametrize("seed", SEEDS)
def test_a_grid_keeps_its_promises(seed):
    result = run(plans.draw(seed))
    assert not result.broken, result.broken
    assert result.counts["commits"] > 20  # it did something


@pytest.mark.parametrize("path", SCENARIOS, ids=[path.stem for path in SCENARIOS])
def test_what_was_found_once_is_not_there_any_more(path):
    result = run(plans.load(path))
    assert not result.broken, result.broken


def test_there_are_scenarios():
    assert SCENARIOS


def digests_with(hash_seed: str) -> list[str]:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "1-4", "--digest", "--processes", "1"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    found = subprocess.run(command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, check=True, timeout=100)
    return [line for line in found.stdout.splitlines() if line.startswith("digest")]


def test_one_seed_is_one_run_whatever_the_hash_seed_of_the_process():
    first = digests_with("0")
    assert len(first) == 4
    assert first == digests_with("4242")


def test_a_plan_is_its_text():
    for seed in range(200):
        drawn = plans.draw(seed)
        assert plans.parse(str(drawn)) == drawn


def test_a_plan_that_was_written_down_is_the_same_run():
    drawn = plans.draw(5)
    assert run(drawn).digest == run(plans.parse(str(drawn))).digest != run(plans.draw(6)).digest


@pytest.mark.parametrize("line", ["at 1 explode", "knob nothing 3", "sed 4", "at x kill host-1"])
def test_a_line_that_is_none_is_named(line):
    with pytest.raises(ValueError, match="line 2 of the plan"):
        plans.parse(f"seed 1\n{line}\n")


def test_every_verb_can_be_done():
    done = {name.removeprefix("do_").replace("_", "-") for name in vars(Deeds) if name.startswith("do_")}
    assert done == set(plans.VERBS)


@pytest.mark.pure
@pytest.mark.parametrize("seed", [3, 96, 212])
def test_a_grid_keeps_its_promises_when_half_of_the_syncs_are_made_on_the_spot(seed, monkeypatch):
    """A quick disk is synced by the loop itself (decision 17): in one step, with losses of power and errors as ever."""
    asked, made = itertools.count(), collections.Counter()
    monkeypatch.setattr(SimDatabase, "is_quick", property(lambda self: not self._disk.is_stalled and next(asked) % 2 == 0))
    sync_now = SimDatabase.sync_now

    def counted(self):
        made["in a thread" if self._is_reporting else "on the spot"] += 1
        sync_now(self)

    monkeypatch.setattr(SimDatabase, "sync_now", counted)
    result = run(plans.draw(seed))
    assert not result.broken, result.broken
    assert min(made["in a thread"], made["on the spot"]) > 100
