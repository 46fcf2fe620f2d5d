"""Many plans, or one: ``python -m tests.simulation --seeds 1-200``, ``--seed 17``, ``--plan FILE``."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.simulation import plan as plans
from tests.simulation.many import results_of
from tests.simulation.run import Result, run

ENDLESS = 100_000_000


def main(arguments: list[str] | None = None) -> int:
    """0: nothing was broken; 1: something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="FIRST-[LAST]", help="run these seeds; only failing ones are printed")
    what.add_argument("--seed", type=int, help="run one seed and tell what happened")
    what.add_argument("--plan", type=Path, help="run the plan in this file")
    parser.add_argument("--print-plan", action="store_true", help="print the plan of --seed and run nothing")
    parser.add_argument("--verbose", action="store_true", help="with the log of every host")
    parser.add_argument("--digest", action="store_true", help="print one line for each seed: the seed and the digest of its run")
    parser.add_argument("--bare", action="store_true", help="change no constants and judge only the end, as a compiled build does")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--hours", type=float, default=0.0, help="begin no more seeds after so long")
    parser.add_argument("--json", type=Path, help="write the coverage here")
    options = parser.parse_args(arguments)
    if options.seeds is not None:
        first, to, last = options.seeds.partition("-")
        return _many(range(int(first), int(last) + 1 if last else int(first) + (ENDLESS if to else 1)), options)
    plan = plans.load(options.plan) if options.plan is not None else plans.draw(options.seed)
    if options.print_plan:
        print(plan, end="")
        return 0
    return _one(plan, options)


def _one(plan: plans.Plan, options: argparse.Namespace) -> int:
    result = run(plan, logs=logging.INFO if options.verbose else logging.WARNING, bare=options.bare)
    print(plan)
    if options.verbose:
        print("\n".join(result.tail))
    print(_line(result))
    if options.digest:
        print(f"digest {plan.seed} {result.digest}")
    if result.broken:
        print(result.broken)
    return 1 if result.broken else 0


def _line(result: Result) -> str:
    return (
        f"seed {result.seed}: {'BROKEN' if result.broken else 'kept'}, {result.simulated_s:.1f} s simulated in {result.cpu_s:.2f} s "
        f"of one core, {result.events:,} events, {result.counts['calls answered']:,} calls, {result.counts['commits']:,} commits, "
        f"{result.counts['elections']} elections"
    )


def _many(seeds: range, options: argparse.Namespace) -> int:
    console = Console(stderr=True)
    counts: Counter[str] = Counter()
    runs_with: Counter[str] = Counter()
    broken: list[Result] = []
    digests: dict[int, str] = {}
    simulated_s = cpu_s = 0.0
    began_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    end_s = began_s + options.hours * 3600 if options.hours else float("inf")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("seeds", total=len(seeds) if len(seeds) < ENDLESS else None)
        for result in results_of(itertools.takewhile(lambda _: time.monotonic() < end_s, seeds), options.processes, bare=options.bare):
            counts += result.counts
            runs_with.update(result.counts.keys())
            simulated_s += result.simulated_s
            cpu_s += result.cpu_s
            digests[result.seed] = result.digest
            if result.broken:
                broken.append(result)
                print(_told(result), flush=True)
            progress.advance(bar)
    if options.digest:
        for seed in sorted(digests):
            print(f"digest {seed} {digests[seed]}")
    _report(len(digests), broken, counts, runs_with, simulated_s, cpu_s, time.monotonic() - began_s)
    if options.json is not None:
        coverage = {name: {"times": counts[name], "seeds": runs_with[name]} for name in sorted(counts)}
        speed = {"seeds": len(digests), "simulated_s": simulated_s, "cpu_s": cpu_s, "broken": [each.seed for each in broken]}
        options.json.write_text(json.dumps({**speed, "coverage": coverage}, indent=1) + "\n")
    return 1 if broken else 0


def _told(result: Result) -> str:
    lines = result.broken.splitlines()
    return f"{_line(result)}\n  again: python -m tests.simulation --seed {result.seed} --verbose\n  " + "\n  ".join(lines[:12])


def _report(
    seeds: int, broken: list[Result], counts: Counter[str], runs_with: Counter[str], simulated_s: float, cpu_s: float, took_s: float
) -> None:
    print(f"\n{'what was exercised':60} {'times':>12} {'seeds':>7}")
    for name in sorted(counts):
        print(f"{name:60} {counts[name]:12,} {runs_with[name]:7,}")
    print(
        f"\n{seeds} seeds, {len(broken)} broken; {simulated_s / 3600:.2f} hours simulated in {took_s:.1f} s; "
        f"{simulated_s / max(cpu_s, 1e-9):.0f} simulated hours per hour of one core"
    )


if __name__ == "__main__":
    sys.exit(main())
