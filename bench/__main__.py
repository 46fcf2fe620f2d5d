"""``python -m bench run write|read|memory``: measure a local grid on Ray, everything on this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from actorgrid import grid
from actorgrid.cluster.local import LocalGrid
from bench.actors import Counter
from bench.load import Row, closed_loop
from bench.machine import describe, resident_bytes

SCENARIOS = ("write", "read", "memory")
MAP_SIZE = 2000

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure ActorGrid on this machine.")
console = Console(stderr=True)


@app.callback()
def main() -> None:
    """Measure ActorGrid on this machine."""


@app.command()
def run(
    scenarios: Annotated[list[str], typer.Argument(help=f"one or more of: {', '.join(SCENARIOS)}")],
    duration: Annotated[float, typer.Option(help="seconds per row", min=0.1)] = 5.0,
    concurrency: Annotated[str, typer.Option(help="calls in flight, separated by commas")] = "1,64,1024",
    replicas: Annotated[str, typer.Option(help="replica set sizes, each measured on a grid of its own, separated by commas")] = "3,1",
    hosts: Annotated[int, typer.Option(min=1, max=64)] = 3,
    partitions: Annotated[int, typer.Option(min=1, max=65536)] = 64,
    actors: Annotated[int, typer.Option(help="actors called in turn", min=1)] = 10_000,
    activations: Annotated[int, typer.Option(help="for the scenario memory", min=1000)] = 100_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows there too")] = None,
) -> None:
    """Run scenarios against a fresh grid, and print a table."""
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(SCENARIOS)}")
    levels = [int(level) for level in concurrency.split(",")]
    sizes = [int(size) for size in replicas.split(",")]
    before = describe()
    rows: list[Row] = []
    memory: dict[str, Any] | None = None
    for size in sizes:
        with (
            tempfile.TemporaryDirectory(prefix="actorgrid-bench-") as data,
            LocalGrid(
                nodes=hosts,
                app=["bench.actors"],
                app_path=[str(Path(__file__).parent.parent)],
                data=Path(data) / "grid",
                port=0,
                partitions=partitions,
                replicas=size,
            ) as local,
        ):
            # Memory does not depend on the number of replicas: it is measured once.
            chosen = [name for name in scenarios if name != "memory" or size == sizes[0]]
            more, measured = uvloop.run(_measure(local, chosen, levels, duration, actors, activations, size))
            rows += more
            memory = measured or memory
    _print(rows, memory)
    if json_file is not None:
        document = {
            "machine": before,
            "hosts": hosts,
            "partitions": partitions,
            "rows": [dataclasses.asdict(row) for row in rows],
            "memory": memory,
        }
        json_file.write_text(json.dumps(document, indent=2) + "\n")


async def _measure(
    local: LocalGrid, scenarios: list[str], levels: list[int], duration_s: float, actors: int, activations: int, replicas: int
) -> tuple[list[Row], dict[str, Any] | None]:
    pids = list(local.host_pids().values())
    rows: list[Row] = []
    memory = None
    async with grid.connect(local.address) as client:
        ids = [f"actor-{number}" for number in range(actors)]
        await _touch(client, ids)
        for scenario in scenarios:
            if scenario == "memory":
                memory = await _memory(client, pids, activations)
                continue
            for level in levels:
                console.print(f"{scenario}, {replicas} replicas, {level} in flight ...")

                async def write(number: int) -> object:
                    return await client.get(Counter, ids[number % actors]).add(1)

                async def read(number: int) -> object:
                    return await client.get(Counter, ids[number % actors]).read()

                call = write if scenario == "write" else read
                warm_up_s = min(1.0, duration_s)
                await closed_loop(scenario, call, in_flight=level, duration_s=warm_up_s, pids=pids, replicas=replicas)
                rows.append(await closed_loop(scenario, call, in_flight=level, duration_s=duration_s, pids=pids, replicas=replicas))
    return rows, memory


async def _touch(client: grid.Client, ids: list[str]) -> None:
    for start in range(0, len(ids), MAP_SIZE):
        await client.map(Counter.add, [(actor_id, 1) for actor_id in ids[start : start + MAP_SIZE]])


async def _memory(client: grid.Client, pids: list[int], activations: int) -> dict[str, Any]:
    """Activate many actors that have stored state, and see what the hosts grew by once the calls are over."""
    console.print(f"memory, {activations} idle activations ...")
    await asyncio.sleep(1)
    before = sum(map(resident_bytes, pids))
    ids = [f"idle-{number}" for number in range(activations)]
    for start in range(0, activations, MAP_SIZE):
        await client.map(Counter.read, [(actor_id,) for actor_id in ids[start : start + MAP_SIZE]])
    await asyncio.sleep(1)
    after = sum(map(resident_bytes, pids))
    return {"activations": activations, "bytes_before": before, "bytes_after": after, "bytes_each": (after - before) / activations}


def _print(rows: list[Row], memory: dict[str, Any] | None) -> None:
    out = Console(width=None if sys.stdout.isatty() else 110)
    if rows:
        table = Table("call", title="closed loop, one client process, synced before every answer")
        for name in (
            "replicas",
            "in flight",
            "calls/s",
            "p50 ms",
            "p99 ms",
            "slowest ms",
            "CPU us a call",
            "busy",
            "steal",
            "of 1 replica",
        ):
            table.add_column(name, justify="right")
        for row in rows:
            latencies = [f"{row.p50_ms:.3f}", f"{row.p99_ms:.2f}", f"{row.slowest_ms:.0f}"]
            shares = [f"{row.cpu_us_per_call:.1f}", f"{row.busy:.0%}", f"{row.steal:.0%}"]
            alone = next((r for r in rows if (r.scenario, r.in_flight, r.replicas) == (row.scenario, row.in_flight, 1)), None)
            ratio = f"{row.calls_per_s / alone.calls_per_s:.2f}" if alone is not None else ""
            counts = (str(row.replicas), str(row.in_flight), f"{row.calls_per_s:,.0f}")
            table.add_row(row.scenario, *counts, *latencies, *shares, ratio)
        out.print(table)
    if memory is not None:
        out.print(f"{memory['activations']:,} idle activations: {memory['bytes_each']:,.0f} bytes each, over all hosts")


if __name__ == "__main__":
    app()
