"""Loads that take turns, each for a moment, so that what is held against one another was measured in the same seconds.

A machine that is shared is half as fast for minutes at a time. Two loads that run minutes apart differ by that; turns of one round do not.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from bench.bench import quiet_collector
from bench.latencies import Latencies
from bench.machine import CpuMeter, MachineWatch
from bench.measure import Loader, in_time, run_of
from bench.results import Row, Run


class TurnError(RuntimeError):
    """A turn came to nothing.

    :ivar system: whose
    """

    def __init__(self, system: str, why: str) -> None:
        super().__init__(f"{system}: {why}")
        self.system = system


@dataclasses.dataclass(slots=True)
class Line:
    """One system's turns of one operation.

    :param load: runs it for so many seconds
    :param pids: all processes that work for it, but this one
    :ivar runs: of the turns that count
    """

    row: Row
    load: Loader
    pids: Callable[[], list[int]]
    runs: list[Run] = dataclasses.field(default_factory=list)
    latencies: Latencies = dataclasses.field(default_factory=Latencies)

    async def turn(self, turn_s: float, *, counts: bool) -> None:
        """Load for so long.

        :raises TurnError: it failed, did not end, or no call was answered in a turn that counts
        """
        try:
            watch, meter = MachineWatch(), CpuMeter(self.pids())
            load = await in_time(self.load, turn_s)
            used_s = meter.used_s()
        except Exception as error:
            raise TurnError(self.row.system, f"{type(error).__name__}: {error}") from error
        if not counts:
            return
        if not load.calls:
            raise TurnError(self.row.system, f"no call was answered; errors: {load.errors or 'none'}")
        self.runs.append(run_of(load, used_s, watch))
        self.latencies.merge(load.latencies)
        self.row.failed += load.failed
        for name, count in load.errors.items():
            self.row.errors[name] = self.row.errors.get(name, 0) + count

    def fill_in(self) -> Row:
        """The row, with what was measured."""
        self.row.fill(self.runs)
        self.row.latencies = self.latencies.encode()
        return self.row


async def take_turns(lines: Sequence[Line], *, rounds: int, turn_s: float, warm_up_s: float) -> None:
    """Let each line have a turn, so many rounds, after one that does not count (none if `warm_up_s` is 0).

    :raises TurnError: see `Line.turn`
    """
    with quiet_collector():
        for line in lines if warm_up_s > 0 else ():
            await line.turn(warm_up_s, counts=False)
        for _ in range(rounds):
            for line in lines:
                await line.turn(turn_s, counts=True)


def median_ratio(these: Sequence[Run], those: Sequence[Run], what: Callable[[Run], float]) -> float:
    """Of the rounds, the median of `what` of these divided by that of those; 0 where that was too little to be measured."""
    return statistics.median(what(a) / (what(b) or math.inf) for a, b in zip(these, those, strict=True))
