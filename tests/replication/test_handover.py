"""Handing over while disks are slow: the new primary's first campaign may end before its own vote is durable."""

from __future__ import annotations

import pytest
from core_cluster import Cluster

from actorgrid.replication.liveness import MS
from actorgrid.replication.replica import Role


@pytest.mark.parametrize("sync_ms", [1, 100, 200])
@pytest.mark.parametrize("voters", [3, 4])
def test_a_hand_over_needs_some_syncs_and_no_election_timeout(sync_ms: int, voters: int) -> None:
    names = list("abcd")[:voters]
    cluster = Cluster(names, voters=names, partitions=(1,), seed=5, auto=True)
    cluster.run(4_000 * MS)
    pair = cluster.primary()
    assert pair is not None
    host, primary = pair
    cluster.sync_ns = lambda: sync_ms * MS
    cluster.run(3_000 * MS)
    target = next(member for member in primary.configuration.voters if member.host != host.name)
    cluster.swap(host.name, target)
    cluster.run((100 + 8 * sync_ms) * MS)
    successor = cluster.replica(target.host)
    assert successor.role is Role.PRIMARY
    assert successor.serving
