"""Closed-loop load: so many callers, each with one call at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable

from bench.machine import MachineWatch, cpu_s

Call = Callable[[int], Awaitable[object]]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One measured line. Latencies in ms; CPU in microseconds per call over the client and all hosts."""

    scenario: str
    replicas: int
    in_flight: int
    calls: int
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    cpu_us_per_call: float
    busy: float
    steal: float


async def closed_loop(scenario: str, call: Call, *, in_flight: int, duration_s: float, pids: list[int], replicas: int) -> Row:
    """Keep `in_flight` calls under way for `duration_s`.

    :param replicas: of each partition, for the row
    :param call: makes the call numbered by its argument and waits for it
    :param pids: the hosts; this process is counted too
    """
    took_ns: list[int] = []
    processes = [os.getpid(), *pids]
    deadline_ns = time.perf_counter_ns() + int(duration_s * 1e9)

    async def caller(first: int) -> None:
        number = first
        while (began_ns := time.perf_counter_ns()) < deadline_ns:
            await call(number)
            took_ns.append(time.perf_counter_ns() - began_ns)
            number += in_flight

    watch, cpu_before, began_s = MachineWatch(), cpu_s(processes), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(in_flight):
            group.create_task(caller(first))
    elapsed_s, cpu_used_s, share = time.perf_counter() - began_s, cpu_s(processes) - cpu_before, watch.stop()
    took_ns.sort()
    calls = len(took_ns)
    return Row(
        scenario=scenario,
        replicas=replicas,
        in_flight=in_flight,
        calls=calls,
        calls_per_s=calls / elapsed_s,
        p50_ms=took_ns[calls // 2] / 1e6,
        p99_ms=took_ns[calls * 99 // 100] / 1e6,
        slowest_ms=took_ns[-1] / 1e6,
        cpu_us_per_call=cpu_used_s / calls * 1e6,
        busy=share.busy,
        steal=share.steal,
    )
