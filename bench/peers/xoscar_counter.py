"""Xoscar's actor; a module of its own, as Xoscar is needed to define it and may not be installed."""

from __future__ import annotations

import xoscar  # type: ignore[import-untyped]


class Counter(xoscar.Actor):  # type: ignore[misc]  # untyped
    """The smallest state there is."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    async def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    async def read(self) -> int:
        return self.value
