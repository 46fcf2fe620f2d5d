"""What a partition remembers of requests, and what it decides (I9, I10, I11)."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actorgrid.replication.entry import NO_CLIENT, ClientMark, Entry, LogRecord
from actorgrid.replication.sessions import Decision, Session, SessionTable

ALICE, BOB, CAROL, DAVE = (bytes([letter]) * 16 for letter in b"abcd")


def _record(
    lsn: int, client: bytes, number: int, *, lowest: int = 0, anywhere: int = 0, path: tuple[int, ...] = (), key: str | None = None
) -> LogRecord:
    entry = Entry(0, number, path, number * 31, "A\0x", 0, b"answer %d" % number, [], key)
    return LogRecord(1, lsn, 0, [ClientMark(client, lowest, anywhere)], [entry])


def _open(table: SessionTable, client: bytes, since_lsn: int = 0) -> Session:
    session = table.open(client, since_lsn)
    assert session is not None
    return session


def test_a_request_without_a_record_is_new() -> None:
    session = _open(SessionTable(4), ALICE)
    assert session.find(1) is None
    assert session.decide(1, 1, 1, 0) is Decision.NEW


def test_an_executed_request_is_found_with_its_answer_and_digest() -> None:
    table = SessionTable(4)
    table.apply(_record(5, ALICE, 7))
    record = _open(table, ALICE).find(7)
    assert record is not None
    assert (record.result, record.digest, record.lsn) == (b"answer 7", 217, 5)


def test_a_nested_request_is_another_one_than_that_of_its_root() -> None:
    table = SessionTable(4)
    table.apply(_record(1, ALICE, 7, path=(0,)))
    session = _open(table, ALICE)
    assert session.find(7) is None
    assert session.find((7, (0,))) is not None
    assert session.find((7, (1,))) is None


def test_what_the_client_says_to_be_answered_is_never_executed_again() -> None:
    session = _open(SessionTable(4), ALICE)
    assert session.decide(9, 8, 8, 0) is Decision.NEW
    assert session.decide(7, 3, 3, 0) is Decision.STALE, "its word counts once it is heard, also when an older frame comes later"
    assert session.decide((7, (0,)), 3, 3, 0) is Decision.STALE
    assert session.decide((8, (0,)), 3, 3, 0) is Decision.NEW


def test_records_are_freed_by_the_clients_word_in_the_log_and_nested_ones_by_its_word_for_everywhere() -> None:
    table = SessionTable(4)
    for number in (1, 2, 3):
        table.apply(_record(number, ALICE, number))
    table.apply(_record(4, ALICE, 2, path=(0,)))
    table.apply(_record(5, ALICE, 4, lowest=3, anywhere=2))
    session = _open(table, ALICE)
    assert sorted(session.records) == [3, 4]
    assert list(session.nested) == [(2, (0,))]
    table.apply(_record(6, ALICE, 5, lowest=3, anywhere=3))
    assert session.nested == {}


def test_calls_with_an_idempotency_key_and_internal_entries_leave_no_session_record() -> None:
    table = SessionTable(4)
    table.apply(_record(1, ALICE, 7, key="order-1"))
    table.apply(LogRecord(1, 2, 0, [], [Entry(NO_CLIENT, 0, (), 0, "", 2, b"", [])]))
    session = _open(table, ALICE)
    assert (session.records, session.nested) == ({}, {})


def test_the_client_whose_last_entry_is_oldest_is_forgotten_first() -> None:
    table = SessionTable(2)
    for lsn, client in enumerate((ALICE, BOB, ALICE, CAROL), 1):
        table.apply(_record(lsn, client, lsn))
    assert table.get(BOB) is None
    assert table.get(ALICE) is not None
    assert table.evicted_lsn == 2


def test_a_client_that_may_have_been_forgotten_must_prove_when_it_began() -> None:
    table = SessionTable(1)
    table.apply(_record(10, ALICE, 1))
    table.apply(_record(11, BOB, 1))
    assert table.open(ALICE, 9) is None
    assert table.open(ALICE, 10) is not None
    assert table.open(CAROL, 0) is None, "the table cannot tell it from a forgotten one"


def test_a_forgotten_clients_old_request_is_refused_also_when_it_has_come_back_with_a_new_one() -> None:
    table = SessionTable(1)
    table.apply(_record(10, ALICE, 1))
    table.apply(_record(11, BOB, 1))
    session = _open(table, ALICE, 11)
    assert session.decide(2, 1, 1, 11) is Decision.NEW
    table.apply(_record(12, ALICE, 2))
    again = _open(table, ALICE, 0)
    assert again.find(1) is None
    assert again.decide(1, 1, 1, 9) is Decision.FORGOTTEN


def test_a_session_that_is_forgotten_while_it_runs_something_still_finds_that() -> None:
    table = SessionTable(1)
    table.apply(_record(1, ALICE, 1))
    turn = object()
    _open(table, ALICE).running[2] = turn
    table.apply(_record(2, BOB, 1))
    assert _open(table, ALICE, 2).running[2] is turn


class ExactlyOnce(RuleBasedStateMachine):
    """Clients that send, repeat, and give up, against a table that forgets and restarts; the model counts executions.

    A restart keeps the last checkpoint and applies the log behind it again. Requests that were not logged before it are gone.
    """

    clients = st.sampled_from((ALICE, BOB, CAROL, DAVE))

    def __init__(self) -> None:
        super().__init__()
        self.table = SessionTable(2)
        self.log: list[LogRecord] = []
        self.checkpoint_lsn = 0
        self.images: dict[bytes, bytes] = {}
        self.evicted_at_checkpoint = 0
        self.executed: dict[tuple[bytes, int], int] = {}
        self.next_number = dict.fromkeys((ALICE, BOB, CAROL, DAVE), 1)
        self.waiting: dict[tuple[bytes, int], int] = {}  # request -> the position its client knew when it first sent it
        self.answers: dict[tuple[bytes, int], bytes] = {}

    @property
    def lsn(self) -> int:
        return len(self.log)

    def _lowest(self, client: bytes) -> int:
        return min((number for owner, number in self.waiting if owner == client), default=self.next_number[client])

    def _send(self, client: bytes, number: int, *, may_be_new: bool) -> None:
        since = self.waiting.get((client, number), 0)
        lowest = self._lowest(client)
        session = self.table.open(client, since)
        if session is None:
            assert self.table.evicted_lsn > since
            return
        record = session.find(number)
        if record is not None:
            assert record.result == self.answers[client, number]
            return
        if session.decide(number, lowest, lowest, since) is not Decision.NEW:
            return
        self.executed[client, number] = self.executed.get((client, number), 0) + 1
        assert self.executed[client, number] == 1, f"request {number} of {client!r} was executed twice"
        assert may_be_new or (client, number) in self.waiting
        entry = _record(self.lsn + 1, client, number, lowest=session.heard, anywhere=session.heard_anywhere)
        self.answers[client, number] = entry.entries[0].result
        self.log.append(entry)
        self.table.apply(entry)

    @rule(client=clients)
    def send(self, client: bytes) -> None:
        number = self.next_number[client]
        self.next_number[client] = number + 1
        self.waiting[client, number] = self.lsn
        self._send(client, number, may_be_new=True)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self._send(*data.draw(st.sampled_from(sorted(self.waiting))), may_be_new=True)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def take_the_answer_or_give_up(self, data: st.DataObject) -> None:
        del self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))]

    @precondition(lambda self: self.executed)
    @rule(data=st.data())
    def an_old_frame_arrives_late(self, data: st.DataObject) -> None:
        client, number = data.draw(st.sampled_from(sorted(self.executed)))
        if (client, number) not in self.waiting:
            # Its group header is as old as it is: it knows nothing of what was answered since.
            session = self.table.open(client, 0)
            if session is not None and session.find(number) is None:
                assert session.decide(number, 0, 0, 0) is not Decision.NEW or session.heard == 0 == session.lowest

    @rule()
    def checkpoint(self) -> None:
        images, forgotten = self.table.take_checkpoint()
        self.images.update(images)
        for client in forgotten:
            self.images.pop(client, None)
        self.checkpoint_lsn = self.lsn
        self.evicted_at_checkpoint = self.table.evicted_lsn

    @rule()
    def restart(self) -> None:
        before = self._state(self.table)
        table = SessionTable(2)
        for client, image in self.images.items():
            table.load_image(client, image)
        table.loaded(self.evicted_at_checkpoint)
        for record in self.log[self.checkpoint_lsn :]:
            table.apply(record)
        assert self._state(table) == before, "checkpoint and log do not give what was there"
        self.table = table

    @staticmethod
    def _state(table: SessionTable) -> list[Any]:
        sessions = [(c, s.floor_lsn, s.lowest, s.lowest_anywhere, s.last_lsn, copy.copy(s.records), copy.copy(s.nested)) for c, s in table]
        return [table.evicted_lsn, sessions]

    @invariant()
    def the_table_is_bounded(self) -> None:
        assert len(self.table) <= 2


ExactlyOnce.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestExactlyOnce = ExactlyOnce.TestCase
