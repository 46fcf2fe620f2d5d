"""What the core knows of its log: where two logs may agree, which configurations count, and records that are whole everywhere."""

from __future__ import annotations

import pytest
from core_cluster import Cluster

from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.liveness import MS
from actorgrid.replication.log_index import LogIndex
from actorgrid.replication.messages import Append

A, B, C, D = (Member(name, 1) for name in "abcd")
FIRST = Configuration(1, (A, B, C))
SECOND = Configuration(2, (A, B, C), (D,))
THIRD = Configuration(3, (A, B, C, D))


def log(start_lsn: int = 1, configurations: tuple[tuple[int, Configuration], ...] = ((0, FIRST),)) -> LogIndex:
    """1-4 of epoch 1, 5-6 of epoch 2, 7-9 of epoch 4."""
    return LogIndex(start_lsn, 9, [(1, 1), (5, 2), (7, 4)], list(configurations))


@pytest.mark.parametrize(
    ("lsn", "epoch", "hint"),
    [
        (9, 5, 9),  # of epoch 4 here: nothing of the primary's epoch 5 is here
        (8, 3, 6),  # nothing of epoch 4 can be there
        (9, 2, 6),
        (9, 1, 4),
        (6, 3, 6),
        (6, 1, 4),
        (4, 3, 4),
    ],
)
def test_the_hint_is_the_highest_position_that_can_be_the_same(lsn: int, epoch: int, hint: int) -> None:
    assert log().hint_below(lsn, epoch) == hint


def test_a_run_begins_where_its_epoch_does() -> None:
    assert [log().run_start(lsn) for lsn in (1, 4, 5, 8, 9)] == [1, 1, 5, 7, 7]


def test_who_is_sent_positions_from_before_the_oldest_known_configuration_gets_that_one() -> None:
    whole = log(configurations=((0, FIRST), (3, SECOND), (8, THIRD)))
    assert whole.configurations_between(2, 5) == [(3, SECOND)]
    assert whole.configurations_between(2, 8) == [(3, SECOND), (8, THIRD)]
    assert whole.configurations_between(8, 8) == []
    after_a_restart = log(configurations=((8, THIRD),))
    assert after_a_restart.configurations_between(2, 5) == [(8, THIRD)]
    assert after_a_restart.configurations_between(2, 8) == [(8, THIRD)]


def test_configurations_stay_as_long_as_the_log_goes_back() -> None:
    kept = log(configurations=((0, FIRST), (3, SECOND), (8, THIRD)))
    kept.drop_before(4)
    assert kept.configurations_between(0, 9) == [(3, SECOND), (8, THIRD)]
    kept.drop_before(9)
    assert kept.configurations_between(0, 9) == [(8, THIRD)]
    kept.truncate_from(9)
    assert kept.configuration == THIRD


def test_whom_the_newest_configuration_removes_votes_until_it_is_committed() -> None:
    smaller = log(configurations=((0, FIRST), (8, FIRST.without(A))))
    assert [smaller.is_voter(A, committed_lsn) for committed_lsn in (6, 7, 8, 9)] == [True, True, False, False]
    assert smaller.is_voter(B, 9)


def test_an_append_that_begins_inside_of_a_record_is_known_when_the_record_is() -> None:
    """What was sent to find out where the logs agree, and is delivered once more when they do."""
    cluster = Cluster("abc", seed=1)
    cluster.go_on(300 * MS)
    cluster.propose("a", 5)
    cluster.settle()
    replica = cluster.replica("b")
    assert (replica.last_lsn, replica.committed_lsn) == (6, 1)
    late = Append(1, 1, 1, 1, 3, 1, 1, [b""])
    assert not any(
        isinstance(e, ev.AppendRecords | ev.TruncateLog) for e in replica.step(ev.AppendReceived(late, [RecordHead(1, 2, 6)], "a", 1), 1)
    )
    assert replica.last_lsn == 6
