"""The actors that the benchmarks call."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Counter:
    """The smallest state there is."""

    value: int = 0

    async def add(self, amount: int) -> int:
        """A call that changes state: logged, synced, exactly once."""
        self.value += amount
        return self.value

    @grid.read
    async def read(self) -> int:
        """A call that changes nothing."""
        return self.value
