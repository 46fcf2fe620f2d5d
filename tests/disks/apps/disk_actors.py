"""An actor whose state can be read at any replica, for tests in which no primary is left."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Board:
    """Keeps one number; who only wants to see it need not ask the primary."""

    number: int = 0

    async def put(self, number: int) -> int:
        self.number = number
        return self.number

    @grid.read
    async def read(self) -> int:
        return self.number

    @grid.read(consistency="any")
    async def look(self) -> int:
        """The number as it was some time ago, at worst."""
        return self.number
