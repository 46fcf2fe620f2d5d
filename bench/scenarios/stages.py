"""Where the time of a call goes: a profile of hosts and client in one process, summed by stage of the hot path (docs/hot-path.md).

A profiler charges each call of a function alike, so small functions look larger than they are: the shares say where to look, and
``inside`` says what a change has brought. Of a compiled build nothing could be seen.
"""

from __future__ import annotations

import cProfile
import operator
import pstats
import time
from collections import defaultdict
from typing import Final

import actorgrid
from bench.bench import Bench
from bench.load import closed_loop
from bench.machine import MachineWatch
from bench.measure import run_of
from bench.results import Row
from bench.scenarios.inside import grid_inside, no_collector
from bench.workload import Workload

CALLS: Final = 30_000
IN_FLIGHT: Final = 1_024
ROUND_S_MAX: Final = 120.0

#: Stage by the beginning of a module's path inside of the package; the first that fits.
STAGES: Final = (
    ("client", ("client/", "grid")),
    ("frames", ("wire/",)),
    ("connections of clients", ("host/server",)),
    ("admission", ("host/admission", "host/turn", "host/load")),
    ("the turn", ("host/runner", "actor/", "host/activation", "host/residents")),
    ("office: entries, answers", ("host/partition",)),
    ("sessions", ("replication/session",)),
    ("records: encode, decode, check", ("replication/entry",)),
    ("the core", ("replication/",)),
    ("replica shell", ("host/replica_shell", "host/replicas")),
    ("group commit", ("host/commit",)),
    ("peers", ("host/peers",)),
    ("store: log and state", ("storage/",)),
)
OTHER: Final = "everything else"


def stage_of(path: str) -> str:
    """The stage of a source file."""
    inside = path.rpartition("/actorgrid/")[2] if "/actorgrid/" in path else ""
    return next((stage for stage, beginnings in STAGES if inside.startswith(beginnings)), OTHER)


async def stages(bench: Bench) -> None:
    if actorgrid.__compiled__:
        raise RuntimeError("a compiled build cannot be profiled by its functions: run this one on the pure build")
    await bench.grids.close()
    shape = bench.shape()
    async with grid_inside(shape) as client:
        for kind in ("write", "read"):
            workload = Workload(kind=kind, actors=bench.actors)
            await workload.prepare(client)
            bench.say(f"stages: {kind}, {CALLS:,} calls, profiled")
            row = Row(
                scenario="stages",
                operation=kind,
                hosts=shape.hosts,
                partitions=shape.partitions,
                replicas=shape.replicas,
                actors=workload.actors,
                in_flight=IN_FLIGHT,
            )
            profile, watch, began_s = cProfile.Profile(), MachineWatch(), time.process_time()
            with no_collector(), profile:
                load = await closed_loop(
                    workload.call(client), in_flight=IN_FLIGHT, duration_s=ROUND_S_MAX, calls_max=CALLS, timeline=False
                )
            row.fill([run_of(load, time.process_time() - began_s, watch)])
            row.figures = {f"{stage} %": share for stage, share in shares_of(profile).items()}
            bench.rows.append(row)


def shares_of(profile: cProfile.Profile) -> dict[str, float]:
    """Percent of the time by stage, the largest first; what C functions take belongs to the stage that calls them."""
    spent: dict[str, float] = defaultdict(float)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, dict[tuple[str, int, str], tuple[int, int, float, float]]]]
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (path, _, _), (_, _, own_s, _, callers) in stats.items():
        if path != "~":
            spent[stage_of(path)] += own_s
        for (caller, _, _), (_, _, seconds, _) in callers.items() if path == "~" else ():
            spent[stage_of(caller)] += seconds
    total_s = sum(spent.values()) or 1.0
    return {stage: seconds / total_s * 100 for stage, seconds in sorted(spent.items(), key=operator.itemgetter(1), reverse=True)}
