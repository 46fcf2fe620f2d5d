"""Several hosts against their scenarios (the language: `scenario_language`).

A scenario says what must come out, so it is written by hand from the specification, never recorded. The scenarios of one replica with every
effect are in ``golden`` (`test_golden`).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from core_cluster import Cluster
from scenario_language import ClusterWorld, steps_of

from actorgrid.replication import events as ev
from actorgrid.replication.liveness import MS
from actorgrid.replication.replica import STORY_LENGTH

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    (commands, nothing), *steps = steps_of(path.read_text())
    assert not nothing
    world = ClusterWorld(commands[0])
    for commands, expected in steps:
        got = [line for command in commands for line in world.do(command)]
        assert ("\n".join(got) or "nothing") == expected, f"{path.stem}: {commands}"


def test_there_is_a_scenario_for_each_situation():
    assert len(SCENARIOS) >= 25


def test_every_scenario_cites_the_rule_it_is_about():
    heads = {path.stem: path.read_text().partition("\n\n")[0] for path in SCENARIOS}
    assert [name for name, head in heads.items() if not any(word in head for word in ("§", "design.md", "Leases.tla", "figure"))] == []


def test_the_story_holds_the_last_events_only():
    cluster = Cluster("a")
    cluster.go_on(100 * MS)
    for _ in range(100):
        cluster.propose("a")
        cluster.settle()
    cluster.step(cluster.hosts["a"], 1, ev.EntriesProposed(1))
    story = cluster.replica("a").story()
    assert len(story) == STORY_LENGTH + 1
    assert "EntriesProposed 1" in story[-2]
    assert "AppendProposed" in story[-1]
