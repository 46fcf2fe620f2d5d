"""Actors that say how much load they are."""

from __future__ import annotations

from typing import Any

from actorgrid import grid


@grid.actor
class Worker:
    """Works, and says what it costs."""

    done: int = 0
    kept: bytes = b""

    async def keep(self, size: int) -> None:
        self.kept = b"x" * size

    async def work(self, load: float) -> int:
        grid.report_load(load)
        self.done += 1
        return self.done

    async def work_and_fail(self, load: float) -> int:
        self.done += 1
        grid.report_load(load)
        raise ValueError("it came to nothing")

    async def say(self, what: Any) -> None:
        grid.report_load({"nan": float("nan"), "inf": float("inf")}.get(what, what) if isinstance(what, str) else what)

    @grid.read
    async def look(self, load: float) -> int:
        grid.report_load(load)
        return self.done

    @grid.blocking
    def work_in_a_thread(self, load: float) -> None:
        grid.current().report_load(load)
