import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actorgrid.actor.view import MemorySource, StateView

START, STOP = b"", b"\xff"


class CountingSource(MemorySource):
    """Counts look-ups."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0

    def get(self, suffix: bytes) -> bytes | None:
        self.gets += 1
        return super().get(suffix)


def view_of(**entries: bytes) -> tuple[StateView, MemorySource]:
    source = MemorySource()
    source.entries = {key.encode(): value for key, value in entries.items()}
    return StateView(source, writable=True), source


def commit(view: StateView, lsn: int) -> list[tuple[bytes, bytes | None]]:
    changes = view.take_changes()
    view.logged(lsn)
    return changes


def test_changes_are_the_last_value_of_each_key_in_first_touched_order():
    view, _ = view_of(a=b"1")
    view.put(b"b", b"1")
    view.delete(b"a")
    view.put(b"b", b"2")
    assert view.take_changes() == [(b"b", b"2"), (b"a", None)]


def test_putting_what_is_there_and_deleting_what_is_not_are_no_changes():
    view, _ = view_of(a=b"1")
    assert view.put(b"a", b"1") is False
    assert view.delete(b"b") is False
    assert view.take_changes() == []
    assert not view.unsettled


def test_put_says_whether_the_key_is_new_and_delete_whether_it_was_there():
    view, _ = view_of(a=b"1")
    assert (view.put(b"a", b"2"), view.put(b"b", b"1"), view.put(b"b", b"2")) == (False, True, False)
    assert (view.delete(b"a"), view.delete(b"a"), view.put(b"a", b"1")) == (True, False, True)


def test_logged_changes_stay_visible_until_they_are_settled():
    view, source = view_of(a=b"1")
    view.put(b"a", b"2")
    changes = commit(view, 7)
    view.settle(6)
    assert view.get(b"a") == b"2"
    assert view.unsettled
    source.apply(changes)
    view.settle(7)
    assert view.get(b"a") == b"2"
    assert not view.unsettled


def test_a_change_made_again_later_outlives_the_settling_of_the_first_one():
    view, source = view_of()
    view.put(b"a", b"1")
    source.apply(commit(view, 1))
    view.put(b"a", b"2")
    commit(view, 2)
    view.settle(1)
    assert view.get(b"a") == b"2"


def test_a_rollback_after_a_settle_in_the_same_turn_goes_back_to_the_source():
    view, source = view_of()
    view.put(b"a", b"1")
    changes = commit(view, 1)
    view.put(b"a", b"2")
    source.apply(changes)
    view.settle(1)
    assert view.get(b"a") == b"2"
    view.rollback()
    assert view.get(b"a") == b"1"
    assert not view.unsettled


def test_changes_that_were_taken_and_not_logged_can_be_rolled_back():
    view, _ = view_of(a=b"1")
    view.put(b"a", b"2")
    view.take_changes()
    view.rollback()
    assert view.get(b"a") == b"1"
    assert view.take_changes() == []


@pytest.mark.parametrize("write", [lambda view: view.put(b"seen\0k", b"1"), lambda view: view.delete(b"seen\0k")])
def test_a_write_in_a_turn_that_may_not_names_the_field(write):
    view, _ = view_of()
    view.writable = False
    with pytest.raises(TypeError, match=r"a @grid\.read method may change nothing: it changed the field 'seen'"):
        write(view)
    assert not view.unsettled


def test_a_view_is_not_writable_until_the_host_says_so():
    with pytest.raises(TypeError):
        StateView(MemorySource()).put(b"a", b"1")


def test_mistakes_of_the_host_are_assertions():
    view, _ = view_of()
    view.put(b"a", b"1")
    with pytest.raises(AssertionError, match="in the middle of a turn"):
        view.logged(1)
    view.take_changes()
    with pytest.raises(AssertionError, match="taken again"):
        view.take_changes()
    with pytest.raises(AssertionError, match="before the changes"):
        view.put(b"a", b"2")
    view.logged(5)
    view.put(b"a", b"3")
    view.take_changes()
    with pytest.raises(AssertionError, match="logged at 5"):
        view.logged(5)


def test_logged_after_an_empty_take_does_nothing():
    view, _ = view_of()
    assert view.take_changes() == []
    view.logged(1)
    assert not view.unsettled


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_is_of_the_moment_it_was_called_whatever_follows(reverse):
    view, source = view_of(a=b"1", c=b"1", e=b"1")
    view.put(b"b", b"1")
    view.delete(b"c")
    expected = [(b"a", b"1"), (b"b", b"1"), (b"e", b"1")]
    entries = view.scan(START, STOP, reverse=reverse)
    view.put(b"a", b"2")
    view.delete(b"b")
    view.put(b"d", b"1")
    source.apply(commit(view, 1))
    view.settle(1)
    view.delete(b"e")
    assert list(entries) == (expected[::-1] if reverse else expected)


def test_the_first_entry_of_a_range_is_found_past_deleted_ones():
    view, _ = view_of(a=b"1", b=b"2", d=b"4")
    view.delete(b"a")
    view.put(b"c", b"3")
    assert view.first(START, STOP) == (b"b", b"2")
    assert view.first(b"c", STOP) == (b"c", b"3")
    assert view.first(START, b"d", reverse=True) == (b"c", b"3")
    assert view.first(b"x", STOP) is None


def test_a_change_costs_one_look_up_and_what_is_overlaid_none():
    source = CountingSource()
    view = StateView(source, writable=True)
    view.put(b"a", b"1")
    assert source.gets == 1
    view.put(b"a", b"2")
    view.get(b"a")
    view.delete(b"a")
    assert source.gets == 1


def test_settling_costs_what_is_settled_and_not_what_is_overlaid():
    view, _ = view_of()
    for lsn in range(1, 2001):
        view.put(b"%d" % lsn, b"x")
        commit(view, lsn)
    looked_at = 0

    class Watched(dict):
        def __getitem__(self, key):
            nonlocal looked_at
            looked_at += 1
            return super().__getitem__(key)

    view._lsn_of = Watched(view._lsn_of)
    view.settle(3)
    assert looked_at == 3


keys = st.sampled_from([b"a", b"b", b"b\0", b"c", b"d"])
values = st.sampled_from([b"", b"1", b"2"])


class ViewMachine(RuleBasedStateMachine):
    """A view against three dicts: what is applied, what is logged, what the turn sees."""

    def __init__(self) -> None:
        super().__init__()
        self.source = MemorySource()
        self.view = StateView(self.source, writable=True)
        self.logged: dict[bytes, bytes] = {}
        self.seen: dict[bytes, bytes] = {}
        self.log: list[tuple[int, list[tuple[bytes, bytes | None]]]] = []
        self.lsn = 0
        self.scans: list[tuple[object, list[tuple[bytes, bytes]]]] = []

    @rule(key=keys, value=values)
    def put(self, key, value):
        assert self.view.put(key, value) == (key not in self.seen)
        self.seen[key] = value

    @rule(key=keys)
    def delete(self, key):
        assert self.view.delete(key) == (self.seen.pop(key, None) is not None)

    @rule()
    def commit(self):
        changes = self.view.take_changes()
        self.lsn += 1
        self.view.logged(self.lsn)
        self.log.append((self.lsn, changes))
        self.logged = dict(self.seen)

    @rule()
    def rollback(self):
        self.view.rollback()
        self.seen = dict(self.logged)

    @precondition(lambda self: self.log)
    @rule(lag=st.booleans())
    def apply_one(self, lag):
        lsn, changes = self.log.pop(0)
        self.source.apply(changes)
        if not lag:  # the host may tell later
            self.view.settle(lsn)

    @rule(reverse=st.booleans(), start=keys, stop=keys)
    def begin_scan(self, reverse, start, stop):
        expected = sorted(((k, v) for k, v in self.seen.items() if start <= k < stop), reverse=reverse)
        assert self.view.first(start, stop, reverse=reverse) == (expected[0] if expected else None)
        self.scans.append((self.view.scan(start, stop, reverse=reverse), expected))

    @precondition(lambda self: self.scans)
    @rule()
    def end_scan(self):
        entries, expected = self.scans.pop(0)
        assert list(entries) == expected

    @invariant()
    def the_view_is_what_the_turn_sees(self):
        assert dict(self.view.scan(START, STOP)) == self.seen
        assert all(self.view.get(key) == self.seen.get(key) for key in (b"a", b"b\0"))

    def teardown(self):
        self.commit()
        while self.log:
            self.apply_one(lag=False)
        assert not self.view.unsettled
        assert self.source.entries == self.seen


TestViewMachine = ViewMachine.TestCase
TestViewMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
