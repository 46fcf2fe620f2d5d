"""The linearizability checker: histories made by hand, histories of a correct object, and brute force over tiny ones."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actorgrid.testing.linearizability import OPERATIONS_MAX, Operation, check_linearizability


def change(client: str, called: int, returned: int | None, token: str, version: int | None) -> Operation:
    return Operation(client=client, kind="change", called_ns=called, returned_ns=returned, token=token, version=version)


def read(client: str, called: int, returned: int, version: int, token: str | None = None) -> Operation:
    return Operation(client=client, kind="read", called_ns=called, returned_ns=returned, token=token, version=version)


GOOD = {
    "nothing happened": [],
    "one after another": [change("a", 0, 1, "x", 1), read("b", 2, 3, 1, "x"), change("b", 4, 5, "y", 2), read("a", 6, 7, 2, "y")],
    "a read of the beginning": [read("a", 0, 1, 0, ""), read("b", 0, 1, 0)],
    "overlapping changes answered against the order of their calls": [change("a", 0, 10, "x", 2), change("b", 1, 9, "y", 1)],
    "a read beside a change sees it or not": [change("a", 0, 10, "x", 1), read("b", 1, 2, 0), read("c", 3, 4, 1), read("d", 5, 6, 1)],
    "an unknown change that never happened": [change("a", 0, None, "x", None), change("b", 5, 6, "y", 1)],
    "an unknown change that happened": [change("a", 0, None, "x", None), change("b", 5, 6, "y", 2), read("c", 7, 8, 2)],
    "an unknown change that happened long after": [change("a", 0, None, "x", None), read("b", 5, 6, 0), read("b", 7, 8, 1, "x")],
    "of two unknown changes the later one happened": [
        change("a", 0, None, "x", None), change("b", 1, None, "y", None), read("c", 2, 3, 1, "y"), read("c", 4, 5, 1, "y"),
    ],
    "a call at the very moment of a return may overlap it": [change("a", 0, 5, "x", 1), read("b", 5, 6, 0)],
}  # fmt: skip
BAD = {
    "a stale read": [change("a", 0, 1, "x", 1), read("b", 2, 3, 0)],
    "a stale read after another's read": [change("a", 0, 10, "x", 1), read("b", 1, 2, 1), read("c", 3, 4, 0)],
    "a read of the future": [read("b", 0, 1, 1), change("a", 2, 3, "x", 1)],
    "a lost change": [change("a", 0, 1, "x", 1), change("a", 2, 3, "y", 1)],
    "a doubled change": [change("a", 0, 1, "x", 1), change("a", 2, 3, "y", 3)],
    "order of returns against versions": [change("a", 0, 1, "x", 2), change("b", 2, 3, "y", 1)],
    "a change that vanished after it was read": [
        change("a", 0, None, "x", None), read("b", 1, 2, 1, "x"), change("b", 3, 4, "y", 1), read("b", 5, 6, 1, "y"),
    ],
    "the token of another change": [change("a", 0, 1, "x", 1), change("a", 2, 3, "y", 2), read("b", 4, 5, 2, "x")],
    "a token nobody sent": [change("a", 0, 1, "x", 1), read("b", 4, 5, 1, "z")],
    "an unknown change that came and went": [
        change("a", 0, None, "x", None), read("b", 1, 2, 1), read("b", 3, 4, 0),
    ],
    "an answer before its unknown cause was called": [read("b", 1, 2, 1), change("a", 5, None, "x", None)],
    "version zero made by somebody": [change("a", 0, 1, "x", 1), read("b", 0, 1, 0, "x")],
    "a version without a token": [change("a", 0, 1, "x", 1), read("b", 2, 3, 1, "")],
    "a change answered with version zero": [change("a", 0, 1, "x", 0)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_history_with_an_order_is_accepted(name: str) -> None:
    report = check_linearizability(GOOD[name])
    assert report, report.explain()
    assert report.linearizable is True
    assert "linearizable" in report.explain()
    assert _plays(report.order)


@pytest.mark.parametrize("name", BAD)
def test_a_history_without_an_order_is_refused_and_says_why(name: str) -> None:
    report = check_linearizability(BAD[name])
    assert report.linearizable is False
    assert not report
    assert "not linearizable" in report.explain()
    assert report.problem or report.stuck


def test_the_explanation_names_the_last_calls_that_fit_and_those_that_cannot_come_next() -> None:
    report = check_linearizability([change("ann", 0, 1_000_000, "x", 1), read("bob", 2_000_000, 3_000_000, 0)])
    assert "1.000 ms  ann: change x -> version 1" in report.explain()
    assert "bob: read -> version 0" in report.explain()
    assert report.stuck[0].client == "bob"


def test_what_the_actor_kept_settles_unknown_changes() -> None:
    history = [change("a", 0, None, "x", None), change("b", 0, None, "y", None), change("c", 5, 6, "z", 2)]
    assert check_linearizability(history)
    assert check_linearizability(history, made={"x": 1, "z": 2})
    assert check_linearizability(history, made={"z": 2}).linearizable is False, "nobody made version 1"
    # An unknown change happened, and later than anybody looked.
    assert check_linearizability([*history, read("c", 7, 8, 2)], made={"x": 1, "z": 2, "y": 3})
    assert check_linearizability([*history, read("c", 7, 8, 3)], made={"x": 1, "z": 2, "y": 3})
    # It was called after what it is said to have preceded.
    late = [change("c", 0, 1, "z", 2), change("a", 5, None, "x", None)]
    assert check_linearizability(late, made={"x": 1, "z": 2}).linearizable is False


def test_histories_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2000"):
        check_linearizability([read("a", i, i + 1, 0) for i in range(OPERATIONS_MAX + 1)])
    with pytest.raises(ValueError, match="token of its own"):
        check_linearizability([change("a", 0, 1, "x", 1), change("a", 2, 3, "x", 2)])
    with pytest.raises(ValueError, match="token of its own"):
        check_linearizability([change("a", 0, 1, "", 1)])
    with pytest.raises(ValueError, match="before it was called"):
        check_linearizability([change("a", 5, 1, "x", 1)])
    with pytest.raises(ValueError, match="without a version"):
        check_linearizability([change("a", 0, 1, "x", None)])


def test_a_search_without_end_is_given_up_and_decides_nothing() -> None:
    history = simulated(random.Random(1), operations=300, clients=10)
    report = check_linearizability(history, steps_max=50)
    assert report.linearizable is None
    assert not report
    assert "undecided after 51 steps" in report.explain()


def _plays(order: tuple[Operation, ...]) -> bool:
    """Executed one by one in this order, every call gives the answer it got."""
    version, last = 0, ""
    for each in order:
        if each.kind == "change":
            version, last = version + 1, each.token or ""
            if each.is_answered and each.version != version:
                return False
        elif each.version != version or each.token not in (None, last):
            return False
    return True


# -- a correct object, seen by many clients


def simulated(rng: random.Random, *, operations: int, clients: int, unknown: float = 0.02) -> list[Operation]:
    """What clients of a correct actor may see: each call takes effect at one moment between its call and its return."""
    moments: list[tuple[int, int, str]] = []
    calls: list[tuple[str, str, int, int | None, str]] = []
    clocks = {f"c{i}": rng.randrange(100) for i in range(clients)}
    lives = dict.fromkeys(clocks, 0)
    for number in range(operations):
        client = min(clocks, key=lambda name: clocks[name])
        called = clocks[client] + 1 + rng.randrange(20)
        returned = called + 1 + rng.randrange(200)
        clocks[client] = returned
        kind = rng.choice(["change", "read"])
        effect: int | None = rng.randint(called, returned)
        end: int | None = returned
        if kind == "change" and rng.random() < unknown:
            end = None
            effect = rng.choice([None, rng.randint(called, called + 5_000)])
            lives[client] += 1
        calls.append((f"{client}.{lives[client]}", kind, called, end, f"t{number}"))
        if effect is not None:
            moments.append((effect, number, kind))
    answers: dict[int, tuple[int, str]] = {}
    version, last = 0, ""
    for _, number, kind in sorted(moments):
        if kind == "change":
            version, last = version + 1, f"t{number}"
        answers[number] = (version, last)
    history = []
    for number, (client, kind, called, end, token) in enumerate(calls):
        if end is None:
            history.append(change(client, called, None, token, None))
        elif kind == "change":
            history.append(change(client, called, end, token, answers[number][0]))
        else:
            history.append(read(client, called, end, *answers[number]))
    return history


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_object_is_accepted(seed: int) -> None:
    history = simulated(random.Random(seed), operations=300, clients=8)
    report = check_linearizability(history)
    assert report, report.explain()
    assert _plays(report.order)


def test_two_thousand_operations_of_ten_clients_take_seconds_at_most() -> None:
    history = simulated(random.Random(7), operations=OPERATIONS_MAX, clients=10)
    began = time.monotonic()
    assert check_linearizability(history)
    history = simulated(random.Random(7), operations=OPERATIONS_MAX - 1, clients=10, unknown=0.002)
    end = history[-1].called_ns
    assert check_linearizability([*history, read("late", end, end + 1_000_000, 3)]).linearizable is False
    assert time.monotonic() - began < 20


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_one_stale_or_premature_answer_among_many_is_found(seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    history = simulated(rng, operations=60, clients=4, unknown=0.0)
    reads = [number for number, each in enumerate(history) if each.kind == "read"]
    number = data.draw(st.sampled_from(reads))
    wrong = history[number]
    certain = sum(each.kind == "change" and each.returned_ns < wrong.called_ns for each in history)
    possible = sum(each.kind == "change" and each.called_ns <= wrong.returned_ns for each in history)
    version = data.draw(st.one_of(st.integers(max_value=certain - 1, min_value=-1), st.integers(possible + 1, possible + 5)))
    history[number] = read(wrong.client, wrong.called_ns, wrong.returned_ns, version)
    assert check_linearizability(history).linearizable is False


# -- brute force


def brute_force(history: list[Operation]) -> bool:
    """Every choice of unknown changes that happened, in every order that respects who was finished before whom."""
    answered = [each for each in history if each.is_answered]
    unknown = [each for each in history if not each.is_answered and each.kind == "change"]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            if any(_plays(order) for order in _orders([*answered, *happened])):
                return True
    return False


def _orders(operations: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    for order in itertools.permutations(operations):
        if not any(later.is_answered and later.returned_ns < earlier.called_ns for earlier, later in itertools.combinations(order, 2)):
            yield order


@st.composite
def tiny_histories(draw: st.DrawFn) -> list[Operation]:
    """Up to five calls at small whole times with answers that are often nearly right."""
    history = []
    for number in range(draw(st.integers(0, 5))):
        called = draw(st.integers(0, 9))
        returned = called + draw(st.integers(0, 6))
        version = draw(st.integers(0, 4))
        if draw(st.booleans()):
            is_unknown = draw(st.integers(0, 3)) == 0
            history.append(change(f"c{number}", called, None if is_unknown else returned, f"t{number}", None if is_unknown else version))
        else:
            token = draw(st.sampled_from([None, "", *(f"t{other}" for other in range(5))]))
            history.append(read(f"c{number}", called, returned, version, token))
    return history


@given(tiny_histories())
@example([change("a", 0, None, "t0", None), read("b", 0, 0, 1, "t0"), change("c", 0, 1, "t2", 2), read("d", 1, 1, 2, "t2")])
@settings(max_examples=1_500, deadline=None)
def test_the_search_agrees_with_brute_force_on_tiny_histories(history: list[Operation]) -> None:
    assert bool(check_linearizability(history)) == brute_force(history)


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_the_search_agrees_with_brute_force_on_nearly_correct_histories(seed: int, operations: int) -> None:
    rng = random.Random(seed)
    history = simulated(rng, operations=operations, clients=3, unknown=0.3)
    assert check_linearizability(history)
    number = rng.randrange(len(history))
    wrong = history[number]
    if wrong.version is not None and wrong.kind == "read":
        history[number] = read(wrong.client, wrong.called_ns, wrong.returned_ns, max(0, wrong.version + rng.choice([-1, 1])))
    elif wrong.returned_ns is not None:
        history[number] = change(wrong.client, wrong.called_ns, wrong.called_ns, wrong.token or "", wrong.version)
    assert bool(check_linearizability(history)) == brute_force(history)
