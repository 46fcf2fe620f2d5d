"""More of something: partitions, client processes, hosts."""

from __future__ import annotations

from bench.bench import Bench
from bench.scenarios.resting import idle_row
from bench.workload import Workload

PARTITIONS = (64, 512, 4096)
CLIENTS = (1, 2, 4)
HOSTS = (1, 3, 5)


async def partitions(bench: Bench) -> None:
    options = bench.options
    for count in options.partitions if options.partitions_given else PARTITIONS:
        target = await bench.grids.of(bench.shape(partitions=count))
        await idle_row(bench, target, "partitions")
        workload = Workload(kind="write", actors=max(bench.actors, count))
        await workload.prepare(target.client)
        await bench.closed(target, workload, scenario="partitions", operation="write", in_flight=max(options.concurrency))


async def clients(bench: Bench) -> None:
    target = await bench.grids.of(bench.shape())
    for kind in ("write", "read"):
        workload = Workload(kind=kind, actors=bench.actors)
        await workload.prepare(target.client)
        for count in CLIENTS:
            await bench.closed(
                target, workload, scenario="scale-clients", operation=kind, in_flight=max(bench.options.concurrency), clients=count
            )


async def hosts(bench: Bench) -> None:
    """With fewer cores than processes this shows what a host costs, not how a grid scales."""
    for count in HOSTS:
        target = await bench.grids.of(bench.shape(hosts=count, replicas=min(count, max(bench.options.replicas))))
        for kind in ("write", "read"):
            workload = Workload(kind=kind, actors=bench.actors)
            await workload.prepare(target.client)
            await bench.closed(target, workload, scenario="scale-hosts", operation=kind, in_flight=max(bench.options.concurrency))
