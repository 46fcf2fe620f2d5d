"""Many runs in several processes."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tests.simulation import plan as plans
from tests.simulation.run import Result, run

CHUNK = 4
CHUNKS_PER_PROCESS = 12


def run_seeds(seeds: tuple[int, ...], bare: bool) -> list[Result]:
    """Some seeds, in a process of the pool. What they leave goes with the process: to collect it would take an eighth of the time."""
    gc.disable()
    return [run(plans.draw(seed), keep_tail=False, bare=bare) for seed in seeds]


def results_of(seeds: Iterable[int], processes: int, *, bare: bool = False) -> Iterator[Result]:
    """Results as they come. Of `seeds` no more is taken than what runs next; each process ends after some, so that nothing can pile up."""
    if processes <= 1:
        for seed in seeds:
            yield from run_seeds((seed,), bare)
        return
    left = iter(seeds)
    waiting: set[Future[list[Result]]] = set()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, max_tasks_per_child=CHUNKS_PER_PROCESS) as pool:
        while True:
            while len(waiting) <= processes and (chunk := tuple(itertools.islice(left, CHUNK))):
                waiting.add(pool.submit(run_seeds, chunk, bare))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
