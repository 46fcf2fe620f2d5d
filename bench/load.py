"""Load: so many callers with one call at a time each (closed), or calls at a rate whatever the answers do (open).

A closed loop finds the peak, and hides stalls: a caller that waits sends nothing. The open loop counts each call's latency from the moment
at which it was *due*, also when it could not be sent then, so that a stall of the server is seen by every call that fell into it
(no coordinated omission). Nothing here knows of CPU: see `bench.machine`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.book import Book
from bench.latencies import Latencies

Call = Callable[[int], Awaitable[object]]
Clock = Callable[[], int]
Numbers = NDArray[np.int64]

#: Width of a slice of the timeline.
SLICE_S = 0.05
#: How far the open loop lets calls pile up before it holds the next ones back; their latency counts from when they were due all the same.
OPEN_IN_FLIGHT_MAX = 20_000
#: What calls get to finish once the time of an open loop is over.
OPEN_GRACE_S = 10.0
PACE_S = 0.001
#: A loop whose every call fails at once would fill the memory with errors, and says nothing.
FAILURES_MAX = 100_000


class UnansweredError(Exception):
    """A call of an open loop had no answer long after the end of the load."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """What ended within one twentieth of a second (`SLICE_S`) of a load.

    :ivar at_s: where the slice begins, from the beginning of the load
    :ivar slowest_ms: of the calls that ended in it
    """

    at_s: float
    calls: int
    failed: int
    slowest_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a load saw.

    :ivar calls: those that were answered; failed ones are not among them
    :ivar elapsed_s: from the first call to the last answer, or to the end of the callers' time if that is later; calls that fail after it
        make neither a lower rate nor a gap
    :ivar latencies: of the answered calls
    :ivar errors: name of the error -> how often
    :ivar longest_gap_s: longest time in which no call was answered, that before `elapsed_s` is over included
    :ivar timeline: slices in order, of loads that keep one
    :ivar folding_cpu_s: what this process took afterwards to make these figures of the raw ones; it is not the load's, and is taken off
    """

    calls: int
    failed: int
    elapsed_s: float
    latencies: Latencies
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    longest_gap_s: float = 0.0
    timeline: tuple[Slice, ...] = ()
    folding_cpu_s: float = 0.0

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.elapsed_s if self.elapsed_s > 0 else 0.0


def merged(loads: list[Load]) -> Load:
    """One load of several that ran at the same time, in processes of their own.

    :raises ValueError: there is none
    """
    if not loads:
        raise ValueError("no loads to merge")
    latencies, errors = Latencies(), collections.Counter[str]()
    for load in loads:
        latencies.merge(load.latencies)
        errors.update(load.errors)
    return Load(
        calls=sum(load.calls for load in loads),
        failed=sum(load.failed for load in loads),
        elapsed_s=max(load.elapsed_s for load in loads),
        latencies=latencies,
        errors=dict(errors),
        # An answer to any of them ends a gap, so the shortest of their longest gaps bounds it from above.
        longest_gap_s=min(load.longest_gap_s for load in loads),
        timeline=_merged_timeline([load.timeline for load in loads]),
        folding_cpu_s=sum(load.folding_cpu_s for load in loads),
    )


def _merged_timeline(timelines: list[tuple[Slice, ...]]) -> tuple[Slice, ...]:
    found: dict[float, Slice] = {}
    for each in sorted((each for timeline in timelines for each in timeline), key=lambda each: each.at_s):
        old = found.get(each.at_s, Slice(each.at_s, 0, 0, 0.0))
        found[each.at_s] = Slice(each.at_s, old.calls + each.calls, old.failed + each.failed, max(old.slowest_ms, each.slowest_ms))
    return tuple(found.values())


class _Record:
    """Raw figures while calls run: two machine words a call, folded into a histogram afterwards."""

    def __init__(self, clock: Clock) -> None:
        self.began_ns = clock()
        self.ended_ns = array("q")
        self.took_ns = array("q")
        self.failed_ns = array("q")
        self.errors: collections.Counter[str] = collections.Counter()
        self.unsent = 0

    def failed(self, error: BaseException, at_ns: int) -> None:
        self.errors[type(error).__name__] += 1
        self.failed_ns.append(at_ns)

    def load(self, over_ns: int, *, weight: int = 1, timeline: bool = True) -> Load:
        """:param over_ns: when the callers' time was over, by the clock"""
        return folded(
            np.array(self.took_ns, dtype=np.int64),
            np.array(self.ended_ns, dtype=np.int64) - self.began_ns,
            np.array(self.failed_ns, dtype=np.int64) - self.began_ns,
            over_ns=over_ns - self.began_ns,
            errors=dict(self.errors),
            unsent=self.unsent,
            weight=weight,
            timeline=timeline,
        )


def folded(
    took_ns: Numbers,
    ended_ns: Numbers,
    failed_ns: Numbers,
    *,
    over_ns: int,
    errors: dict[str, int],
    unsent: int = 0,
    weight: int = 1,
    timeline: bool = True,
) -> Load:
    """Make the figures of raw ones. All moments are nanoseconds since the load began.

    :param took_ns: how long each answered call took
    :param ended_ns: when it was answered, in the same order
    :param failed_ns: when calls failed
    :param over_ns: when the callers' time was over; answers may come later
    :param unsent: calls that were due and could not be sent
    :param weight: single calls in one, of a batch
    """
    began_s = time.process_time()
    over_ns = max(over_ns, int(ended_ns.max(initial=0)), 1)
    moments = np.concatenate(([0], np.sort(ended_ns), [over_ns]))
    load = Load(
        calls=len(took_ns) * weight,
        failed=len(failed_ns) * weight + unsent,
        elapsed_s=over_ns / 1e9,
        latencies=Latencies.of_ns(took_ns),
        errors={**errors, **({"Unsent": unsent} if unsent else {})},
        longest_gap_s=float(np.diff(moments).max()) / 1e9,
        timeline=_timeline(took_ns, ended_ns, failed_ns, over_ns, weight) if timeline else (),
    )
    return dataclasses.replace(load, folding_cpu_s=time.process_time() - began_s)


def _timeline(took_ns: Numbers, ended_ns: Numbers, failed_ns: Numbers, over_ns: int, weight: int) -> tuple[Slice, ...]:
    width_ns = int(SLICE_S * 1e9)
    size = over_ns // width_ns + 1
    places = np.minimum(ended_ns // width_ns, size - 1)
    calls = np.bincount(places, minlength=size)
    # Those that failed after the end are in the last slice.
    failed = np.bincount(np.minimum(failed_ns // width_ns, size - 1), minlength=size)
    slowest = np.zeros(size)
    np.maximum.at(slowest, places, took_ns / 1e6)
    return tuple(
        Slice(round(place * SLICE_S, 3), int(calls[place]) * weight, int(failed[place]) * weight, round(float(slowest[place]), 3))
        for place in range(size)
    )


async def closed_loop(
    call: Call,
    *,
    in_flight: int,
    duration_s: float,
    book: Book | None = None,
    first: int = 0,
    weight: int = 1,
    timeline: bool = True,
    calls_max: int = sys.maxsize,
    stop: asyncio.Event | None = None,
) -> Load:
    """Keep `in_flight` calls under way for `duration_s`.

    :param call: makes the call numbered by its argument, and gives what to await. An error counts as a failed call, and the caller goes on.
    :param book: is told which numbers were answered and which failed, to be compared with what is stored
    :param first: number of the first call; caller i makes the calls first + i, first + i + in_flight, ...
    :param weight: single calls in one, of a batch
    :param timeline: keep one
    :param calls_max: ends it before its time; so many numbers are called, each once
    :param stop: ends it before its time
    :raises RuntimeError: more than `FAILURES_MAX` calls failed
    """
    clock = time.perf_counter_ns
    record = _Record(clock)
    took, ended = record.took_ns.append, record.ended_ns.append
    answered = book.answered if book is not None else None
    deadline_ns = record.began_ns + int(duration_s * 1e9)
    end = first + calls_max
    over_ns = deadline_ns

    async def caller(number: int) -> None:
        nonlocal over_ns
        while (began_ns := clock()) < deadline_ns and number < end and (stop is None or not stop.is_set()):
            try:
                await call(number)
            except Exception as error:  # whatever a system under test raises is a failed call
                record.failed(error, clock())
                if book is not None:
                    book.failed(number, error)
                if len(record.failed_ns) > FAILURES_MAX:
                    raise RuntimeError(f"more than {FAILURES_MAX:,} calls failed: {dict(record.errors)}; last: {error}") from error
            else:
                now_ns = clock()
                took(now_ns - began_ns)
                ended(now_ns)
                if answered is not None:
                    answered(number)
            number += in_flight
        # The first caller without a next call ends the load, but for what is under way.
        over_ns = min(over_ns, clock())

    try:
        async with asyncio.TaskGroup() as group:
            for place in range(in_flight):
                group.create_task(caller(first + place))
    except ExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    return record.load(over_ns, weight=weight, timeline=timeline)


async def open_loop(
    call: Call,
    *,
    rate: float,
    duration_s: float,
    book: Book | None = None,
    first: int = 0,
    timeline: bool = True,
    in_flight_max: int = OPEN_IN_FLIGHT_MAX,
    grace_s: float = OPEN_GRACE_S,
    clock: Clock = time.perf_counter_ns,
) -> Load:
    """Make `rate` calls a second, evenly spaced, whatever the answers do; every latency counts from when the call was due.

    A call that has no answer when `grace_s` after the end are over counts as failed (`UnansweredError`), and is given up; so does one that
    could not even be sent until then (``Unsent``).

    :param call: as for `closed_loop`
    :param rate: calls per second
    :param in_flight_max: more are not sent at once; they wait, and their wait counts
    :param clock: monotonic nanoseconds; tests give virtual ones
    :raises ValueError: `rate` is not above zero
    """
    if rate <= 0:
        raise ValueError(f"rate: expected calls per second above 0, got {rate}")
    loop = asyncio.get_running_loop()
    record = _Record(clock)
    ends_ns = record.began_ns + int((duration_s + grace_s) * 1e9)
    under_way: dict[asyncio.Future[Any], int] = {}
    total, sent = round(rate * duration_s), 0
    is_room = asyncio.Event()
    is_room.set()

    def due_ns(number: int) -> int:
        return record.began_ns + int(number * 1e9 / rate)

    def on_done(answer: asyncio.Future[Any]) -> None:
        number = under_way.pop(answer)
        is_room.set()
        error = asyncio.CancelledError() if answer.cancelled() else answer.exception()
        now_ns = clock()
        if error is not None:
            record.failed(error, now_ns)
            if book is not None:
                book.failed(first + number, error)
            return
        record.took_ns.append(now_ns - due_ns(number))
        record.ended_ns.append(now_ns)
        if book is not None:
            book.answered(first + number)

    def send(number: int) -> None:
        try:
            awaitable = call(first + number)
        except Exception as error:  # noqa: BLE001 - a system may refuse at once, because it has enough to do
            record.failed(error, clock())
            if book is not None:
                book.failed(first + number, error)
            return
        answer = awaitable if isinstance(awaitable, asyncio.Future) else loop.create_task(_awaited(awaitable))
        under_way[answer] = number
        answer.add_done_callback(on_done)

    while sent < total and (now_ns := clock()) < ends_ns:
        while sent < total and due_ns(sent) <= now_ns and len(under_way) < in_flight_max:
            send(sent)
            sent += 1
        if len(under_way) >= in_flight_max:
            is_room.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((ends_ns - now_ns) / 1e9):
                    await is_room.wait()
        elif sent < total:
            await asyncio.sleep(max(PACE_S, (due_ns(sent) - clock()) / 1e9))
    if under_way:
        await asyncio.wait(list(under_way), timeout=max(0.0, (ends_ns - clock()) / 1e9))
    for answer, number in list(under_way.items()):
        answer.remove_done_callback(on_done)
        answer.cancel()
        record.failed(UnansweredError(), clock())
        if book is not None:
            book.failed(first + number, UnansweredError())
    under_way.clear()
    record.unsent = total - sent
    return record.load(record.began_ns + int(duration_s * 1e9), timeline=timeline)


def _awaited(awaitable: Awaitable[object]) -> Coroutine[Any, Any, object]:
    if asyncio.iscoroutine(awaitable):
        return awaitable

    async def wait() -> object:
        return await awaitable

    return wait()
