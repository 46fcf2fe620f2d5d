"""The actors of the drill; mounted into the grid's pods and into the client's."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Counter:
    total: int = 0

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    @grid.read
    async def look(self) -> int:
        return self.total
