"""The core against its golden scenarios (the language: `scenario_language`).

A scenario says what must come out, so it is written by hand from the specification, never recorded.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_language import PARTITION, ReplicaWorld, steps_of, world_of

from actorgrid.replication import events as ev
from actorgrid.replication.replica import STORY_LENGTH

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    steps = steps_of(path.read_text())
    (first,), nothing = next(steps)
    assert not nothing
    world = world_of(first)
    for commands, expected in steps:
        got = [line for command in commands for line in world.do(command)]
        assert "\n".join(got) or "nothing" == expected, f"{path.stem}: {commands}"
        assert ("\n".join(got) or "nothing") == expected, f"{path.stem}: {commands}"


def test_there_is_a_scenario_for_each_situation():
    assert len(SCENARIOS) >= 40


def test_every_scenario_cites_the_rule_it_is_about():
    uncited = [
        path.stem
        for path in SCENARIOS
        if not any(word in path.read_text().partition("\n\n")[0] for word in ("§", "design", "Leases", "figure"))
    ]
    assert uncited == []


def test_the_story_holds_the_last_events_only():
    world = ReplicaWorld("replica a of a".split())
    world.do("recovered")
    for _ in range(100):
        world.do("time +1s")
        world.do("synced")
    world.step(ev.EntriesProposed(1))
    story = world.replica.story()
    assert len(story) == STORY_LENGTH
    assert "EntriesProposed" in story[-1]
    assert world.replica.partition == PARTITION
