"""A grid that takes turns with each peer: how many times as good it is, is told of turns that followed one another."""

from __future__ import annotations

from collections.abc import Sequence

from bench.bench import Bench
from bench.load import Load, closed_loop
from bench.ratios import BESIDE
from bench.results import Row, Times
from bench.turns import Line, median_ratio
from bench.workload import Workload


class GridBeside:
    """Runs as long as there are peers to measure. `open` it first; `rows` has what it did, in all turns.

    :param bench: of the grid's own
    :ivar is_open: it runs
    :ivar is_broken: it took turns, and then it failed; peers go on without
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._workloads = {kind: Workload(kind=kind, actors=bench.actors) for kind in ("write", "read")}
        self._book = self._workloads["write"].book()
        self._before: list[int] = []
        self._lines: dict[tuple[str, int], list[Line]] = {}
        self.is_open = self.is_broken = False

    async def open(self) -> None:
        target = await self._bench.grids.of(self._bench.shape())
        await self._workloads["write"].prepare(target.client)
        self._before = await self._workloads["write"].read_back(target.client)
        self.is_open = True

    async def line(self, operation: str, in_flight: int) -> Line:
        """Turns of ``write`` or ``read``, held against one operation of one peer."""
        target = await self._bench.grids.of(self._bench.shape())
        workload = self._workloads[operation]
        call, book = workload.call(target.client), self._book if workload.changes else None

        async def load(duration_s: float) -> Load:
            return await closed_loop(call, in_flight=in_flight, duration_s=duration_s, book=book, timeline=False)

        line = Line(self._bench.row(target, workload, BESIDE, operation, in_flight=in_flight), load, target.pids)
        self._lines.setdefault((operation, in_flight), []).append(line)
        return line

    def rows(self) -> list[Row]:
        """A row for each operation and concurrency, of all turns."""
        found: list[Row] = []
        for lines in self._lines.values():
            whole = lines[0]
            for line in lines[1:]:
                whole.runs += line.runs
                whole.latencies.merge(line.latencies)
                whole.row.failed += line.row.failed
                for name, count in line.row.errors.items():
                    whole.row.errors[name] = whole.row.errors.get(name, 0) + count
            if whole.runs:
                found.append(whole.fill_in())
        return found

    async def judge(self, rows: Sequence[Row]) -> None:
        """Read everything back that was written in all turns; the last row of changes tells what came of it."""
        changed = [row for row in rows if row.operation == "write"]
        if changed:
            target = await self._bench.grids.of(self._bench.shape())
            changed[-1].faults = await self._bench.judge(target, self._workloads["write"], self._book, self._before)


def times_of(ours: Line, theirs: Line) -> Times:
    """How many times as good as the other's turns ours were."""
    return Times(
        rate=median_ratio(ours.runs, theirs.runs, lambda run: run.calls_per_s),
        cpu=median_ratio(theirs.runs, ours.runs, lambda run: run.cpu_us_per_call),
        p50=median_ratio(theirs.runs, ours.runs, lambda run: run.p50_ms),
    )
