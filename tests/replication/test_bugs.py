"""Bugs that are switched on must be found: by a short schedule where one is known, else by random walks, within so many seeds.

What no test can find is not tested (faults.md, rule 10). The bugs of the leases are in `test_leases`.
"""

from __future__ import annotations

import bugs
import pytest
from core_cluster import Cluster
from core_walk import Walk, WalkSettings

from actorgrid.errors import InvariantViolation
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.liveness import MS
from actorgrid.replication.messages import Append, CampaignNow, VoteRequest
from actorgrid.replication.replica import Replica, Role

pytestmark = pytest.mark.pure

A, B, C, D, E = (Member(name, 1) for name in "abcde")


def started(cluster: Cluster) -> None:
    """`a` is primary of epoch 1, and everybody has its first entry."""
    cluster.go_on(300 * MS)
    assert cluster.replica("a").serving


def found(schedule, bug: type[Replica], **settings) -> str:
    """The core passes the schedule; the invariant that the core with the bug breaks in it."""
    schedule(Cluster("abc", seed=1, **settings))
    with pytest.raises(InvariantViolation) as caught:
        schedule(Cluster("abc", seed=1, replica_class=bug, **settings))
    return caught.value.invariant


# -- by a schedule


def two_candidates_of_one_epoch(cluster: Cluster) -> None:
    cluster.run(700 * MS)
    for candidate in ("a", "c"):
        for number in cluster.between(candidate, "b", VoteRequest):
            cluster.deliver(number)
        for number in cluster.between("b", candidate):
            cluster.deliver(number)
        cluster.sync(candidate)
    assert (cluster.replica("a").epoch, cluster.replica("c").epoch) == (1, 1)
    for candidate in ("a", "c"):
        for number in cluster.between(candidate, "b", VoteRequest):
            cluster.deliver(number)
        cluster.sync("b")
    for candidate in ("a", "c"):
        for number in cluster.between("b", candidate):
            cluster.deliver(number)
    assert [replica.role for _, replica in cluster.replicas()].count(Role.PRIMARY) == 1


def test_who_forgets_its_vote_elects_two():
    assert found(two_candidates_of_one_epoch, bugs.VotesTwiceInOneEpoch) == "I1"


def an_old_primary_goes_on_appending(cluster: Cluster) -> None:
    started(cluster)
    cluster.isolate("a")
    cluster.propose("a", 3)
    late = [cluster.in_flight.pop(number) for number in cluster.between("a", "b", Append)]
    cluster.go_on(5_000 * MS, ["a"])
    assert cluster.replica("b").epoch > 1
    cluster.heal()
    rejected = cluster.replica("b").rejected_total
    for envelope in late:
        cluster.in_flight[envelope.number] = envelope
        cluster.deliver(envelope.number)
    assert cluster.replica("b").rejected_total == rejected + len(late) > 0


def test_appends_of_an_old_epoch_are_refused():
    assert found(an_old_primary_goes_on_appending, bugs.NoEpochCheckOfAppends) in ("I1", "I3")


def a_message_finds_the_replica_after(cluster: Cluster) -> None:
    started(cluster)
    cluster.propose("a", 1)
    late = [cluster.in_flight.pop(number) for number in cluster.between("a", "b", Append)]
    cluster.settle()
    cluster.crash("b")
    cluster.lose_disk("b")
    cluster.start("b")
    cluster.connect_all()
    cluster.settle()
    cluster.configure("a", cluster.replica("a").configuration.replaced(B, Member("b", 2)))
    cluster.settle()
    for number in list(cluster.copies):
        assert cluster.end_copy(number)
    cluster.settle()
    assert cluster.replica("b").me == Member("b", 2)
    rejected = cluster.replica("b").rejected_total
    for envelope in late:
        cluster.in_flight[envelope.number] = envelope
        cluster.deliver(envelope.number)
    assert cluster.replica("b").rejected_total == rejected + len(late) > 0


def test_what_was_meant_for_another_incarnation_is_refused():
    assert found(a_message_finds_the_replica_after, bugs.IgnoresTheReplicaIncarnation) == "I7"


def a_copy_is_overtaken_by_the_log(cluster: Cluster) -> None:
    """c lags, and a copy at 11 is made for it; then come appends up to 16, c acknowledges them, and they are committed."""
    started(cluster)
    cluster.propose("a", 10)
    cluster.settle(["c"])
    cluster.propose("a", 5)
    cluster.sync("a")
    for number in cluster.between("a", "b"):
        cluster.drop(number)
    late = [cluster.in_flight.pop(number) for number in cluster.between("a", "c")]
    assert cluster.replica("a").committed_lsn == 11
    cluster.truncate_log("a", 1, 12)
    while not cluster.copies:
        cluster.run(100 * MS)
        for number in cluster.between("a", "b"):
            cluster.drop(number)
        for pair in (("a", "c"), ("c", "a")):
            for number in cluster.between(*pair):
                cluster.deliver(number)
    for envelope in late:
        cluster.in_flight[envelope.number] = envelope
        cluster.deliver(envelope.number)
    cluster.sync("c")
    for number in cluster.between("c", "a"):
        cluster.deliver(number)
    assert (cluster.replica("a").committed_lsn, cluster.replica("c").committed_lsn) == (16, 11)
    for number in list(cluster.copies):
        cluster.end_copy(number)
    cluster.isolate("a")
    cluster.go_on(6_000 * MS, ["a"])
    pair = cluster.primary()
    assert pair is not None
    assert (pair[1].me, pair[1].epoch_start_lsn) == (C, 17)


def test_a_copy_does_not_take_the_place_of_what_was_acknowledged():
    assert found(a_copy_is_overtaken_by_the_log, bugs.TakesAnyCopy) == "I3"


def a_secondary_is_fed_past_configurations_of_long_ago(cluster: Cluster) -> None:
    """b was away while d and e became voters; c has seen only d. Fed nearly up to there, b must not win with c alone."""
    started(cluster)
    for way in (("a", "b"), ("b", "a"), ("c", "b"), ("b", "c")):
        cluster.cut(*way)
    for member in (D, E):
        if member == E:
            for _ in range(6):
                cluster.propose("a", 1)
        cluster.configure("a", cluster.replica("a").configuration.with_idle(member))
        cluster.settle(["b"])
        for number in list(cluster.copies):
            assert cluster.end_copy(number)
        cluster.settle(["b"])
        if member == E:
            for way in (("a", "c"), ("c", "a")):
                cluster.cut(*way)
            for _ in range(6):
                cluster.propose("a", 1)
            cluster.settle(["b", "c"])
        cluster.configure("a", cluster.replica("a").configuration.promoted(member))
        cluster.settle(["b", "c"] if member == E else ["b"])
    assert cluster.replica("a").configuration == Configuration(5, (A, B, C, D, E))
    assert cluster.replica("a").log.configuration_lsn <= cluster.replica("a").committed_lsn
    assert cluster.replica("c").configuration.version == 4
    for number in cluster.between("a", "b"):
        cluster.drop(number)
    cluster.heal("a", "b")
    cluster.heal("b", "a")
    cluster.chunk_records = 1
    while cluster.replica("b").last_lsn <= cluster.replica("c").last_lsn:
        cluster.run(10 * MS)
        for pair in (("a", "b"), ("b", "a")):
            for number in cluster.between(*pair):
                cluster.deliver(number)
        cluster.sync("b")
    assert cluster.replica("b").last_lsn < cluster.replica("a").log.configuration_lsn
    cluster.cut("a", "b")
    cluster.cut("b", "a")
    cluster.heal("b", "c")
    cluster.heal("c", "b")
    for way in (("c", "d"), ("b", "d"), ("c", "e"), ("b", "e")):
        cluster.cut(*way)
        cluster.cut(*reversed(way))
    cluster.go_on(6_000 * MS, ["a", "d", "e"])
    assert cluster.replica("b").configuration.version >= 4
    assert [host.name for host, replica in cluster.replicas() if replica.role is Role.PRIMARY] == ["a"]


def test_who_is_fed_from_the_log_learns_the_configurations_in_it():
    schedule = a_secondary_is_fed_past_configurations_of_long_ago
    schedule(Cluster("abcde", voters="abc", seed=1))
    with pytest.raises(InvariantViolation) as caught:
        schedule(Cluster("abcde", voters="abc", seed=1, replica_class=bugs.OldConfigurationsAreForgotten))
    assert caught.value.invariant in ("I3", "I5")


def the_hand_over_is_lost(cluster: Cluster) -> bool:
    """Whether somebody serves again within ten seconds, all hosts being well."""
    started(cluster)
    cluster.swap("a", B)
    for number in cluster.between("a", "b", CampaignNow):
        cluster.drop(number)
    cluster.go_on(10_000 * MS)
    return any(replica.serving for _, replica in cluster.replicas())


def test_a_lost_hand_over_stops_nobody_for_long():
    assert the_hand_over_is_lost(Cluster("abc", seed=1))
    assert not the_hand_over_is_lost(Cluster("abc", seed=1, replica_class=bugs.ReleaseIsForgotten))


# -- by random walks

#: The bug, the invariants that may break, and the seeds within which one must.
WALKS: list[tuple[type[Replica], set[str], int]] = [
    (bugs.EpochNotDurable, {"I1"}, 3),
    (bugs.EpochUsedAgainAfterARestart, {"I1", "I3"}, 5),
    (bugs.VotesBeforeTheSync, {"I1"}, 3),
    (bugs.VotesWithoutComparingLogs, {"I2", "I3"}, 20),
    (bugs.IdleSecondaryElects, {"I1", "I3", "I5"}, 20),
    (bugs.AcknowledgesBeforeTheSync, {"I2"}, 3),
    (bugs.CountsItsUnsyncedEntries, {"I2"}, 3),
    (bugs.CommitsWithOneLess, {"I2"}, 3),
    (bugs.CountsAnIdleSecondary, {"I2", "I5"}, 10),
    (bugs.CommitsEntriesOfAnOlderEpoch, {"I4"}, 5),
    (bugs.ServesBeforeItsFirstEntryIsCommitted, {"I4"}, 3),
    (bugs.TruncatesWithoutLooking, {"I2", "I3"}, 3),
    (bugs.SecondChangeWhileOneIsPending, {"I5"}, 10),
    (bugs.PromotesBeforeItHasCaughtUp, {"I13"}, 10),
]


@pytest.mark.parametrize(("bug", "invariants", "seeds"), WALKS, ids=[bug.__name__ for bug, *_ in WALKS])
def test_random_walks_find_the_bug(bug, invariants, seeds):
    broken = next((invariant for seed in range(seeds) if (invariant := first_broken(Walk(seed, WalkSettings(replica_class=bug))))), None)
    assert broken in invariants, f"{bug.__name__} within {seeds} seeds: {broken}"


def first_broken(walk: Walk) -> str:
    try:
        walk.stray()
    except InvariantViolation as violation:
        return violation.invariant
    return ""
