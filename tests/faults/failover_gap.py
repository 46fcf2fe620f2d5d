"""``python -m tests.faults.failover_gap``: for how long can nobody write when the host with the most primaries is killed?

64 callers in one process of their own change actors of all partitions. The host with the most primaries gets a SIGKILL at a random moment
of lease and beat, first `--repeats` times with a supervisor that tells the other hosts at once ("supervised"), then as often with nobody
telling anybody ("silent"). For each partition that the host was primary of, the gap is the longest time between two acknowledged writes
to that partition, from the last one before the kill on; a repeat's figure is the longest of its partitions.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import random
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.faults.campaign import clean_up_on_sigterm, environment
from tests.faults.checkers import percentile
from tests.faults.grid_processes import GridProcesses, NotHealthyError, Supervision
from tests.faults.history import Record, partition_of_actor
from tests.faults.injector import BEAT_S, LEASE_S
from tests.faults.load import LoadProcesses

CALLERS = 64
#: A host comes back so long after its death: in supervised mode as Ray does it, in silent mode later than others can have missed it.
RESTART_AFTER_S = {"supervised": 1.5, "silent": 6.0}
MODES = tuple(RESTART_AFTER_S)


class Kill(msgspec.Struct, kw_only=True):
    """One repeat.

    :ivar gap_s: the longest gap of any affected partition; :ivar union_gap_s: the longest time without a write to any of them
    :ivar usual_gap_s: the longest gap of these partitions in the two seconds before the kill, to compare with
    """

    mode: str
    host: str
    at_ns: int
    whole_ns: int
    partitions: list[int]
    gap_s: float = 0.0
    union_gap_s: float = 0.0
    usual_gap_s: float = 0.0
    writes_per_s_before: float = 0.0


async def measure(
    directory: Path, *, seed: int, repeats: int, partitions: int, replicas: int, callers: int, console: Console
) -> list[Kill]:
    """All repeats of both modes, on one grid."""
    rng = random.Random(f"{seed}/failover")
    kills: list[Kill] = []
    # Hosts that see nothing by themselves: what they know of a death is what a supervisor tells them, or what silence does.
    async with GridProcesses(directory / "grid", partitions=partitions, replica_set_size=replicas, watches_processes=False) as hosts:
        load = LoadProcesses(
            directory / "load",
            hosts,
            seed=seed,
            processes=1,
            callers={"writer": callers},
            probe=False,
            think_s=0.002,
            cold_actors=16 * partitions,
            generation_s=600,
        )
        async with load:
            await asyncio.sleep(3)
            with Progress(console=console) as progress:
                bar = progress.add_task("kills", total=repeats * len(MODES))
                for mode in MODES:
                    for _ in range(repeats):
                        await asyncio.sleep(2.5 + rng.random() * (LEASE_S + BEAT_S))
                        load.check_alive()
                        seen = await hosts.wait_healthy()
                        host = seen.hosts_by_primaries(hosts.hosts)[0]
                        kill = Kill(mode=mode, host=host, at_ns=time.monotonic_ns(), whole_ns=0, partitions=seen.primaries_of(host))
                        hosts.kill(host, Supervision(RESTART_AFTER_S[mode], tells=mode == "supervised"))
                        await asyncio.sleep(RESTART_AFTER_S[mode])
                        await hosts.wait_healthy()
                        kill.whole_ns = time.monotonic_ns()
                        kills.append(kill)
                        progress.update(bar, advance=1, description=f"{mode}, {host}")
                await asyncio.sleep(2)
        told = [each for each in hosts.told if "never learnt" in each["answer"] or "Error" in each["answer"]]
        if told:
            console.print(f"NOT ALL WERE TOLD: {len(told)} of {len(hosts.told)}, for example {told[0]}", style="bold red", markup=False)
        fill_in(kills, load.records(), partitions)
    return kills


def fill_in(kills: list[Kill], records: list[Record], partition_count: int) -> None:
    """Compute the gaps of each repeat from what callers saw."""
    ends: dict[int, list[int]] = defaultdict(list)
    partitions: dict[str, int] = {}
    for record in records:
        if record.is_acknowledged_write:
            partition = partitions.get(record.actor)
            if partition is None:
                partition = partitions[record.actor] = partition_of_actor(record.actor, partition_count)
            ends[partition].append(record.ended_ns)
    for each in ends.values():
        each.sort()
    for kill in kills:
        affected = [ends[partition] for partition in kill.partitions]
        union = sorted(end for each in affected for end in each)
        kill.gap_s = max(_longest_s(each, kill.at_ns, kill.whole_ns) for each in affected)
        kill.union_gap_s = _longest_s(union, kill.at_ns, kill.whole_ns)
        kill.usual_gap_s = max(_longest_s(each, kill.at_ns - 2 * 10**9, kill.at_ns) for each in affected)
        kill.writes_per_s_before = (bisect.bisect(union, kill.at_ns) - bisect.bisect(union, kill.at_ns - 2 * 10**9)) / 2


def _longest_s(ends: list[int], began_ns: int, until_ns: int) -> float:
    """The longest time between two ends, from the last one before the window to its end; a window without any is one gap."""
    first = max(0, bisect.bisect(ends, began_ns) - 1)
    inside = [*ends[first : bisect.bisect(ends, until_ns)], until_ns]
    return max((after - before for before, after in itertools.pairwise(inside)), default=until_ns - began_ns) / 1e9


def summary(kills: list[Kill]) -> list[dict[str, Any]]:
    """p50, p99 and maximum for each mode."""
    rows = []
    for mode in MODES:
        for name, field in (("slowest partition", "gap_s"), ("any of them", "union_gap_s"), ("slowest partition, before", "usual_gap_s")):
            values = [getattr(kill, field) for kill in kills if kill.mode == mode]
            if values:
                p50, p99 = (round(percentile(values, share), 3) for share in (0.5, 0.99))
                rows.append(
                    {"mode": mode, "gap of": name, "kills": len(values), "p50_s": p50, "p99_s": p99, "max_s": round(max(values), 3)}
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--repeats", type=int, default=20, help="kills in each mode")
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--callers", type=int, default=CALLERS)
    parser.add_argument("--json", type=Path, default=None, help="where the figures go, each kill by itself")
    options = parser.parse_args()
    console = Console()
    clean_up_on_sigterm()
    directory = Path(tempfile.mkdtemp(prefix=f"actorgrid-failover-{options.seed}-"))
    console.print(f"seed {options.seed}, in {directory}", highlight=False)
    try:
        kills = asyncio.run(
            measure(
                directory,
                seed=options.seed,
                repeats=options.repeats,
                partitions=options.partitions,
                replicas=options.replicas,
                callers=options.callers,
                console=console,
            )
        )
    except NotHealthyError as error:
        console.print(f"{error}; logs are in {directory}", style="bold red", markup=False)
        sys.exit(1)
    rows = summary(kills)
    table = Table(title=f"longest gap between acknowledged writes to the partitions of a killed host, {options.callers} callers")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    rates = [kill.writes_per_s_before for kill in kills]
    console.print(
        f"{min(len(kill.partitions) for kill in kills)}..{max(len(kill.partitions) for kill in kills)} partitions affected, "
        f"{percentile(rates, 0.5):.0f} writes/s to them before the kill; {environment()}",
        highlight=False,
    )
    report = {"environment": environment(), "options": vars(options), "summary": rows, "kills": msgspec.to_builtins(kills)}
    path = options.json or directory / "failover_gap.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report, enc_hook=str), indent=1))
    console.print(f"report: {path}", highlight=False)


if __name__ == "__main__":
    main()
