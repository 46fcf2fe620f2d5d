"""The actors that the benchmarks call."""

from __future__ import annotations

import asyncio

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


@grid.actor
class Parcel:
    """A counter with bytes beside it: for payloads, and for large state."""

    value: int = 0
    data: bytes = b""

    async def put(self, data: bytes) -> int:
        """Replace the bytes, and count it."""
        self.data = data
        self.value += 1
        return self.value

    async def add(self, amount: int) -> int:
        """Change the small field, and leave the bytes as they are."""
        self.value += amount
        return self.value

    @grid.read
    async def get(self) -> bytes:
        """The bytes."""
        return self.data

    @grid.read
    async def read(self) -> int:
        """How often it was changed."""
        return self.value


@grid.actor
class Relay:
    """Calls other actors."""

    value: int = 0

    async def hop(self, others: list[str]) -> int:
        """One change here, and one in each of `others`, called in a chain: each calls the next."""
        if others:
            await grid.current().get(Relay, others[0]).hop(others[1:])
        self.value += 1
        return self.value

    async def fan(self, counters: list[str]) -> int:
        """One change here, and one in each of `counters`, called at the same time."""
        turn = grid.current()

        async def one(name: str) -> None:
            await turn.get(Counter, name).add(1)

        async with asyncio.TaskGroup() as group:
            for name in counters:
                group.create_task(one(name))
        self.value += 1
        return self.value

    @grid.read
    async def read(self) -> int:
        """How often it was called."""
        return self.value
