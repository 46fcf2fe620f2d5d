"""Scenarios in words, each with and without lost commands; nothing unsafe may be ordered on the way (the simulation looks)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from placement.scenario import Scenario, ScenarioError

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"), key=lambda path: path.name)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    Scenario(random.Random(1)).run(path.read_text())


@pytest.mark.parametrize("text", ["hosts", "hosts 3 rooms 2", "dance", "hosts 3\nintent host-9 restart", "hosts 3\nexpect moves ~ 3"])
def test_a_line_that_makes_no_sense_is_named(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"^line \d"):
        Scenario(random.Random(1)).run(text)


def test_what_is_expected_and_not_so_is_told_with_what_is() -> None:
    with pytest.raises(ScenarioError, match=r"line 3, 'expect replicas host-1 == 7': it is 6"):
        Scenario(random.Random(1)).run("hosts 3\npartitions 6\nexpect replicas host-1 == 7")
