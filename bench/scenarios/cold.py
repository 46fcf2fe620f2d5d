"""Actors that are on disk and not in memory: first calls after all hosts have started anew.

The page cache of the machine is as warm as it is; what is measured is activation, not the disk.
"""

from __future__ import annotations

import asyncio
import math
import time

from actorgrid import grid
from bench.actors import Counter
from bench.bench import Bench, quiet_collector
from bench.load import Load, closed_loop
from bench.measure import measure
from bench.results import Faults
from bench.target import Target
from bench.workload import BATCH, Workload

MILLION = 1_000_000
#: Batches of 1,000 under way while actors are made.
MAKERS = 4
MAKE_S_MAX = 600.0
#: Not near a divisor of anything: actors in an order that looks random.
STRIDE = 618_033_987


async def storm(bench: Bench) -> None:
    await _cold(bench, "storm", bench.options.actors or 20_000)


async def million(bench: Bench) -> None:
    await _cold(bench, "million", bench.options.actors or MILLION)


async def _cold(bench: Bench, scenario: str, actors: int) -> None:
    # In whole batches, as a batch that is not full would count as one.
    actors = -(-actors // BATCH) * BATCH
    workload = Workload(kind="write", actors=actors, prefix=scenario)
    target = await bench.grids.of(bench.shape(), fresh=True)
    disk_before = target.disk_bytes()
    await _make(bench, target, workload, scenario)
    bench.say(f"{scenario}: restarting all hosts")
    stopped_s = time.monotonic()
    await target.restart()
    restart_s = time.monotonic() - stopped_s
    in_flight = max(bench.options.concurrency)
    bench.say(f"{scenario}: first calls to cold actors, {in_flight:,} in flight")
    reads = Workload(kind="read", actors=actors, prefix=scenario)
    row = bench.row(target, reads, scenario, "first reads", in_flight=in_flight)
    stride = stride_of(actors)
    lost = doubled = 0

    async def first_read(number: int) -> None:
        nonlocal lost, doubled
        value = await target.client.get(Counter, f"{scenario}-{number * stride % actors}").read()
        lost += value < 1
        doubled += value > 1

    async def load(duration_s: float) -> Load:
        # Once: a second call is to a warm actor.
        return await closed_loop(first_read, in_flight=in_flight, duration_s=duration_s, calls_max=actors)

    with quiet_collector():
        await measure(row, load, pids=target.pids, duration_s=max(bench.options.duration_s, 2.0), runs=1, warm_up_s=0)
    row.figures = {
        "restart_s": restart_s,
        "actors_activated": float(row.runs[0].calls),
        "disk_bytes_per_actor": (target.disk_bytes() - disk_before) / actors,
    }
    row.faults = Faults(acknowledged=row.runs[0].calls, failed=row.failed, lost=lost, doubled=doubled)
    bench.rows.append(row)


def stride_of(actors: int) -> int:
    """Multiples of it, modulo `actors`, are each actor once."""
    return next(stride for stride in range(STRIDE, STRIDE + actors + 1) if math.gcd(stride, actors) == 1)


async def _make(bench: Bench, target: Target, workload: Workload, scenario: str) -> None:
    """Make every actor with one write, in batches, as a row of its own."""
    actors = workload.actors
    bench.say(f"{scenario}: making {actors:,} actors")
    row = bench.row(target, workload, scenario, "make", in_flight=MAKERS * BATCH)

    async def make(number: int) -> None:
        ids = range(number * BATCH, (number + 1) * BATCH)
        await target.client.map(Counter.add, [(f"{workload.prefix}-{each}", 1) for each in ids])

    async def load(duration_s: float) -> Load:
        return await closed_loop(make, in_flight=MAKERS, duration_s=duration_s, weight=BATCH, calls_max=actors // BATCH)

    await measure(row, load, pids=target.pids, duration_s=MAKE_S_MAX, runs=1, warm_up_s=0)
    if row.failed or row.runs[0].calls < actors:
        # The first reads would take what was never made for lost.
        raise RuntimeError(
            f"only {row.runs[0].calls:,} of {actors:,} actors could be made; errors: {row.errors or 'none, but time was over'}"
        )
    bench.rows.append(row)


async def activate(client: grid.Client, prefix: str, actors: int) -> None:
    """Call each once, so that it is in memory."""
    for start in range(0, actors, BATCH):
        await client.map(Counter.read, [(f"{prefix}-{each}",) for each in range(start, min(actors, start + BATCH))])
    await asyncio.sleep(1)
