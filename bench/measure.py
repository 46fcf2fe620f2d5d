"""Measuring: a load, run several times after a warm-up, with what the machine and the processes used meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from bench.latencies import Latencies
from bench.load import SLICE_S, Load, Slice
from bench.machine import CpuMeter, MachineWatch, load_1m
from bench.results import Point, Row, Run

#: Runs a load for so many seconds.
Loader = Callable[[float], Awaitable[Load]]
#: What a load may take beyond its time: its last calls wait for a failover, or for the deadline of a peer.
LATE_S = 100.0


def run_of(load: Load, cpu_used_s: float, watch: MachineWatch) -> Run:
    """The figures of one load that has just ended. `cpu_used_s` is with folding, which is taken off."""
    share = watch.stop()
    of_calls_s = max(0.0, cpu_used_s - load.folding_cpu_s)
    percentile = load.latencies.percentile_ms
    return Run(
        calls=load.calls,
        seconds=round(load.elapsed_s, 3),
        calls_per_s=load.calls_per_s,
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p99_ms=percentile(99),
        p999_ms=percentile(99.9),
        slowest_ms=load.latencies.slowest_ms,
        cpu_us_per_call=of_calls_s / load.calls * 1e6 if load.calls else 0.0,
        busy=share.busy,
        steal=share.steal,
        others=share.others(cpu_used_s),
        load_1m=load_1m(),
    )


async def measure(
    row: Row,
    loader: Loader,
    *,
    pids: Callable[[], Iterable[int]],
    duration_s: float,
    runs: int,
    warm_up_s: float,
    told: Callable[[], Any] = lambda: None,
) -> Load:
    """Warm up, run `loader` `runs` times, and fill in `row`.

    :param pids: all processes that work for the calls, but this one, which is always counted
    :param told: called after each run, for a progress bar
    :returns: the last run
    :raises RuntimeError: no call was answered
    :raises TimeoutError: a load does not end: some call has neither an answer nor a deadline
    """
    if warm_up_s > 0:
        await in_time(loader, warm_up_s)
    measured: list[Run] = []
    latencies = Latencies()
    load: Load | None = None
    for _ in range(runs):
        watch, meter = MachineWatch(), CpuMeter(pids())
        load = await in_time(loader, duration_s)
        used_s = meter.used_s()
        if not load.calls:
            raise RuntimeError(f"{row.name}: no call was answered; errors: {load.errors or 'none'}")
        measured.append(run_of(load, used_s, watch))
        latencies.merge(load.latencies)
        row.failed += load.failed
        for name, count in load.errors.items():
            row.errors[name] = row.errors.get(name, 0) + count
        told()
    assert load is not None, "at least one run"
    row.fill(measured)
    row.latencies = latencies.encode()
    return load


async def in_time(loader: Loader, duration_s: float) -> Load:
    """The load, for so long.

    :raises TimeoutError: it does not end: some call has neither an answer nor a deadline
    """
    try:
        async with asyncio.timeout(duration_s + LATE_S):
            return await loader(duration_s)
    except TimeoutError as error:
        raise TimeoutError(f"a load of {duration_s:g} s did not end within {LATE_S:g} s more: {error or 'a call hangs'}") from error


def points_of(timeline: Iterable[Slice]) -> list[Point]:
    """A load's timeline, as a row keeps it."""
    return [Point(each.at_s, each.calls / SLICE_S, each.failed, each.slowest_ms) for each in timeline]
