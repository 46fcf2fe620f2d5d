"""The read leases against the bugs that `Leases.tla` plants: one short schedule each, which only the bug makes unsafe (I8).

Every schedule runs twice: the core passes it, and does in it what shows that it was put to the test; the core with the bug breaks the
invariant. All by hand: messages wait until they are delivered, beats go by themselves unless they are held.
"""

from __future__ import annotations

from collections.abc import Callable

import bugs
import pytest
from core_cluster import Beat, BeatAnswer, Cluster

from actorgrid.errors import InvariantViolation
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.liveness import MS, Liveness, Times
from actorgrid.replication.messages import AppendAck, CampaignNow, VoteRequest
from actorgrid.replication.replica import Replica, Role

A, B, C = Member("a", 1), Member("b", 1), Member("c", 1)
Schedule = Callable[[Cluster], None]


def started(cluster: Cluster) -> None:
    """`a` is primary of epoch 1, everybody is fortified by it, and it has a lease."""
    cluster.go_on(300 * MS)
    primary = cluster.replica("a")
    assert (primary.role, primary.epoch, primary.serving) == (Role.PRIMARY, 1, True)
    assert has_lease(cluster, "a")


def has_lease(cluster: Cluster, name: str) -> bool:
    return cluster.replica(name).has_lease(cluster.hosts[name].local_ns)


def deafen(cluster: Cluster, name: str, *to: str) -> None:
    """`name` hears nothing of `to` any more; they hear it."""
    for other in to:
        cluster.cut(other, name)


def primaries(cluster: Cluster) -> dict[str, int]:
    return {host.name: replica.epoch for host, replica in cluster.replicas() if replica.role is Role.PRIMARY}


# -- the eight of Leases.tla


def a_secondary_that_hears_no_primary_asks_one_that_does(cluster: Cluster) -> None:
    started(cluster)
    deafen(cluster, "c", "a")
    cluster.go_on(4_000 * MS)
    assert primaries(cluster) == {"a": 1}
    assert has_lease(cluster, "a")


def an_answer_to_a_beat_is_late(cluster: Cluster) -> None:
    started(cluster)
    cluster.holds_beats = True
    beat_from_a(cluster)
    (number,) = cluster.between("a", "b", Beat)
    cluster.deliver(number)
    cluster.isolate("a")
    cluster.run(1_400 * MS)
    cluster.heal("b", "a")
    for answer in cluster.between("b", "a", BeatAnswer):
        cluster.deliver(answer)
    cluster.cut("b", "a")
    elect(cluster, "c", "b")
    cluster.judge.sees_leases(1)
    assert primaries(cluster) == {"a": 1, "c": 2}


def beat_from_a(cluster: Cluster) -> None:
    while not cluster.between("a", "b", Beat):
        cluster.run(10 * MS)


def elect(cluster: Cluster, candidate: str, voter: str) -> None:
    """Only these two talk until one is elected."""
    for _ in range(500):
        cluster.run(10 * MS)
        cluster.settle([name for name in cluster.hosts if name not in (candidate, voter)])
        if cluster.replica(candidate).role is Role.PRIMARY:
            return
        for number in cluster.between(voter, candidate, VoteRequest):
            cluster.drop(number)
    raise AssertionError(f"{candidate} is not elected")


def superseded(cluster: Cluster) -> None:
    """`a` was cut off for long; `b` follows `c`, primary of epoch 2; `a` has not heard of it, and can hear and be heard again."""
    started(cluster)
    cluster.pause("a")
    elect(cluster, "c", "b")
    cluster.settle(["a"])
    assert cluster.replica("b").primary == C
    for number in list(cluster.in_flight):
        cluster.drop(number)
    cluster.hosts["a"].held.clear()
    for peer in ("b", "c"):
        cluster.hosts["a"].liveness.heard(peer, cluster.hosts["a"].local_ns)
    cluster.resume("a")
    cluster.cut("a", "c")
    cluster.cut("c", "a")


def support_begins_again_under_another_number(cluster: Cluster) -> None:
    superseded(cluster)
    cluster.run(300 * MS)
    assert cluster.hosts["a"].liveness.received("b").number > 0
    assert primaries(cluster) == {"a": 1, "c": 2}
    assert not has_lease(cluster, "a")


def an_append_of_an_old_epoch_asks_for_a_lease(cluster: Cluster) -> None:
    superseded(cluster)
    cluster.run(300 * MS)
    for number in cluster.between("a", "b"):
        cluster.deliver(number)
    for number in cluster.between("b", "a", AppendAck):
        cluster.deliver(number)
    cluster.judge.sees_leases(1)
    assert not has_lease(cluster, "a")


def the_primary_hands_over(cluster: Cluster) -> None:
    started(cluster)
    cluster.swap("a", B)
    (number,) = cluster.between("a", "b", CampaignNow)
    cluster.deliver(number)
    cluster.sync("b")
    for request in cluster.between("b", "c", VoteRequest):
        cluster.deliver(request)
    cluster.sync("c")
    for vote in cluster.between("c", "b"):
        cluster.deliver(vote)
    assert primaries(cluster) == {"b": 2}


def a_voter_restarts_under_a_lease(cluster: Cluster) -> None:
    started(cluster)
    deafen(cluster, "c", "a")
    cluster.go_on(3_000 * MS)
    assert has_lease(cluster, "a")
    cluster.cut("a", "b")
    cluster.cut("b", "a")
    cluster.crash("b")
    cluster.start("b")
    cluster.connect("b", "c")
    cluster.go_on(1_000 * MS)
    assert has_lease(cluster, "a")
    assert primaries(cluster) == {"a": 1}


def a_release_of_an_earlier_epoch_comes_late(cluster: Cluster) -> None:
    started(cluster)
    cluster.swap("a", B)
    cluster.deliver(cluster.between("a", "b", CampaignNow)[0])
    cluster.sync("b")
    late = cluster.duplicate(cluster.between("b", "c", VoteRequest)[0])
    held = cluster.in_flight.pop(late)
    cluster.settle()
    cluster.go_on(300 * MS)
    cluster.swap("b", A)
    cluster.settle()
    cluster.go_on(300 * MS)
    assert primaries(cluster) == {"a": 3}
    deafen(cluster, "b", "a")
    cluster.go_on(1_600 * MS)
    assert cluster.replica("c").primary == A
    cluster.in_flight[late] = held
    cluster.deliver(late)
    cluster.go_on(3_000 * MS)
    assert primaries(cluster) == {"a": 3}
    assert has_lease(cluster, "a")


def a_death_of_long_ago_is_remembered(cluster: Cluster) -> None:
    started(cluster)
    cluster.crash("a")
    cluster.tell_death("a", 1, ["b", "c"])
    cluster.start("a")
    cluster.connect_all()
    cluster.go_on(3_000 * MS)
    ((primary, _),) = primaries(cluster).items()
    cluster.swap(primary, A)
    cluster.go_on(600 * MS)
    assert list(primaries(cluster)) == ["a"]
    deafen(cluster, "b", "a")
    cluster.go_on(4_000 * MS)
    assert list(primaries(cluster)) == ["a"]
    assert has_lease(cluster, "a")


CASES: list[tuple[type[Replica] | type[Liveness], Schedule]] = [
    (bugs.VotesWhileBound, a_secondary_that_hears_no_primary_asks_one_that_does),
    (bugs.LeaseCountedFromReceipt, an_answer_to_a_beat_is_late),
    (bugs.OldLeaseRevived, support_begins_again_under_another_number),
    (bugs.ServesAfterRelease, the_primary_hands_over),
    (bugs.OldEpochFortifies, an_append_of_an_old_epoch_asks_for_a_lease),
    (bugs.NoQuietTimeAfterARestart, a_voter_restarts_under_a_lease),
    (bugs.ReleaseOfAnyEpoch, a_release_of_an_earlier_epoch_comes_late),
    (bugs.DeathOfAnyIncarnation, a_death_of_long_ago_is_remembered),
]


def cluster_with(bug: type[Replica] | type[Liveness] | None, times: Times | None = None, rates: tuple[int, ...] = ()) -> Cluster:
    replica_class = bug if bug is not None and issubclass(bug, Replica) else Replica
    liveness_class = bug if bug is not None and issubclass(bug, Liveness) else Liveness
    return Cluster("abc", seed=1, times=times, rates=rates, replica_class=replica_class, liveness_class=liveness_class)


@pytest.mark.pure
@pytest.mark.parametrize(("bug", "schedule"), CASES, ids=[bug.__name__ for bug, _ in CASES])
def test_each_planted_bug_breaks_the_lease_and_the_core_does_not(bug, schedule):
    schedule(cluster_with(None))
    with pytest.raises(InvariantViolation) as caught:
        schedule(cluster_with(bug))
    assert caught.value.invariant == "I8"


# -- two more, which the model leaves to arithmetic and to one configuration


def the_clock_of_the_primary_is_slow(cluster: Cluster) -> None:
    """When c's promise of 1,500 ms ends, 1,389 ms have passed for a: more than a lease, less than the support without a margin."""
    started(cluster)
    cluster.isolate("a")
    elect(cluster, "c", "b")
    cluster.judge.sees_leases(1)
    assert primaries(cluster) == {"a": 1, "c": 2}


def test_a_lease_without_the_drift_margin_outlives_the_promise():
    times = Times(election_low_ns=1_500 * MS, election_high_ns=1_500 * MS)
    rates = (1000, 1100, 1080)
    the_clock_of_the_primary_is_slow(cluster_with(None, times, rates))
    with pytest.raises(InvariantViolation) as caught:
        the_clock_of_the_primary_is_slow(cluster_with(bugs.LeaseOffByTheDriftMargin, times, rates))
    assert caught.value.invariant == "I8"


def the_primary_removes_itself_and_the_last_voter_restarts(cluster: Cluster) -> None:
    started(cluster)
    cluster.configure("a", Configuration(2, (A, B)))
    cluster.settle()
    cluster.configure("a", Configuration(3, (B,)))
    cluster.sync("a")
    (number,) = cluster.between("a", "b")
    cluster.deliver(number)
    cluster.sync("b")
    assert has_lease(cluster, "a")
    cluster.isolate("a")
    cluster.crash("b")
    cluster.start("b")
    cluster.run(1_000 * MS)
    cluster.settle(["a"])
    cluster.judge.sees_leases(1)
    assert has_lease(cluster, "a")
    assert primaries(cluster) == {"a": 1}


@pytest.mark.pure
def test_a_lone_voter_keeps_the_promises_of_its_last_life_while_others_may_vote_too():
    the_primary_removes_itself_and_the_last_voter_restarts(cluster_with(None))
    with pytest.raises(InvariantViolation) as caught:
        the_primary_removes_itself_and_the_last_voter_restarts(cluster_with(bugs.LoneVoterForgetsItsPromise))
    assert caught.value.invariant == "I8"
