"""What a manager has ordered: one thing of a partition at a time, one order after the other, and nothing soon after a refusal."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from actorgrid import ambient
from actorgrid.errors import RequestError
from actorgrid.host.moves import LEFT_OFFICE, MOVES_REMEMBERED, WITHDRAWN, Moves, Order


class Hosts:
    """Take orders.

    :ivar asked: (partition, when)
    :ivar refuse: partitions of which nothing is taken
    :ivar may_answer: until it is set nobody answers
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []
        self.refuse: set[int] = set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_manager = True

    async def ask(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        self.asked.append((arguments["partition"], ambient.monotonic()))
        await self.may_answer.wait()
        if arguments["partition"] in self.refuse:
            raise RequestError("no")


def build(partition: int) -> Order:
    return Order(partition, "build", "host-1", "host-2", {"partition": partition}, "for the test's sake")


def moves_of(hosts: Hosts) -> Moves:
    dates = itertools.count(1000)
    return Moves(hosts.ask, lambda: next(dates), lambda: hosts.is_manager)


async def end_of(moves: Moves) -> None:
    async with asyncio.timeout(10):
        while moves.under_way():
            await asyncio.sleep(0.001)


def test_orders_are_given_evenly_and_the_first_at_once() -> None:
    async def check() -> None:
        hosts = Hosts()
        moves = moves_of(hosts)
        began_s = ambient.monotonic()
        moves.order([build(number) for number in range(5)], within_s=0.25)
        assert moves.under_way() == dict.fromkeys(range(5), "build")  # also those that are not given yet
        assert not any(moves.may_order(number) for number in range(5))
        await end_of(moves)
        assert [partition for partition, _ in hosts.asked] == list(range(5))
        for place, (_, at_s) in enumerate(hosts.asked):
            assert at_s - began_s >= 0.05 * place - 0.001, "too early"
        assert [move.outcome for move in moves.last] == ["done"] * 5
        assert moves.total == 5
        assert moves.one_is_done.is_set()
        numbers = [move.number for move in moves.last]
        assert numbers == sorted(set(numbers))

    asyncio.run(check())


def test_of_a_partition_one_thing_is_done_at_a_time() -> None:
    async def check() -> None:
        hosts = Hosts()
        moves = moves_of(hosts)
        moves.order([build(1), build(1), build(2)], within_s=0.0)
        moves.order([build(2)], within_s=0.0)
        await end_of(moves)
        assert sorted(partition for partition, _ in hosts.asked) == [1, 2]

    asyncio.run(check())


def test_who_refuses_is_left_alone_for_a_moment() -> None:
    async def check() -> None:
        hosts = Hosts()
        hosts.refuse.add(1)
        moves = moves_of(hosts)
        moves.order([build(1), build(2)], within_s=0.0)
        await end_of(moves)
        assert [move.outcome for move in moves.last] == ["no", "done"]
        assert not moves.may_order(1)
        assert moves.may_order(2)
        moves.forget()
        assert moves.may_order(1)

    asyncio.run(check())


def test_who_is_deposed_gives_no_order_that_waits_still() -> None:
    async def check() -> None:
        hosts = Hosts()
        moves = moves_of(hosts)
        moves.order([build(1), build(2), build(3)], within_s=0.03)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hosts.is_manager = False
        await end_of(moves)
        assert [partition for partition, _ in hosts.asked] == [1]
        assert [move.outcome for move in moves.last] == ["done", LEFT_OFFICE, LEFT_OFFICE]
        assert moves.total == 1

    asyncio.run(check())


def test_what_waits_is_withdrawn_and_may_be_ordered_anew_at_once() -> None:
    async def check() -> None:
        hosts = Hosts()
        hosts.may_answer.clear()
        moves = moves_of(hosts)
        moves.order([build(1), build(2)], within_s=60.0)
        await asyncio.sleep(0.01)
        moves.withdraw()
        assert moves.under_way() == {1: "build"}
        assert not moves.may_order(1)
        assert moves.may_order(2)
        moves.order([build(2)], within_s=60.0)
        hosts.may_answer.set()
        await end_of(moves)
        assert [partition for partition, _ in hosts.asked] == [1, 2]
        assert [move.outcome for move in moves.last] == ["done", WITHDRAWN, "done"]

    asyncio.run(check())


@pytest.mark.parametrize("has_begun", [True, False])
def test_who_leaves_office_gives_no_order_any_more_and_knows_of_no_outcome(has_begun: bool) -> None:
    async def check() -> None:
        hosts = Hosts()
        hosts.may_answer.clear()
        moves = moves_of(hosts)
        moves.order([build(1), build(2)], within_s=60.0)
        if has_begun:
            await asyncio.sleep(0.01)
        given = list(moves.last)
        moves.forget()
        assert moves.under_way() == {}
        await asyncio.sleep(0.01)
        assert [partition for partition, _ in hosts.asked] == [1] * has_begun
        assert [move.outcome for move in given] == [LEFT_OFFICE] * 2
        assert not moves.one_is_done.is_set()

    asyncio.run(check())


def test_the_last_moves_are_remembered_and_no_more() -> None:
    async def check() -> None:
        moves = moves_of(Hosts())
        moves.order([build(number) for number in range(MOVES_REMEMBERED + 10)], within_s=0.0)
        await end_of(moves)
        assert len(moves.last) == MOVES_REMEMBERED
        assert moves.last[-1].partition == MOVES_REMEMBERED + 9
        assert moves.total == MOVES_REMEMBERED + 10

    asyncio.run(check())
