"""The lineage in an epoch: higher after each loss, never reached by elections, different for two who lose at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actorgrid.replication.lineage import LOTS, data_loss_number, first_epoch_after_loss, lineage

ELECTIONS = st.integers(0, (1 << 32) - 1)
LOT = st.integers(0, LOTS - 1)


@given(ELECTIONS, LOT, ELECTIONS, LOT)
def test_whatever_was_elected_before_a_loss_stays_below(before, lot, after, next_lot):
    first = first_epoch_after_loss(before, lot)
    assert (data_loss_number(before), data_loss_number(first)) == (0, 1)
    assert lineage(first + after) == lineage(first) > lineage(before) == 0
    second = first_epoch_after_loss(first + after, next_lot)
    assert data_loss_number(second) == 2
    assert second > first + after
    assert second < 1 << 64


@given(ELECTIONS, ELECTIONS, LOT, LOT)
def test_two_who_lose_at_once_are_told_apart(one, other, lot, other_lot):
    first, second = first_epoch_after_loss(one, lot), first_epoch_after_loss(other, other_lot)
    assert (lineage(first) == lineage(second)) == (lot == other_lot)
