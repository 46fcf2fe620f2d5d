import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bench.results import Machine, Results, Row, Run


class _NoWait(selectors.DefaultSelector):
    """Never waits: the loop's time leaps instead."""

    def __init__(self) -> None:
        super().__init__()
        self.leap: Callable[[float], None] = lambda _: None

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen"
        if timeout > 0:
            self.leap(timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: what sleeps for an hour is done at once."""

    def __init__(self) -> None:
        selector = _NoWait()
        self.now = 0.0
        super().__init__(selector)
        selector.leap = self._leap
        self._clock_resolution = 1e-9

    def _leap(self, seconds: float) -> None:
        self.now += seconds

    def time(self) -> float:
        return self.now

    def clock_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def virtual():
    """Runs what makes a coroutine, given the loop."""
    made: list[VirtualLoop] = []

    def run(make: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
        loop = VirtualLoop()
        made.append(loop)
        return loop.run_until_complete(make(loop))

    yield run
    for loop in made:
        loop.close()


def make_run(rate: float = 1000.0, cpu: float = 50.0, **more: Any) -> Run:
    figures = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 5.0, "p999_ms": 8.0, "slowest_ms": 9.0, "busy": 0.9, "steal": 0.0, "others": 0.0}
    return Run(calls=int(rate), seconds=1.0, calls_per_s=rate, cpu_us_per_call=cpu, **{**figures, "load_1m": 1.0, **more})


def make_row(scenario: str = "write", *, rate: float = 1000.0, cpu: float = 50.0, run: dict[str, Any] | None = None, **more: Any) -> Row:
    row = Row(**{"scenario": scenario, "operation": scenario, "hosts": 3, "partitions": 64, "replicas": 3, "in_flight": 64, **more})
    row.fill([make_run(rate, cpu, **(run or {}))])
    return row


def make_results(*rows: Row, created: str = "2026-01-02T03:04:05+00:00", **machine: Any) -> Results:
    facts = {"cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "python": "3.11.7", "build": "pure", "load_1m_before": 0.1}
    return Results(created=created, commit="0123456789", machine=Machine(**{**facts, **machine}), rows=list(rows))
