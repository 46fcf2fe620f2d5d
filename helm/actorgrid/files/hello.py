"""The actor of a grid that was installed without an application: enough to see that it works."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Counter:
    """Counts, durably."""

    value: int = 0

    async def increment(self) -> int:
        """One more; the new value."""
        self.value += 1
        return self.value

    @grid.read
    async def read_value(self) -> int:
        """The value."""
        return self.value
