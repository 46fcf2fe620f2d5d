"""Actors for what a review found. `SEEN` and `gate` are those of `host_actors`."""

from __future__ import annotations

import asyncio
import dataclasses

from host_actors import SEEN, gate

from actorgrid import grid

MIB = 1 << 20


@dataclasses.dataclass
class Labels:
    tags: set[str]
    by_number: dict[int, set[str]] = dataclasses.field(default_factory=dict)


@grid.actor
class Purse:
    money: int = 0
    pair: tuple[int, ...] = ()
    large: list[int] = []
    blob: bytes = b""
    blobs: grid.Map[str, bytes]

    async def add(self, amount: int) -> int:
        SEEN["purse add"] += 1
        self.money += amount
        return self.money

    async def add_and_hang(self, amount: int) -> int:
        self.money += amount
        await asyncio.Event().wait()
        return self.money

    async def add_and_be_cancelled(self, amount: int) -> int:
        self.money += amount
        raise asyncio.CancelledError

    async def add_and_be_cancelled_later(self, amount: int) -> int:
        self.money += amount
        await asyncio.sleep(0.001)
        raise asyncio.CancelledError

    async def hold(self, name: str) -> int:
        SEEN["held"] += 1
        await gate(name).wait()
        return self.money

    @grid.read
    async def look(self) -> int:
        return self.money

    @grid.read
    async def weigh(self, data: bytes) -> int:
        return len(data)

    async def give(self, size: int) -> bytes:
        self.money += 1
        return b"x" * size

    async def fill(self, count: int) -> None:
        self.large = list(range(count))

    @grid.read
    async def spoil(self) -> int:
        self.large.append(-1)
        return len(self.large)

    @grid.read
    async def count_large(self) -> int:
        return len(self.large)

    async def put_pair(self, *, as_list: bool) -> None:
        self.money += 1
        self.pair = [1, 2] if as_list else (1, 2)  # type: ignore[assignment]

    async def swell(self, mib: int) -> None:
        self.money += 1
        self.blob = b"x" * (mib * MIB)

    async def swell_entries(self, mib: int) -> None:
        self.money += 1
        for number in range(mib):
            self.blobs[str(number)] = b"x" * MIB

    @grid.read
    async def sizes(self) -> tuple[int, int, int]:
        return self.money, len(self.blob), len(self.blobs)

    async def label(self, labels: Labels) -> int:
        self.money += 1
        return self.money


@grid.actor
class Payer:
    sent: int = 0

    async def pay(self, to: str, amount: int) -> int:
        SEEN["pay"] += 1
        await grid.current().get(Purse, to).add(amount)
        if SEEN["pay"] == 1:
            await asyncio.Event().wait()
        self.sent += amount
        return self.sent


@grid.actor
class Guest:
    visits: int = 0

    async def visit(self, home: str) -> int:
        return await grid.current().get(Home, home).come_in()

    async def swell(self, home: str) -> None:
        await grid.current().get(Home, home).swell()


@grid.actor
class Home:
    """Its turn goes on while a reentrant one is open inside it."""

    outer: int = 0
    inner: int = 0
    outer_items: list[int] = []
    inner_items: list[int] = []
    blob: bytes = b""

    async def receive(self, *, same_field: bool = False, swallow: bool = False) -> int:
        async def change() -> None:
            await gate("inside").wait()
            self.outer = 5
            self.outer_items.append(5)
            if same_field:
                self.inner = 50
            gate("changed").set()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(grid.current().get(Guest, "guest").visit(grid.current().actor_id))  # type: ignore[arg-type]
                tasks.create_task(change())
        except* Exception:
            if not swallow:
                raise
        if not swallow:
            raise ValueError("after all")
        return self.outer

    async def receive_much(self) -> None:
        await grid.current().get(Guest, "guest").swell(grid.current().actor_id)

    @grid.reentrant
    async def come_in(self) -> int:
        self.inner += 1
        self.inner_items.append(1)
        gate("inside").set()
        await gate("changed").wait()
        return self.inner

    @grid.reentrant
    async def swell(self) -> None:
        self.blob = b"x" * (13 * MIB)

    @grid.read
    async def tell(self) -> tuple[int, int, list[int], list[int]]:
        return self.outer, self.inner, self.outer_items, self.inner_items

    @grid.read
    async def size(self) -> int:
        return len(self.blob)


@grid.actor
class Sleeper:
    """Has hooks; of one whose id begins with "hang", the first never ends."""

    count: int = 0
    woken: int = 0

    async def on_activate(self) -> None:
        SEEN["woken"] += 1
        self.woken += 1
        if grid.current().actor_id.startswith("hang"):
            await asyncio.Event().wait()

    async def on_deactivate(self) -> None:
        self.woken += 1000
        if grid.current().actor_id.startswith("slow"):
            await asyncio.sleep(0.01)

    async def add(self, amount: int) -> int:
        self.count += amount
        return self.count

    async def add_and_hang(self, amount: int) -> int:
        self.count += amount
        await asyncio.Event().wait()
        return self.count

    @grid.read
    async def look(self) -> int:
        return self.count
