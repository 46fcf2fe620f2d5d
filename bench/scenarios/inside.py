"""Three hosts and the client in one process on one event loop: no hand-over between processes, so the least noise there is.

For two versions of the code, one after the other on the same machine: a difference of a few per cent is real here. Its figures are not
those of a grid: no process waits for another, and a lone host's caches are everybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from actorgrid import grid
from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.ids import HostName
from actorgrid.wire.messages import HostInfo
from bench.bench import Bench
from bench.load import closed_loop
from bench.machine import MachineWatch
from bench.measure import run_of
from bench.peers.processes import LOOPBACK, free_ports
from bench.results import Row
from bench.target import ROOT, Shape
from bench.workload import Workload

#: Calls of one round, of which there are `ROUNDS` or as many as ``--runs`` says: one to two seconds each.
CALLS = {"write": 30_000, "read": 60_000}
ROUNDS = 7
IN_FLIGHT = 1_024
READY_S = 60.0
POLL_S = 0.05
#: After the start, and after all actors are made: leases are settled, and what was put off is done.
SETTLE_S = 2.0
ROUND_S_MAX = 120.0


async def inside(bench: Bench) -> None:
    # A grid of another scenario would want processor meanwhile, and its client would share this loop.
    await bench.grids.close()
    in_flight = min(IN_FLIGHT, max(bench.options.concurrency))
    rounds = max(ROUNDS, bench.options.runs)
    for replicas in bench.options.replicas:
        shape = bench.shape(replicas=replicas)
        bench.say(f"inside: starting {shape.hosts} hosts in this process")
        async with grid_inside(shape) as client:
            for kind, calls in CALLS.items():
                workload = Workload(kind=kind, actors=bench.actors)
                await workload.prepare(client)
                await asyncio.sleep(SETTLE_S)
                bench.say(f"inside: {kind}, {rounds} rounds of {calls:,} calls, {in_flight:,} in flight")
                row = Row(
                    scenario="inside",
                    operation=kind,
                    durability="hosts and client in one process",
                    hosts=shape.hosts,
                    partitions=shape.partitions,
                    replicas=shape.replicas,
                    actors=workload.actors,
                    in_flight=in_flight,
                )
                with no_collector():
                    await _rounds(row, workload, client, rounds, calls)
                bench.rows.append(row)


async def _rounds(row: Row, workload: Workload, client: grid.Client, rounds: int, calls: int) -> None:
    call, runs = workload.call(client), []
    for number in range(rounds + 1):
        watch, began_s = MachineWatch(), time.process_time()
        load = await closed_loop(call, in_flight=row.in_flight, duration_s=ROUND_S_MAX, calls_max=calls, timeline=False)
        used_s = time.process_time() - began_s
        if load.failed or load.calls < calls:
            raise RuntimeError(f"{load.calls:,} of {calls:,} calls were answered; errors: {load.errors or 'none, but time was over'}")
        if number:  # the first one warms up
            runs.append(run_of(load, used_s, watch))
    row.fill(runs)
    row.figures = {
        "cpu_us_per_call_min": min(run.cpu_us_per_call for run in runs),
        "cpu_us_per_call_median": row.cpu_us_per_call,
        "rounds": float(rounds),
    }


@contextlib.asynccontextmanager
async def grid_inside(shape: Shape) -> AsyncIterator[grid.Client]:
    """Hosts on this loop, on free ports and a temporary directory; stopped afterwards, however far they came."""
    ports = free_ports(shape.hosts)
    names = [HostName(f"host-{place + 1}") for place in range(shape.hosts)]
    infos = tuple(HostInfo(name, LOOPBACK, port) for name, port in zip(names, ports, strict=True))
    with tempfile.TemporaryDirectory(prefix="actorgrid-bench-inside-", ignore_cleanup_errors=True) as directory:
        async with contextlib.AsyncExitStack() as stack:
            hosts = []
            for name, port in zip(names, ports, strict=True):
                host = Host(
                    HostConfig(
                        cluster_id="inside",
                        name=name,
                        node=f"node-{name}",
                        data_dir=Path(directory) / name,
                        address=LOOPBACK,
                        port=port,
                        partition_count=shape.partitions,
                        replica_set_size=shape.replicas,
                        hosts=infos,
                        app=("bench.actors",),
                        app_path=(str(ROOT),),
                    )
                )
                await host.start()
                stack.push_async_callback(host.stop)
                hosts.append(host)
            await hosts[0].administer("init", {})
            async with asyncio.timeout(READY_S):
                while sum(partition.serving for host in hosts for partition in host.partitions.values()) < shape.partitions:
                    await asyncio.sleep(POLL_S)
            yield await stack.enter_async_context(grid.connect(",".join(f"{LOOPBACK}:{port}" for port in ports)))


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """No garbage collection at all: when one happens is chance."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
