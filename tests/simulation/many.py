"""Many runs in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator

from tests.simulation import plan as plans
from tests.simulation.run import Result, run

CHUNK = 4
TASKS_PER_PROCESS = 50


def run_seed(seed: int) -> Result:
    """One seed, in a process of the pool."""
    return run(plans.draw(seed), keep_tail=False)


def results_of(seeds: Iterable[int], processes: int) -> Iterator[Result]:
    """Results as they come. Each process ends after some runs, so that nothing can pile up."""
    if processes <= 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=TASKS_PER_PROCESS) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=CHUNK)
