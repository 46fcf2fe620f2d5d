"""What a grid takes that nobody calls: processor and memory."""

from __future__ import annotations

import asyncio

from bench.bench import Bench
from bench.machine import MachineWatch, cpu_s, load_1m, resident_bytes
from bench.results import Row
from bench.scenarios.cold import activate
from bench.target import Target

MEMORY_ACTORS = 100_000
#: After a start or load: leases are settled, and what was put off is done.
SETTLE_S = 2.0
IDLE_S_MIN = 3.0


async def idle(bench: Bench) -> None:
    await idle_row(bench, await bench.grids.of(bench.shape()), "idle")


async def idle_row(bench: Bench, target: Target, scenario: str) -> Row:
    """Measure how much processor each host takes with nothing to do."""
    shape = target.shape
    bench.say(f"{scenario}: nobody calls, {shape.partitions:,} partitions")
    await asyncio.sleep(SETTLE_S)
    loop = asyncio.get_running_loop()
    pids = target.pids_by_host()
    watch, before, began = MachineWatch(), {name: cpu_s([pid]) for name, pid in pids.items()}, loop.time()
    await asyncio.sleep(max(IDLE_S_MIN, bench.options.duration_s))
    seconds = loop.time() - began
    shares = [(cpu_s([pid]) - before[name]) / seconds * 100 for name, pid in pids.items()]
    share = watch.stop()
    row = Row(
        scenario=scenario,
        operation="idle",
        hosts=shape.hosts,
        partitions=shape.partitions,
        replicas=shape.replicas,
        busy=share.busy,
        steal=share.steal,
        load_1m=load_1m(),
        figures={
            "core_percent_per_host": sum(shares) / len(shares),
            "core_percent_busiest_host": max(shares),
            "host_resident_mib": sum(map(resident_bytes, pids.values())) / len(pids) / (1 << 20),
        },
    )
    bench.rows.append(row)
    return row


async def memory(bench: Bench) -> None:
    """Activate many actors without state, and see what the hosts grew by once the calls are over."""
    count = bench.options.actors or MEMORY_ACTORS
    target = await bench.grids.of(bench.shape(), fresh=True)
    bench.say(f"memory: {count:,} idle activations")
    await activate(target.client, "warm-up", 1_000)
    before = sum(map(resident_bytes, target.pids()))
    await activate(target.client, "idle", count)
    after = sum(map(resident_bytes, target.pids()))
    shape = target.shape
    bench.rows.append(
        Row(
            scenario="memory",
            operation="idle activations",
            hosts=shape.hosts,
            partitions=shape.partitions,
            replicas=shape.replicas,
            actors=count,
            figures={"bytes_per_activation": (after - before) / count},
        )
    )
