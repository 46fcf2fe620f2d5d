import pytest

from bench.book import Book
from bench.scenarios.cold import stride_of
from bench.workload import CHAIN, FAN, Workload


def book_of(*acknowledged: int) -> Book:
    book = Book(len(acknowledged))
    for key, count in enumerate(acknowledged):
        for _ in range(count):
            book.answered(key)
    return book


def test_a_change_that_is_not_there_is_lost():
    verdict = book_of(3, 2).judge([3, 1])
    assert (verdict.lost, verdict.doubled, verdict.is_clean) == (1, 0, False)


def test_a_change_that_nobody_asked_for_is_doubled_and_does_not_hide_a_lost_one():
    verdict = book_of(3, 2).judge([4, 1])
    assert (verdict.lost, verdict.doubled) == (1, 1)


def test_after_an_unknown_outcome_the_change_may_be_there_or_not():
    book = book_of(3)
    book.failed(0, TimeoutError())
    assert book.judge([3]).is_clean
    assert book.judge([4]).is_clean
    assert book.judge([5]).doubled == 1
    assert book.judge([4]).failed == 1


def test_after_a_refusal_it_must_not_be_there():
    book = Book(1, refusals=(ConnectionError,))
    book.failed(0, ConnectionRefusedError())
    assert book.judge([1]).doubled == 1
    assert book.judge([0]).failed == 1


def test_reads_of_a_mix_are_no_changes():
    book = Book(2, is_change=lambda number: number % 2 == 0)
    for number in range(10):
        book.answered(number)
    book.failed(1, OSError())
    assert book.acknowledged == [5, 0]
    assert book.unknown == [0, 0]


def test_books_of_two_processes_are_one_if_they_are_of_the_same_keys():
    book = book_of(1, 2)
    book.merge(book_of(3, 4))
    assert book.acknowledged == [4, 6]
    with pytest.raises(ValueError, match="2 and 1 keys"):
        book.merge(book_of(1))
    with pytest.raises(ValueError, match="2 keys, got 1"):
        book.judge([1])


def test_a_call_that_changes_several_actors_is_held_against_each_of_them():
    book = book_of(2, 1)
    book.failed(1, TimeoutError())
    spread = book.spread([[0, 2], [1, 2]], 3)
    assert spread.judge([2, 1, 3]).is_clean
    assert spread.judge([2, 2, 4]).is_clean
    assert spread.judge([2, 1, 2]).lost == 1
    assert spread.judge([2, 1, 5]).doubled == 1


@pytest.mark.parametrize("kind", ["write", "chain", "fan-out"])
def test_every_actor_that_a_call_changes_is_read_back(kind):
    workload = Workload(kind=kind, actors=40, prefix="x")
    changed = workload.changed()
    assert len(set(changed)) == len(changed)
    touched = [workload.changed_by(key) for key in range(workload.actors)]
    assert all(len(set(places)) == len(places) == {"write": 1, "chain": CHAIN, "fan-out": FAN + 1}[kind] for places in touched)
    assert {place for places in touched for place in places} == set(range(len(changed)))
    names = [changed[place][1] for place in touched[3]]
    assert names[:2] == {"write": ["x-3"], "chain": ["x-3", "x-3-link-1"], "fan-out": ["x-3", "x-target-48"]}[kind]


def test_one_lost_link_of_a_chain_is_found():
    workload = Workload(kind="chain", actors=2, prefix="x")
    book = workload.book()
    book.answered(1)
    before = [5] * len(workload.changed())
    stored = list(before)
    for place in workload.changed_by(1):
        stored[place] += 1
    assert workload.judge(book, before, stored).is_clean
    stored[-1] -= 1
    assert workload.judge(book, before, stored).lost == 1


@pytest.mark.parametrize("actors", [1, 1_000, 3_000, 21_000])
def test_first_calls_go_to_each_cold_actor_once(actors):
    stride = stride_of(actors)
    assert len({number * stride % actors for number in range(actors)}) == actors
