"""Session bugs that a review found, each as the shortest story that shows it (I10, I11)."""

from actorgrid.replication.entry import ClientMark, Entry, LogRecord
from actorgrid.replication.sessions import Decision, SessionTable

A, B = b"a" * 16, b"b" * 16


def entry(client, number, key=None):
    return Entry(client, number, (), 7, "Box\0a", 0, b"r", [], key)


def record(first_lsn, *entries, clients=(A,), lowest=0):
    return LogRecord(1, first_lsn, 0, [ClientMark(client, lowest, 0) for client in clients], list(entries))


def test_a_session_that_begins_anew_refuses_what_may_be_older_than_it():
    table = SessionTable(1)
    table.apply(record(1, entry(0, 1), clients=(A,)))
    table.apply(record(2, entry(0, 1), clients=(B,)))
    assert table.open(A, 0) is None
    assert table.open(A, 5).decide(2, 0, 0, 5) is Decision.NEW
    table.apply(record(6, entry(0, 2), clients=(A,)))
    session = table.get(A)
    assert session.decide(1, 0, 0, 0) is Decision.FORGOTTEN
    assert session.decide(3, 0, 0, 5) is Decision.NEW
    assert session.find(2) is not None


def test_what_runs_is_found_also_after_its_session_was_forgotten():
    table = SessionTable(1)
    table.apply(record(1, entry(0, 1), clients=(A,)))
    turn = object()
    table.get(A).running[2] = turn
    table.apply(record(2, entry(0, 1), clients=(B,)))
    assert table.get(A) is None
    assert table.open(A, 0).running[2] is turn
    assert table.open(A, 0).decide(1, 0, 0, 0) is Decision.FORGOTTEN
    (session,) = table.apply(record(3, entry(0, 2), clients=(A,)))
    assert session.running[2] is turn


def test_what_runs_is_found_after_another_request_of_the_same_new_client_is_committed():
    table = SessionTable(8)
    turn = object()
    table.open(A, 0).running[1] = turn
    table.apply(record(1, entry(0, 2)))
    assert table.open(A, 0).running[1] is turn
    table.apply(record(2, entry(0, 3), lowest=4))
    table.apply(record(3, entry(0, 4, key="k"), lowest=5))
    assert not table.get(A).records
    assert table.open(A, 0) is table.get(A), "a session without records is a session"


def test_clients_of_one_record_are_forgotten_in_the_same_order_before_and_after_a_restart():
    table = SessionTable(3)
    table.apply(record(1, *[entry(i, 1) for i in range(3)], clients=[bytes([9 - i]) * 16 for i in range(3)]))
    copy = SessionTable(3)
    for client, image in sorted(table.take_checkpoint()[0]):  # in the order in which a store gives them
        copy.load_image(client, image)
    copy.loaded(table.evicted_lsn)
    for each in (table, copy):
        each.apply(record(4, entry(0, 1), clients=(A,)))
    assert [client for client, _ in copy] == [client for client, _ in table]


def test_the_bytes_of_a_client_forgotten_within_its_own_record_are_not_counted_for_ever():
    table = SessionTable(2)
    table.apply(record(1, *[entry(i, 1) for i in range(3)], clients=[bytes([i]) * 16 for i in range(3)]))
    assert table.bytes == sum(session.bytes for _, session in table) == 2
