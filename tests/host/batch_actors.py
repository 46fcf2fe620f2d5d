"""Actors whose reads do what reads in a batch may do. `SEEN` counts what was really executed, outside of any state."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import time

from actorgrid import grid

SEEN: collections.Counter[str] = collections.Counter()
GATES: dict[str, asyncio.Event] = {}
COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("batch_colour", default="none")


def gate(name: str) -> asyncio.Event:
    return GATES.setdefault(name, asyncio.Event())


@grid.actor
class Shelf:
    count: int = 0
    notes: list[str] = []
    entries: grid.Map[str, int]

    async def add(self, amount: int) -> int:
        SEEN["add"] += 1
        self.count += amount
        self.entries[str(amount)] = self.count
        return self.count

    @grid.read
    async def look(self) -> int:
        SEEN["look"] += 1
        return self.count

    @grid.read
    async def look_at(self, key: str, default: int = -1) -> int:
        return self.entries.get(key, default)

    @grid.read
    async def odd_look(self) -> int:
        """Of every third actor it fails."""
        if int(grid.current().actor_id[1:]) % 3 == 0:
            raise ValueError(f"no {grid.current().actor_id}")
        return self.count

    @grid.read
    async def who(self) -> tuple[str, str, int, str]:
        turn = grid.current()
        assert turn.request_id is not None
        before = COLOUR.get()
        COLOUR.set(turn.actor_id)
        return turn.actor_id, turn.request_id.client.hex(), turn.request_id.number, before

    @grid.read
    async def slow_look(self) -> int:
        if grid.current().actor_id.endswith("7"):
            await gate("slow").wait()
        else:
            await asyncio.sleep(0)
        return self.count

    @grid.read
    async def naughty(self) -> int:
        if grid.current().actor_id.endswith("5"):
            self.count += 1000
            self.notes.append("x")
        return self.count

    @grid.read
    async def spin(self) -> int:
        if grid.current().actor_id.endswith("5"):
            while True:
                pass
        return self.count

    @grid.read
    async def busy(self) -> int:
        end = time.perf_counter() + 0.0005
        while time.perf_counter() < end:
            pass
        return self.count

    @grid.read
    async def ask(self, delay_s: float) -> int:
        """Let another actor count this read: a change that must happen once for each, whatever dies meanwhile."""
        SEEN["ask"] += 1
        number = await grid.current().get(Tally, "t" + grid.current().actor_id).count()
        if delay_s:
            await asyncio.sleep(delay_s)
        return number

    @grid.read
    async def big(self, size: int) -> bytes:
        return bytes(size)


@grid.actor
class Tally:
    calls: int = 0

    async def count(self) -> int:
        self.calls += 1
        return self.calls

    @grid.read
    async def tell(self) -> int:
        return self.calls
