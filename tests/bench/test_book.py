import pytest

from bench.book import Book


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
