"""Calls of each kind, at each level of concurrency, and then at a rate."""

from __future__ import annotations

from bench.bench import Bench
from bench.target import Target
from bench.workload import BATCH, FAN, Workload

LARGE_BYTES = 1_000_000
LARGE_ACTORS = 64
#: More of 1 MB would measure how memory is moved about.
LARGE_IN_FLIGHT = (1, 16)
BATCHES = (1, 4)


async def write(bench: Bench) -> None:
    await _at_all_levels(bench, Workload(kind="write", actors=bench.actors, payload_bytes=bench.options.payload_bytes), "write")


async def read(bench: Bench) -> None:
    await _at_all_levels(bench, Workload(kind="read", actors=bench.actors, payload_bytes=bench.options.payload_bytes), "read")


async def mixed(bench: Bench) -> None:
    await _at_all_levels(bench, Workload(kind="mixed", actors=bench.actors, payload_bytes=bench.options.payload_bytes), "mixed")


async def batch(bench: Bench) -> None:
    workload = Workload(kind="map-read", actors=max(BATCH, bench.actors))
    for replicas in bench.options.replicas:
        target = await _prepared(bench, workload, replicas)
        for batches in BATCHES:
            await bench.closed(target, workload, scenario="map", operation="read", in_flight=batches * BATCH)


async def chain(bench: Bench) -> None:
    await _at_all_levels(bench, Workload(kind="chain", actors=bench.actors // 10 or 1, prefix="chain"), "chain")


async def fan_out(bench: Bench) -> None:
    workload = Workload(kind="fan-out", actors=bench.actors // 10 or 1, prefix="fan")
    # Each call is seventeen: a tenth of the callers is as much work.
    await _at_all_levels(bench, workload, "fan-out", tuple(dict.fromkeys(max(1, each // FAN) for each in bench.options.concurrency)))


async def large(bench: Bench) -> None:
    size = bench.options.payload_bytes or LARGE_BYTES
    target = None
    for kind, operation in (("put", "replace"), ("touch", "small change beside"), ("get", "read")):
        workload = Workload(kind=kind, actors=bench.options.actors or LARGE_ACTORS, payload_bytes=size, prefix="large")
        if target is None:
            target = await _prepared(bench, workload, bench.options.replicas[0])
        for in_flight in LARGE_IN_FLIGHT:
            await bench.closed(target, workload, scenario="large", operation=operation, in_flight=in_flight)


async def _at_all_levels(bench: Bench, workload: Workload, scenario: str, levels: tuple[int, ...] = ()) -> None:
    options = bench.options
    for replicas in options.replicas:
        target = await _prepared(bench, workload, replicas)
        rows = [await bench.closed(target, workload, scenario=scenario, in_flight=in_flight) for in_flight in levels or options.concurrency]
        peak = max(row.calls_per_s for row in rows)
        for rate in options.rates:
            await bench.open(target, workload, scenario=scenario, rate=rate, peak=peak)


async def _prepared(bench: Bench, workload: Workload, replicas: int) -> Target:
    target = await bench.grids.of(bench.shape(replicas=replicas))
    bench.say(f"making {workload.actors:,} actors")
    await workload.prepare(target.client)
    return target
