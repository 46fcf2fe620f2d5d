import asyncio

import pytest

from bench.book import Book
from bench.latencies import Latencies
from bench.load import Load, Slice, closed_loop, merged, open_loop

RATE = 100.0
STALL_S = 1.0


class Server:
    """Answers one call after another, each at once, but stands still from `stalls_at` on for `STALL_S`."""

    def __init__(self, loop, stalls_at: float) -> None:
        self._loop = loop
        self._stall = (stalls_at, stalls_at + STALL_S)

    async def call(self, number: int) -> None:
        now = self._loop.time()
        if self._stall[0] <= now < self._stall[1]:
            await asyncio.sleep(self._stall[1] - now)


def test_a_stall_of_the_server_is_felt_by_every_call_that_was_due_in_it(virtual):
    async def run(loop):
        return await open_loop(Server(loop, 1.0).call, rate=RATE, duration_s=3.0, clock=loop.clock_ns)

    load = virtual(run)
    assert load.calls == 3 * RATE
    assert load.failed == 0
    assert load.longest_gap_s == pytest.approx(STALL_S, rel=0.02)
    assert load.latencies.slowest_ms == pytest.approx(1000 * STALL_S, rel=0.02)
    # A third of the calls were due during the stall; half of these waited for more than half of it.
    assert load.latencies.percentile_ms(84) == pytest.approx(1000 * STALL_S / 2, rel=0.06)
    assert load.latencies.percentile_ms(50) < 3


def test_calls_that_could_not_be_sent_in_time_count_from_when_they_were_due(virtual):
    async def run(loop):
        return await open_loop(Server(loop, 1.0).call, rate=RATE, duration_s=3.0, in_flight_max=1, clock=loop.clock_ns)

    load = virtual(run)
    assert load.calls == 3 * RATE
    # One call is stuck in the server; that the others wait outside of it makes no difference to them.
    assert load.latencies.percentile_ms(84) == pytest.approx(1000 * STALL_S / 2, rel=0.06)


def test_a_closed_loop_would_have_hidden_the_stall(virtual, monkeypatch):
    async def run(loop):
        monkeypatch.setattr("bench.load.time.perf_counter_ns", loop.clock_ns)
        server = Server(loop, 1.0)

        async def call(number: int) -> None:
            await asyncio.sleep(0.01)
            await server.call(number)

        return await closed_loop(call, in_flight=1, duration_s=3.0)

    load = virtual(run)
    assert load.latencies.percentile_ms(99) < 20
    assert load.latencies.slowest_ms > 900


def test_a_call_without_an_answer_is_failed_and_in_doubt(virtual):
    book = Book(10)

    async def run(loop):
        async def call(number: int) -> None:
            if number == 5:
                await asyncio.Event().wait()

        return await open_loop(call, rate=10, duration_s=1.0, grace_s=2.0, book=book, clock=loop.clock_ns)

    load = virtual(run)
    assert (load.calls, load.failed, load.errors) == (9, 1, {"UnansweredError": 1})
    assert book.unknown[5] == 1
    assert sum(book.acknowledged) == 9


def test_calls_that_could_never_be_sent_are_failed_and_the_load_ends(virtual):
    async def run(loop):
        return await open_loop(lambda number: asyncio.sleep(1), rate=100, duration_s=2.0, grace_s=1.5, in_flight_max=1, clock=loop.clock_ns)

    load = virtual(run)
    assert load.calls == 3
    assert load.errors == {"Unsent": 196, "UnansweredError": 1}
    assert load.failed == 197


def test_a_call_that_is_refused_at_once_is_failed(virtual):
    book = Book(10, refusals=(ConnectionError,))

    async def run(loop):
        def call(number: int):
            if number == 3:
                raise ConnectionError("too much to do")
            return asyncio.sleep(0)

        return await open_loop(call, rate=10, duration_s=1.0, book=book, clock=loop.clock_ns)

    load = virtual(run)
    assert (load.calls, load.errors, book.refused) == (9, {"ConnectionError": 1}, 1)


def test_a_rate_of_nothing_is_refused(virtual):
    async def run(loop):
        await open_loop(lambda number: asyncio.sleep(0), rate=0, duration_s=1)

    with pytest.raises(ValueError, match="above 0"):
        virtual(run)


def test_a_closed_loop_counts_answers_and_failures_by_kind():
    book = Book(4, refusals=(ConnectionError,))

    async def call(number: int) -> None:
        await asyncio.sleep(0)
        if number % 4 == 1:
            raise ConnectionError("nothing happened")
        if number % 4 == 2:
            raise LookupError("who knows")

    load = asyncio.run(closed_loop(call, in_flight=3, duration_s=30.0, calls_max=40, book=book))
    assert (load.calls, load.failed) == (20, 20)
    assert load.errors == {"ConnectionError": 10, "LookupError": 10}
    assert book.acknowledged == [10, 0, 0, 10]
    assert (book.unknown, book.refused) == ([0, 0, 10, 0], 10)
    assert sum(each.calls for each in load.timeline) == 20
    assert sum(each.failed for each in load.timeline) == 20


def failing_from(loop, moment_s: float, patience_s: float):
    """Calls that take 10 ms, and from a moment on fail after so much patience."""

    async def call(number: int) -> None:
        if loop.time() < moment_s:
            await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(patience_s)
            raise TimeoutError

    return call


@pytest.mark.parametrize(("fails_from_s", "gap_s"), [(2.985, 0.02), (1.0, 2.0)])
def test_calls_that_fail_after_the_callers_time_make_no_longer_load_but_a_gap_up_to_its_end_is_one(
    virtual, monkeypatch, fails_from_s, gap_s
):
    async def run(loop):
        monkeypatch.setattr("bench.load.time.perf_counter_ns", loop.clock_ns)
        return await closed_loop(failing_from(loop, fails_from_s, 10.0), in_flight=4, duration_s=3.0)

    load = virtual(run)
    assert load.elapsed_s == pytest.approx(3.0, abs=0.02)
    assert load.longest_gap_s == pytest.approx(gap_s, abs=0.02)
    assert load.failed == 4
    assert sum(each.failed for each in load.timeline) == 4
    assert load.timeline[-1].at_s <= 3.0


def test_an_answer_after_the_callers_time_is_the_end_of_the_load(virtual, monkeypatch):
    async def run(loop):
        monkeypatch.setattr("bench.load.time.perf_counter_ns", loop.clock_ns)
        return await closed_loop(lambda number: asyncio.sleep(5.0), in_flight=2, duration_s=1.0)

    load = virtual(run)
    assert (load.calls, load.elapsed_s, load.longest_gap_s) == (2, pytest.approx(5.0), pytest.approx(5.0))


def test_an_open_loop_is_not_longer_for_calls_that_are_given_up(virtual):
    async def run(loop):
        async def call(number: int) -> None:
            if number >= 5:
                await asyncio.Event().wait()

        return await open_loop(call, rate=10, duration_s=1.0, grace_s=20.0, clock=loop.clock_ns)

    load = virtual(run)
    assert (load.calls, load.elapsed_s) == (5, pytest.approx(1.0))
    assert load.longest_gap_s == pytest.approx(0.6, abs=0.01)


def test_calls_of_a_batch_count_singly_and_its_latency_once():
    load = asyncio.run(closed_loop(lambda number: asyncio.sleep(0), in_flight=1, duration_s=30.0, calls_max=7, weight=1000))
    assert load.calls == 7000
    assert load.latencies.count == 7


def test_a_load_can_be_stopped_before_its_time():
    async def run() -> Load:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_soon(stop.set)
        return await closed_loop(lambda number: asyncio.sleep(0), in_flight=4, duration_s=60.0, stop=stop)

    assert asyncio.run(run()).elapsed_s < 30


def test_endless_failures_end_the_load(monkeypatch):
    monkeypatch.setattr("bench.load.FAILURES_MAX", 10)

    async def call(number: int) -> None:
        raise OSError("no")

    with pytest.raises(RuntimeError, match="more than 10 calls failed"):
        asyncio.run(closed_loop(call, in_flight=2, duration_s=60.0))


def test_loads_of_several_processes_are_one():
    def load(calls: int, ms: int, gap_s: float) -> Load:
        latencies = Latencies.of_ns([ms * 1_000_000] * calls)
        return Load(calls, 1, 2.0, latencies, {"OSError": 1}, gap_s, (Slice(0.0, calls, 0, ms), Slice(0.05, 0, 1, 0.0)))

    both = merged([load(10, 5, 0.3), load(30, 7, 0.2)])
    assert (both.calls, both.failed, both.errors, both.elapsed_s) == (40, 2, {"OSError": 2}, 2.0)
    assert both.latencies.count == 40
    assert both.longest_gap_s == 0.2
    assert both.timeline == (Slice(0.0, 40, 0, 7), Slice(0.05, 0, 2, 0.0))
    with pytest.raises(ValueError, match="no loads"):
        merged([])
