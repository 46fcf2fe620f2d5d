"""Does the simulation find the bugs that are planted for it? ``python -m tests.simulation.hunt [--only NAME ...]``.

For each mutant of `mutants.py` seeds are run with its bug switched on, from the first one on, until one finds it. The same seeds find the
same whatever the number of processes: what is told is the lowest seed that finds it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.simulation.mutants import MUTANTS, Caught, Mutant, Trial, try_seeds

#: Seeds of one mutant that a process runs before it takes others.
CHUNK = 3
TASKS_PER_PROCESS = 20
HOW_CHARACTERS_MAX = 150


@dataclasses.dataclass(slots=True)
class Hunt:
    """How far the search for one mutant is.

    :ivar next_seed: the first one that was not given to a process
    :ivar caught: with the lowest seed so far
    """

    mutant: Mutant
    next_seed: int
    seeds_run: int = 0
    under_way: int = 0
    cpu_s: float = 0.0
    caught: Caught | None = None

    def take(self, trial: Trial) -> None:
        self.under_way -= 1
        self.seeds_run += trial.seeds_run
        self.cpu_s += trial.cpu_s
        if trial.caught is not None and (self.caught is None or trial.caught.seed < self.caught.seed):
            self.caught = trial.caught


def main(arguments: list[str] | None = None) -> int:
    """0: every mutant was found; 1: one was not; 2: there is no such mutant."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.hunt", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(MUTANTS), help="only these mutants")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--seeds-max", type=int, default=1000, help="give a mutant up after so many seeds")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only if name not in MUTANTS]
    if unknown:
        print(f"no such mutant: {', '.join(unknown)}; see --list", file=sys.stderr)
        return 2
    if options.list:
        for mutant in MUTANTS.values():
            print(f"{mutant.area:12} {mutant.name:52} {mutant.breaks}: {mutant.what}")
        return 0
    began_s = time.monotonic()
    hunts = [Hunt(MUTANTS[name], options.first_seed) for name in options.only]
    ended: list[dict[str, object]] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("mutants", total=len(hunts))
        for hunt in _hunted(hunts, options.first_seed + options.seeds_max, options.processes):
            progress.update(bar, advance=1, description=hunt.mutant.name)
            ended.append(_row(hunt, options.first_seed))
            if not console.is_terminal:
                print(f"{hunt.mutant.name}: {_needed(hunt, options.first_seed) or '-'}", file=sys.stderr, flush=True)
            if options.json is not None:  # after each: a hunt is long, and may be ended before
                options.json.write_text(json.dumps(ended, indent=1) + "\n")
    _report(hunts, options.first_seed, time.monotonic() - began_s)
    return 0 if all(hunt.caught for hunt in hunts) else 1


def _hunted(hunts: list[Hunt], end: int, processes: int) -> Iterator[Hunt]:
    """Hunts as they end: with the mutant found, or with `end` reached."""
    done: SimpleQueue[Trial | BaseException] = SimpleQueue()
    by_name = {hunt.mutant.name: hunt for hunt in hunts}
    waiting = deque(hunts)
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=TASKS_PER_PROCESS) as pool:
        under_way = 0
        while waiting or under_way:
            while waiting and under_way < processes:
                hunt = waiting.popleft()
                _start(pool, hunt, end, done)
                under_way += 1
                if hunt.next_seed < end:
                    waiting.append(hunt)  # behind all others: what is found fast ends fast
            trial = done.get()
            if isinstance(trial, BaseException):
                raise trial
            under_way -= 1
            hunt = by_name[trial.name]
            hunt.take(trial)
            if hunt.caught is not None and hunt in waiting:
                waiting.remove(hunt)
            if not hunt.under_way and (hunt.caught is not None or hunt.next_seed >= end):
                yield hunt


def _start(pool: Pool, hunt: Hunt, end: int, done: SimpleQueue[Trial | BaseException]) -> None:
    seeds = range(hunt.next_seed, min(end, hunt.next_seed + CHUNK))
    hunt.next_seed = seeds.stop
    hunt.under_way += 1
    pool.apply_async(try_seeds, (hunt.mutant.name, seeds), callback=done.put, error_callback=done.put)


def _needed(hunt: Hunt, first_seed: int) -> int | None:
    return hunt.caught.seed - first_seed + 1 if hunt.caught is not None else None


def _row(hunt: Hunt, first_seed: int) -> dict[str, object]:
    mutant, caught = hunt.mutant, hunt.caught
    return {
        "name": mutant.name,
        "area": mutant.area,
        "breaks": mutant.breaks,
        "what": mutant.what,
        "seeds_needed": _needed(hunt, first_seed),
        "seeds_run": hunt.seeds_run,
        "seed": caught.seed if caught is not None else None,
        "how": caught.how if caught is not None else "",
        "cpu_s": round(hunt.cpu_s, 2),
    }


def _report(hunts: Sequence[Hunt], first_seed: int, took_s: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 240)
    table = Table("area", "mutant", "breaks", "seeds", "caught by", "CPU s")
    for hunt in hunts:
        needed = _needed(hunt, first_seed)
        how = hunt.caught.how[:HOW_CHARACTERS_MAX] if hunt.caught is not None else f"[bold red]not in {hunt.seeds_run}[/]"
        table.add_row(hunt.mutant.area, hunt.mutant.name, hunt.mutant.breaks, str(needed or "-"), how, f"{hunt.cpu_s:.1f}")
    console.print(table)
    found = [needed for hunt in hunts if (needed := _needed(hunt, first_seed)) is not None]
    median = f", half of them within {statistics.median(found):g} seeds" if found else ""
    console.print(f"{len(found)} of {len(hunts)} mutants found{median}; {took_s:.0f} s")
    left = [hunt.mutant.name for hunt in hunts if hunt.caught is None]
    if left:
        console.print(f"[bold red]not found: {', '.join(left)}[/]")


if __name__ == "__main__":
    sys.exit(main())
