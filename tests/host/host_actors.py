"""Actors that misbehave in every way the host must survive. `SEEN` counts what was really executed, outside of any state."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import sys
import time
import weakref

from actorgrid import errors as grid_errors
from actorgrid import grid
from actorgrid.errors import OverloadedError, StorageError

SEEN: collections.Counter[str] = collections.Counter()
GATES: dict[str, asyncio.Event] = {}
KEPT: list[object] = []
COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def gate(name: str) -> asyncio.Event:
    return GATES.setdefault(name, asyncio.Event())


@grid.actor
class Box:
    """Counts, and keeps what it counted in every kind of field."""

    count: int = 0
    items: list[int] = []
    members: set[int] = set()
    entries: grid.Map[str, int]

    async def add(self, amount: int) -> int:
        SEEN["add"] += 1
        self.count += amount
        self.items.append(amount)
        self.entries[str(amount)] = self.count
        return self.count

    @grid.read
    async def look(self) -> tuple[int, list[int], dict[str, int]]:
        SEEN["look"] += 1
        return self.count, self.items, dict(self.entries.items())

    @grid.read
    async def slow_look(self, name: str) -> int:
        await gate(name).wait()
        return self.count

    async def add_then_raise(self, amount: int) -> int:
        SEEN["add_then_raise"] += 1
        self.count += amount
        self.items.append(amount)
        self.entries["raised"] = amount
        raise ValueError(f"no {amount}")

    async def wait_then_add(self, name: str, amount: int) -> int:
        SEEN["wait_then_add"] += 1
        self.count += amount
        await gate(name).wait()
        return self.count

    async def remember(self, *, first: int, second: int = 0) -> set[int]:
        self.members |= {first, second}
        return self.members

    async def forget_then_raise(self, number: int) -> None:
        self.members.discard(number)
        raise ValueError("no")

    @grid.read
    async def who(self) -> set[int]:
        return self.members

    @grid.read
    async def repeat(self, size: int) -> bytes:
        return (b"0123456789" * (size // 10 + 1))[:size]

    async def tag(self, tags: set[str]) -> int:
        SEEN["tag"] += 1
        return len(tags)

    @grid.read
    async def sneaky_read(self) -> int:
        self.undeclared = 5
        return 1


@grid.actor
class Rogue:
    """Each method does one bad thing."""

    count: int = 0

    async def bump(self) -> int:
        self.count += 1
        return self.count

    @grid.read
    async def peek(self) -> int:
        return self.count

    async def leave(self) -> None:
        self.count += 100
        sys.exit(3)

    async def leave_later(self) -> None:
        self.count += 100
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def hang(self) -> None:
        self.count += 100
        await asyncio.Event().wait()

    async def hang_for_good(self) -> None:
        self.count += 100
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                SEEN["cancelled"] += 1
                if SEEN["cancelled"] > 10:
                    raise

    async def spin(self) -> None:
        self.count += 100
        while True:
            pass

    async def unprintable(self) -> None:
        class Unprintable(Exception):
            def __str__(self) -> str:
                raise KeyError("never")

        raise Unprintable

    async def surrogate(self) -> None:
        raise ValueError("name \udcff")

    async def loud(self) -> None:
        raise ValueError("x" * 20_000_000)

    async def pretend_storage_failed(self) -> None:
        self.count += 100
        raise StorageError("this is not your store")

    async def come_again(self) -> int:
        SEEN["come_again"] += 1
        self.count += 100
        if SEEN["come_again"] < 3:
            raise OverloadedError("busy", retry_after_s=0.01)
        return self.count

    async def own_kind_of_error(self) -> None:
        class Mine(grid_errors.ActorError):
            pass

        raise Mine("mine")

    async def cancel_itself(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(10)

    async def time_out_at_once(self) -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "?"

    async def keep_the_task(self) -> None:
        KEPT.append(asyncio.current_task())


@grid.actor
class Juggler:
    """asyncio's own tools, from the first line of a turn on."""

    count: int = 0

    async def time_out(self) -> str:
        try:
            async with asyncio.timeout(0.02):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "?"

    async def in_time(self) -> str:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        return "in time"

    async def group(self) -> int:
        async def part(number: int) -> None:
            await asyncio.sleep(0.001 * number)
            self.count += number

        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(part(number))
        return self.count

    async def group_fails(self) -> str:
        async def fail() -> None:
            raise LookupError("part")

        outcome = "?"
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                await asyncio.sleep(10)
        except* LookupError:
            outcome = "failed"
        return outcome

    async def child(self) -> int:
        async def work() -> str:
            return grid.current().actor_id

        return len(await asyncio.create_task(work()))

    async def known_weakly(self) -> bool:
        first = asyncio.current_task()
        known = weakref.WeakKeyDictionary({first: "mine"})  # as libraries keep what belongs to a task
        await asyncio.sleep(0)
        return known[first] == "mine"

    async def same_task(self) -> bool:
        first = asyncio.current_task()
        assert first is not None
        first.set_name("mine")
        await asyncio.sleep(0)
        second = asyncio.current_task()
        assert second is not None
        return first.get_loop() is second.get_loop() and not first.done() and not first.cancelled() and first.cancelling() == 0

    async def paint(self, colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        return before

    async def paint_and_wait(self, colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        await asyncio.sleep(0.01)
        return before

    async def paint_and_ask(self, colour: str, other: str) -> str:
        COLOUR.set(colour)
        return await grid.current().get(Juggler, other).paint("other")

    @grid.blocking
    def sleep(self, seconds: float) -> int:
        time.sleep(seconds)
        self.count += 1
        return self.count


@grid.actor
class Hooked:
    """Hooks; what they do is told by the actor's id."""

    activations: int = 0
    goodbyes: int = 0
    count: int = 0

    async def on_activate(self) -> None:
        SEEN["on_activate"] += 1
        if grid.current().actor_id.startswith("slow"):
            await asyncio.sleep(0.02)
        if grid.current().actor_id.startswith("bad") and not SEEN["mended"]:
            raise RuntimeError("cannot wake")
        self.activations += 1

    async def on_deactivate(self) -> None:
        SEEN["on_deactivate"] += 1
        if grid.current().actor_id.startswith("slow"):
            await asyncio.sleep(0.02)
        if grid.current().actor_id.startswith("rude"):
            self.goodbyes += 1000
            raise RuntimeError("will not go")
        self.goodbyes += 1

    async def bump(self) -> int:
        SEEN["hooked bump"] += 1
        self.count += 1
        return self.count

    @grid.read
    async def tell(self) -> tuple[int, int, int]:
        return self.activations, self.goodbyes, self.count


@grid.actor
class Caller:
    """Calls others, and comes back to itself."""

    count: int = 0
    inner: int = 0
    notes: list[str] = []
    entries: grid.Map[str, int]

    async def bump(self) -> int:
        SEEN["caller bump"] += 1
        self.count += 1
        return self.count

    async def relay(self, other: str, gate_name: str = "") -> int:
        SEEN["relay"] += 1
        value = await grid.current().get(Caller, other).bump()
        self.count += 1
        if gate_name:
            await gate(gate_name).wait()
        return value

    async def changeable_relay(self, other: str) -> int:
        SEEN["changeable_relay"] += 1
        amount = 10 * SEEN["changeable_relay"]
        result = await grid.current().get(Box, other).add(amount)
        if SEEN["changeable_relay"] == 1:
            await asyncio.Event().wait()
        return result

    async def around(self, others: list[str]) -> int:
        """Call the first of `others`, which calls the next, ...; the last one calls `touch` of whoever is named last."""
        if len(others) == 1:
            return await grid.current().get(Caller, others[0]).touch()
        return await grid.current().get(Caller, others[0]).around(others[1:])

    async def around_and_raise(self, others: list[str]) -> None:
        self.count += 1
        await self.around(others)
        raise ValueError("after all")

    async def around_with_map(self, others: list[str]) -> int:
        self.entries["outer"] = 1
        return await self.around(others)

    async def around_in_conflict(self, others: list[str]) -> int:
        self.inner += 1
        return await self.around(others)

    async def around_impatiently(self, others: list[str], wait_s: float) -> int:
        self.count += 1
        try:
            async with asyncio.timeout(wait_s):
                await self.around([*others[:-1], "slow:" + others[-1]])
        except TimeoutError:
            pass
        return self.inner

    async def forbidden_around(self, others: list[str]) -> int:
        if len(others) == 1:
            return await grid.current().get(Caller, others[0]).bump()
        return await grid.current().get(Caller, others[0]).forbidden_around(others[1:])

    @grid.reentrant
    async def touch(self) -> int:
        SEEN["touch"] += 1
        self.inner += 1
        return self.inner

    @grid.read
    async def tell(self) -> tuple[int, int, list[str], dict[str, int]]:
        return self.count, self.inner, self.notes, dict(self.entries.items())

    async def about_itself(self) -> tuple[str, str, float, str, int]:
        turn = grid.current()
        assert turn.request_id is not None
        return turn.actor_type, turn.actor_id, turn.deadline_s, turn.request_id.client.hex(), turn.request_id.number

    async def keep_proxy(self) -> None:
        KEPT.append(grid.current().get(Caller, "late"))

    async def use_kept_proxy(self) -> int:
        return await KEPT[-1].bump()  # type: ignore[attr-defined]

    async def square_elsewhere(self, number: int) -> int:
        return await grid.offload(square, number)

    async def fail_elsewhere(self, number: int) -> int:
        return await grid.offload(fail, number)

    async def die_elsewhere(self) -> int:
        return await grid.offload(die)

    async def offload_lambda(self) -> int:
        return await grid.offload(lambda: 1)


@grid.actor
class Impatient:
    """Its outer turn does not wait for the reentrant one inside it."""

    outer: int = 0
    inner: int = 0

    async def begin(self, wait_s: float) -> int:
        self.outer += 1
        try:
            async with asyncio.timeout(wait_s):
                await grid.current().get(Mirror, "m").send_back(grid.current().actor_id)
        except TimeoutError:
            SEEN["gave up"] += 1
        return self.outer

    @grid.reentrant
    async def come_in(self) -> None:
        self.inner += 1
        await asyncio.sleep(0.1)
        raise ValueError("inner fails")

    @grid.read
    async def tell(self) -> tuple[int, int]:
        return self.outer, self.inner


@grid.actor
class Mirror:
    async def send_back(self, actor_id: str) -> None:
        await grid.current().get(Impatient, actor_id).come_in()


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise LookupError(f"no {number}")


def die() -> int:
    import os

    os._exit(9)


@grid.actor
class Payer:
    """Pays others, and is paid."""

    balance: int = 0
    changes: int = 0

    async def pay(self, to: str, amount: int) -> int:
        self.balance -= amount
        self.changes += 1
        await asyncio.sleep(0.002)
        await grid.current().get(Payer, to).take(amount)
        return self.balance

    async def take(self, amount: int) -> int:
        self.balance += amount
        self.changes += 1
        return self.balance

    @grid.read
    async def look(self) -> tuple[int, int]:
        return self.balance, self.changes
