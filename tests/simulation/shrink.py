"""Make a failing plan small: ``python -m tests.simulation.shrink --seed 17 > small.plan`` or ``--plan FILE``.

Steps are left out, first many at a time, then one by one, as long as the run still breaks the same promise; then knobs, clocks, zones and
callers. What is left is usually short enough to be read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from tests.simulation import plan as plans
from tests.simulation.mutants import MUTANTS
from tests.simulation.plan import Plan
from tests.simulation.run import run

RUNS_MAX = 600


def main() -> int:
    """Print the smallest plan found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.shrink", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int)
    what.add_argument("--plan", type=Path)
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], metavar="NAME", help="with this bug switched on, see mutants.py")
    options = parser.parse_args()
    plan = plans.load(options.plan) if options.plan is not None else plans.draw(options.seed)
    console = Console(stderr=True)
    with MUTANTS[options.mutant].on() if options.mutant else contextlib.nullcontext():
        broken = run(plan).broken
        if not broken:
            console.print("the plan breaks nothing")
            return 1
        small = Shrinking(plan, promise_of(broken), lambda tried: run(tried).broken, console).smallest()
    print(dataclasses.replace(small, title=f"{broken.splitlines()[0]}\n{plan.title}".strip()), end="")
    return 0


def promise_of(broken: str) -> str:
    """What was broken, without names and numbers, to tell one finding from another."""
    return re.sub(r"[0-9]+(\.[0-9]+)?", "#", broken.splitlines()[0])[:40]


class Shrinking:
    """Tries smaller and smaller plans."""

    def __init__(self, plan: Plan, promise: str, broken_by: Callable[[Plan], str], console: Console) -> None:
        self.plan = plan
        self._promise = promise
        self._broken_by = broken_by
        self._console = console
        self._runs = 0

    def _take_if_broken(self, tried: Plan) -> bool:
        self._runs += 1
        if self._runs > RUNS_MAX:
            return False
        broken = self._broken_by(tried)
        if not broken or promise_of(broken) != self._promise:
            return False
        self.plan = tried
        self._console.print(f"run {self._runs}: {len(tried.steps)} steps, {len(tried.knobs)} knobs")
        return True

    def smallest(self) -> Plan:
        size = max(1, len(self.plan.steps) // 2)
        while size:
            start = 0
            while start < len(self.plan.steps):
                kept = self.plan.steps[:start] + self.plan.steps[start + size :]
                if not self._take_if_broken(dataclasses.replace(self.plan, steps=kept)):
                    start += size
            size //= 2
        for tried in self._simpler():
            self._take_if_broken(tried)
        return self.plan

    def _simpler(self) -> Iterator[Plan]:
        replace = dataclasses.replace
        for knob in self.plan.knobs:
            yield replace(self.plan, knobs=tuple(each for each in self.plan.knobs if each != knob))
        yield replace(self.plan, clocks=())
        yield replace(self.plan, zones=())
        yield replace(self.plan, clients=1)
        yield replace(self.plan, callers=1)
        yield replace(self.plan, partitions=1)
        last_s = max((step.at_s for step in self.plan.steps), default=0.0)
        yield replace(self.plan, calm_s=round(last_s + 1.0, 3))


if __name__ == "__main__":
    sys.exit(main())
