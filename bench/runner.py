"""A run: scenarios and peers in order, with progress, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from bench import peer_rows
from bench.bench import Bench
from bench.beside import GridBeside
from bench.machine import commit_of, describe
from bench.options import Options
from bench.results import Missing, Results, Row
from bench.scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """Scenarios, and peers that are measured with the same options.

    :ivar compared: scenarios of the peers, if others than `scenarios`
    """

    scenarios: tuple[str, ...]
    options: Options
    peers: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()


class Shown(Protocol):
    """Where progress is told."""

    def say(self, text: str) -> None: ...

    def advance(self) -> None: ...


class Bar:
    """A progress bar. It is drawn when something new begins and not in between: drawing takes time from what is measured."""

    def __init__(self, progress: Progress, task: TaskID, console: Console) -> None:
        self._progress, self._task, self._console = progress, task, console

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if self._console.is_terminal:
            self._progress.refresh()
        else:
            self._console.print(text, highlight=False)

    def advance(self) -> None:
        self._progress.advance(self._task)


@contextlib.contextmanager
def bar(total: int) -> Iterator[Bar]:
    """A progress bar on standard error; plain lines where that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description:<48}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as made:
        yield Bar(made, made.add_task("", total=total), console)


async def run(jobs: Sequence[Job], shown: Shown, *, budget_s: float = math.inf) -> Results:
    """Do all jobs. What fails is in `Results.missing` with its reason, and the rest goes on.

    :param budget_s: nothing is begun after so many seconds; what was left out is in `Results.missing`
    """
    ends_s = time.monotonic() + budget_s
    machine, created = describe(), datetime.datetime.now(datetime.UTC)
    results = Results(
        created=created.isoformat(timespec="seconds"),
        commit=commit_of(ROOT),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        machine=machine,
    )

    def missing(what: Missing) -> None:
        shown.say(f"{what.what} is missing: {what.why}")
        results.missing.append(what)

    for job in jobs:
        bench = Bench(job.options, shown.say)
        try:
            for name in job.scenarios:
                if time.monotonic() > ends_s:
                    missing(Missing(name, f"the {budget_s:.0f} s were over"))
                    continue
                try:
                    await SCENARIOS[name].run(bench)
                except* Exception as group:  # noqa: BLE001 - whatever it is, what was measured before stays
                    # One sentence for a person; the whole error for who looks for the reason.
                    missing(Missing(name, "; ".join(f"{type(each).__name__}: {each}"[:600] for each in _leaves(group))))
                    await bench.grids.close()
                shown.advance()
        finally:
            await bench.grids.close()
            results.rows += bench.rows
            results.missing += bench.missing
        if job.peers:
            results.rows += await _measure_peers(job, shown, missing, ends_s, budget_s)
    return results


async def _measure_peers(job: Job, shown: Shown, missing: Callable[[Missing], None], ends_s: float, budget_s: float) -> list[Row]:
    """The rows of a job's peers, and of the grid that takes turns with them; they go without it if it does not start."""
    rows: list[Row] = []
    grid = Bench(job.options, shown.say)
    beside: GridBeside | None = GridBeside(grid)
    try:
        for name in job.peers:
            if time.monotonic() > ends_s:
                missing(Missing(name, f"the {budget_s:.0f} s were over"))
                continue
            if beside is not None and not beside.is_open:
                try:
                    await beside.open()
                except Exception as error:  # noqa: BLE001 - as above
                    missing(peer_rows.without_grid(error))
                    beside = None
                    await grid.grids.close()
            peers = Bench(job.options, shown.say)
            await peer_rows.measure_peer(peers, name, job.compared or job.scenarios, on_error=missing, beside=beside)
            rows += peers.rows
            shown.advance()
        if beside is not None:
            turns = beside.rows()
            rows += turns
            try:
                await beside.judge(turns)
            except Exception as error:  # noqa: BLE001 - as above
                missing(Missing("what the grid beside the peers has stored", f"{type(error).__name__}: {error}"[:600]))
    finally:
        await grid.grids.close()
    return rows


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found
