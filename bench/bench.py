"""One run of the harness: its options, the grid it measures, and the rows so far. Scenarios work through it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.book import Book
from bench.clients import ClientProcesses
from bench.load import Load, closed_loop, open_loop
from bench.measure import measure
from bench.options import Options, Rate
from bench.results import Faults, Missing, Row
from bench.target import Grids, Measured, Shape
from bench.workload import Workload

ACTORS = 10_000
#: What callers are promised, beside every figure of a grid with so many replicas.
DURABILITY = "log record synced on a write quorum of {} before the answer; exactly once"
ONE_REPLICA = "log record synced before the answer; exactly once"
READ_PROMISE = "linearizable, from the primary under its lease"


class Bench:
    """What scenarios are given.

    :param say: told in a few words what is measured now
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.options = options
        self.say = say
        self.grids = Grids(say)
        self.rows: list[Row] = []
        self.missing: list[Missing] = []

    # -- what is asked for

    @property
    def actors(self) -> int:
        return self.options.actors or ACTORS

    def shape(self, *, hosts: int | None = None, partitions: int | None = None, replicas: int | None = None) -> Shape:
        """The grid that is asked for, with what a scenario varies."""
        return Shape(hosts or self.options.hosts, partitions or self.options.partitions[0], replicas or self.options.replicas[0])

    # -- measuring

    def row(self, target: Measured, workload: Workload, scenario: str, operation: str, **more: Any) -> Row:
        """An empty row with everything that is known before."""
        shape = target.shape
        promise = DURABILITY.format(shape.replicas) if shape.replicas > 1 else ONE_REPLICA
        return Row(
            scenario=scenario,
            operation=operation,
            durability=promise if workload.changes else READ_PROMISE,
            hosts=shape.hosts,
            partitions=shape.partitions,
            replicas=shape.replicas,
            actors=workload.actors,
            payload_bytes=workload.payload_bytes,
            **more,
        )

    async def closed(
        self, target: Measured, workload: Workload, *, scenario: str, operation: str = "", in_flight: int, clients: int = 1
    ) -> Row:
        """A row of a closed loop: `in_flight` single calls under way, from this process or from `clients` others."""
        operation = operation or scenario
        self.say(f"{scenario}: {operation}, {in_flight:,} in flight" + (f", {clients} client processes" if clients > 1 else ""))
        row = self.row(target, workload, scenario, operation, in_flight=in_flight, clients=clients)
        before = await workload.read_back(target.client) if workload.changes else []
        if clients == 1:
            call, book = workload.call(target.client), workload.book()

            async def load(duration_s: float) -> Load:
                return await closed_loop(
                    call,
                    in_flight=max(1, in_flight // workload.weight),
                    duration_s=duration_s,
                    book=book if workload.changes else None,
                    weight=workload.weight,
                )

            await self._measure(row, load, target.pids)
        else:
            async with ClientProcesses(clients, target.address, workload, in_flight=in_flight) as processes:
                await self._measure(row, processes.load, lambda: [*target.pids(), *processes.pids()])
                book = processes.book()
        if workload.changes:
            row.faults = await self.judge(target, workload, book, before)
        self.rows.append(row)
        return row

    async def open(self, target: Measured, workload: Workload, *, scenario: str, operation: str = "", rate: Rate, peak: float) -> Row:
        """A row of an open loop, from this process."""
        operation = operation or scenario
        self.say(f"{scenario}: {operation}, open loop at {rate.label}")
        calls_per_s = rate.of(peak)
        row = self.row(target, workload, scenario, operation, loop="open", rate_asked=calls_per_s, load_label=rate.label)
        before = await workload.read_back(target.client) if workload.changes else []
        call, book = workload.call(target.client), workload.book()

        async def load(duration_s: float) -> Load:
            return await open_loop(call, rate=calls_per_s, duration_s=duration_s, book=book if workload.changes else None)

        await self._measure(row, load, target.pids)
        if workload.changes:
            row.faults = await self.judge(target, workload, book, before)
        self.rows.append(row)
        return row

    async def judge(self, target: Measured, workload: Workload, book: Book, before: Sequence[int], *, gap_s: float = 0.0) -> Faults:
        """Read all state back, and hold it against what callers were told. `Faults.acknowledged` counts changes, of which a call may make
        several; `Faults.failed` counts calls.

        :param before: what was stored before the load
        """
        stored = await workload.read_back(target.client)
        verdict = workload.judge(book, before, stored)
        return Faults(
            acknowledged=verdict.acknowledged,
            failed=book.failures,
            lost=verdict.lost,
            doubled=verdict.doubled,
            longest_gap_ms=gap_s * 1e3,
        )

    async def _measure(self, row: Row, load: Callable[[float], Any], pids: Callable[[], list[int]]) -> None:
        options = self.options
        with quiet_collector():
            await measure(row, load, pids=pids, duration_s=options.duration_s, runs=options.runs, warm_up_s=options.warm_up_s)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """What is alive now is not looked at by the garbage collector meanwhile: ten thousand stand-ins are not what is measured."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
