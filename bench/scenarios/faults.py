"""What callers see while a host is drained, or killed. Afterwards all state is read back: nothing may be lost, nothing be there twice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from actorgrid import ambient
from actorgrid.errors import ActorGridError
from bench.bench import Bench, quiet_collector
from bench.load import Load, closed_loop
from bench.machine import CpuMeter, MachineWatch
from bench.measure import points_of, run_of
from bench.results import Mark
from bench.target import Target
from bench.workload import Workload

#: Callers under way: enough to see every partition, and not so many that queues hide the gap.
IN_FLIGHT = 64
BEFORE_S = 2.0
AFTER_S = 2.0
#: A drain, or a host's return, that takes longer is reported as not done.
EVENT_S_MAX = 60.0
LOOK_S = 0.1

#: Does something to the grid while it is loaded. It is given where to note what happened, and the pids that count.
Event = Callable[[Target, Callable[[str], None], CpuMeter], Awaitable[dict[str, float]]]


async def drain(bench: Bench) -> None:
    # One more host than there are replicas, so that what leaves has somewhere to go.
    hosts = max(bench.options.hosts, max(bench.options.replicas) + 1)
    target = await bench.grids.of(bench.shape(hosts=hosts))
    await _under_load(bench, target, "drain", _drain)


async def failover(bench: Bench) -> None:
    target = await bench.grids.of(bench.shape())
    await _under_load(bench, target, "failover", _kill)


def callers(bench: Bench) -> int:
    """As many for the peers as for the grid; fewer where the highest concurrency that is asked for is lower."""
    return min(IN_FLIGHT, max(bench.options.concurrency))


async def _drain(target: Target, mark: Callable[[str], None], meter: CpuMeter) -> dict[str, float]:
    node = target.node_of(target.hosts[-1])
    began = time.monotonic()
    await target.ask("drain", node=node, intent="remove_data")
    mark(f"drain {node}")
    await _until(lambda: target.ask("drain_status", node=node), lambda row: row["state"] == "done", f"{node} is drained")
    drained_s = time.monotonic() - began
    mark("drained")
    await asyncio.sleep(1.0)
    await target.ask("undrain", node=node)
    mark("taken back")
    # Its replicas come back after the quiet time of placement; the first of them are in the picture.
    await asyncio.sleep(AFTER_S)
    return {"drain_s": drained_s}


async def _kill(target: Target, mark: Callable[[str], None], meter: CpuMeter) -> dict[str, float]:
    host = target.hosts[1]
    meter.sample()
    old = await target.kill(host)
    began = time.monotonic()
    mark(f"SIGKILL {host}")

    async def pid() -> int | None:
        return (await asyncio.to_thread(target.pids_by_host)).get(host)

    new = await _until(pid, lambda found: found not in (None, old), f"{host} is started again")
    meter.sample([new])
    mark("process is back")
    await target.whole(EVENT_S_MAX)
    mark("all replicas caught up")
    return {"whole_again_s": time.monotonic() - began}


async def _until(ask: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool], what: str) -> Any:
    deadline = time.monotonic() + EVENT_S_MAX
    while True:
        with contextlib.suppress(ActorGridError):  # the manager may be moving
            if is_so(answer := await ask()):
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {EVENT_S_MAX:g} s: {what}")
        await asyncio.sleep(LOOK_S)


async def _under_load(bench: Bench, target: Target, scenario: str, event: Event) -> None:
    in_flight = callers(bench)
    workload = Workload(kind="write", actors=bench.actors, payload_bytes=bench.options.payload_bytes)
    await workload.prepare(target.client)
    await target.whole()
    bench.say(f"{scenario}: {in_flight} in flight")
    call, book = workload.call(target.client), workload.book()
    row = bench.row(target, workload, scenario, "write", in_flight=in_flight)
    before = await workload.read_back(target.client)
    await closed_loop(call, in_flight=in_flight, duration_s=bench.options.warm_up_s, book=book)
    stop, marks = asyncio.Event(), list[Mark]()
    with quiet_collector():
        watch, meter, began_ns, offset_ms = MachineWatch(), CpuMeter(target.pids()), time.monotonic_ns(), _offset_ms()

        def mark(what: str) -> None:
            marks.append(Mark((time.monotonic_ns() - began_ns) / 1e9, what))

        loading = asyncio.create_task(closed_loop(call, in_flight=in_flight, duration_s=4 * EVENT_S_MAX, book=book, stop=stop))
        try:
            await asyncio.sleep(max(BEFORE_S, bench.options.duration_s / 4))
            row.figures = await event(target, mark, meter)
            await asyncio.sleep(max(AFTER_S, bench.options.duration_s / 4))
        finally:
            stop.set()
            load = await loading
        used_s = meter.used_s(target.pids())
        row.fill([run_of(load, used_s, watch)])
    row.failed, row.errors, row.latencies = load.failed, load.errors, load.latencies.encode()
    row.timeline = points_of(load.timeline)
    row.marks = [*marks, *await _moves(target, began_ns, load, offset_ms)]
    for kind in ("build", "swap"):
        row.figures[f"{kind}s"] = float(sum(each.kind == kind for each in row.marks))
    row.faults = await bench.judge(target, workload, book, before, gap_s=load.longest_gap_s)
    bench.rows.append(row)
    # The next scenario must not measure what is left of this one.
    await bench.grids.close()


def _offset_ms() -> float:
    """Date less monotonic clock: the manager tells dates."""
    return ambient.wall_clock_ns() / 1e6 - time.monotonic_ns() / 1e6


async def _moves(target: Target, began_ns: int, load: Load, offset_ms: float) -> list[Mark]:
    """What placement did meanwhile; a manager that was killed knows nothing of before."""
    try:
        moves = (await target.ask("moves", since=0))["moves"]
    except ActorGridError:
        return []
    at = [((move["at_ms"] - offset_ms) / 1e3 - began_ns / 1e9, move) for move in moves]
    return [Mark(at_s, f"partition {move['partition']}", str(move["what"])) for at_s, move in at if 0 <= at_s <= load.elapsed_s]
