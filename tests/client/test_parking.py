"""Refused calls wait for their next try on every event loop, also those that are due at once."""

import asyncio
import random

import pytest
import uvloop
from samples import QUICK, Account
from stand_in import StandInHost

from actorgrid import grid
from actorgrid.client.parking import ParkingLot
from actorgrid.client.pending import PendingCall
from actorgrid.errors import OverloadedError
from actorgrid.settings import ClientSettings

pytestmark = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run(main, new_loop):
    async def guarded():
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with asyncio.timeout(10):
            await main()
        await asyncio.sleep(0)
        assert not problems, problems

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(guarded())


def parked(number, deadline):
    call = PendingCall()
    call.number, call.deadline = number, deadline
    return call


def test_calls_that_are_due_at_once_are_parked_and_woken(new_loop):
    """uvloop gives a plain handle, which does not know its time, for a timer that is due at once."""

    async def main():
        now = asyncio.get_running_loop().time()
        woken = []
        calls = {number: parked(number, now - 1.0 + number / 100) for number in range(20)}
        lot = ParkingLot(QUICK, random.Random(1), calls, lambda call: woken.append(call.number))
        for call in calls.values():
            lot.park(call, 0.0)
        calls[99] = parked(99, now + 10)
        lot.park(calls[99], 0.3)
        await asyncio.sleep(0.02)
        assert sorted(woken) == list(range(20))
        await asyncio.sleep(0.4)
        assert woken[-1] == 99
        lot.close()

    run(main, new_loop)


def test_an_earlier_call_is_woken_before_one_that_was_parked_first(new_loop):
    async def main():
        now = asyncio.get_running_loop().time()
        woken = []
        calls = {number: parked(number, now + 10) for number in (1, 2)}
        lot = ParkingLot(QUICK, random.Random(1), calls, lambda call: woken.append(call.number))
        lot.park(calls[1], 0.2)
        lot.park(calls[2], 0.0)
        await asyncio.sleep(0.05)
        assert woken == [2]
        lot.close()

    run(main, new_loop)


def test_many_refused_calls_at_once_do_not_break_the_connection(new_loop):
    async def main():
        host = await StandInHost().start()
        tries = {}

        def answer(received):
            tries[received.number] = tries.get(received.number, 0) + 1
            return OverloadedError("busy", retry_after_s=0.0) if tries[received.number] <= 4 else 7

        host.answer = answer
        try:
            settings = ClientSettings(timeout_s=5.0, retry_first_s=0.0005, retry_max_s=0.001)
            async with grid.connect(host.address, settings=settings) as client:
                async with asyncio.TaskGroup() as tasks:
                    calls = [tasks.create_task(waited(client.get(Account, f"a{number}").deposit(1))) for number in range(200)]
                assert [call.result() for call in calls] == [7] * 200
            assert len(host.connections) == 1
            assert set(tries.values()) == {5}
        finally:
            await host.stop()

    run(main, new_loop)


async def waited(awaitable):
    return await awaitable
