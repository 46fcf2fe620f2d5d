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
from actorgrid.replication.configuration import Member
from actorgrid.replication.liveness import MS
from actorgrid.replication.messages import AppendAck, ReplicaMissing
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


def test_a_replica_is_not_lost_by_what_was_said_before_it_was_built():
    cluster = Cluster("abcd", voters="abc")
    lost: list[ev.ReplicaLost] = []
    cluster.on_effect = lambda host, replica, effect: lost.append(effect) if isinstance(effect, ev.ReplicaLost) else None
    cluster.go_on(500 * MS)
    primary = next(host.name for host, replica in cluster.replicas() if replica.serving)
    cluster.configure(primary, cluster.replica(primary).configuration.with_idle(Member("d", 1)))
    cluster.settle()
    (copy,) = cluster.copies
    cluster.end_copy(copy, is_good=False)
    cluster.run(2_500 * MS)  # it is asked whether it is there after all
    for number in cluster.between(primary, "d"):
        cluster.deliver(number)
    said, *_ = cluster.between("d", primary, ReplicaMissing)
    late = cluster.duplicate(said)
    cluster.deliver(said)
    (copy,) = cluster.copies
    assert cluster.end_copy(copy)
    for number in cluster.between(primary, "d"):
        cluster.deliver(number)
    cluster.sync("d")
    for number in cluster.between("d", primary, AppendAck):
        cluster.deliver(number)

    cluster.deliver(late)

    cluster.settle()
    assert not lost
    assert cluster.replica("d").committed_lsn == cluster.replica(primary).committed_lsn

    cluster.crash("d")
    cluster.lose_disk("d")
    cluster.start("d")
    cluster.connect_all()
    cluster.settle()
    assert [each.member for each in lost] == [Member("d", 1)], "without its disk it says the same in another life, and means it"


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
