"""The load of the drill, in a pod of its own: ``python load.py CALLERS ACTORS PAUSE_S``.

Each caller changes and reads actors that are its alone, so it knows what every answer must be: less is a lost change, more a doubled one.
Twice a second it prints what happened since, as one JSON object a line. SIGTERM: it ends its calls, reads every actor once more, and says
how that agreed.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter as Counts

from counting import Counter

from actorgrid import grid
from actorgrid.errors import ActorGridError

REPORT_S = 0.5
PATIENCE_S = 60.0


class Book:
    """What was called since the last report."""

    def __init__(self) -> None:
        self.started = 0
        self.pending: dict[int, float] = {}
        self.clear()

    def clear(self) -> None:
        self.ok = self.lost = self.doubled = 0
        self.slowest_s = 0.0
        self.errors: Counts[str] = Counts()

    def line(self) -> str:
        oldest = max((time.monotonic() - began for began in self.pending.values()), default=0.0)
        told = {
            "at": time.time_ns() / 1e9,
            "ok": self.ok,
            "failed": sum(self.errors.values()),
            "lost": self.lost,
            "doubled": self.doubled,
            "slowest_ms": round(max(self.slowest_s, oldest) * 1000, 1),
            "errors": dict(self.errors),
        }
        self.clear()
        return json.dumps(told)


class Caller:
    """One caller and its actors."""

    def __init__(self, number: int, actors: int, book: Book) -> None:
        self.expected: dict[str, int | None] = {f"caller-{number}-{actor}": None for actor in range(actors)}  # None: not known yet
        self._rng = random.Random(number)
        self._book = book
        self._ids = list(self.expected)

    async def run(self, client: grid.Client, pause_s: float, stop: asyncio.Event) -> None:
        while not stop.is_set():
            actor_id = self._rng.choice(self._ids)
            if self._rng.random() < 0.5:
                await self.call(client, actor_id, 0)
            else:
                await self.call(client, actor_id, self._rng.randrange(1, 100))
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.5))

    async def call(self, client: grid.Client, actor_id: str, amount: int) -> None:
        book, before = self._book, self.expected[actor_id]
        book.started += 1
        number, began = book.started, time.monotonic()
        book.pending[number] = began
        try:
            answer = await (client.call(Counter.add, actor_id, amount) if amount else client.call(Counter.look, actor_id))
        except ActorGridError as error:
            book.errors[type(error).__name__] += 1
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), flush=True)
            self.expected[actor_id] = None  # it may have happened: what is read next counts
        else:
            book.ok += 1
            if before is not None:
                book.lost += answer < before + amount
                book.doubled += answer > before + amount
            self.expected[actor_id] = answer
        finally:
            del book.pending[number]
            book.slowest_s = max(book.slowest_s, time.monotonic() - began)


async def main(callers: int, actors: int, pause_s: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    book = Book()
    everyone = [Caller(number, actors, book) for number in range(callers)]
    while True:
        client = grid.connect(sys.argv[4], timeout_s=PATIENCE_S)
        try:
            await client.open()
            await client.call(Counter.look, "caller-0-0")
            break
        except (ActorGridError, OSError) as error:
            await client.close()
            print(json.dumps({"waiting": f"{type(error).__name__}: {error}"[:300]}), flush=True)
            await asyncio.sleep(0.5)
    print(json.dumps({"first": time.time_ns() / 1e9}), flush=True)

    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            print(book.line(), flush=True)

    reporting = asyncio.create_task(report())
    async with asyncio.TaskGroup() as group:
        for each in everyone:
            group.create_task(each.run(client, pause_s, stop))
    reporting.cancel()
    wrong = 0
    for each in everyone:
        for actor_id, expected in each.expected.items():
            found = await client.call(Counter.look, actor_id)
            wrong += expected is not None and found != expected
    print(json.dumps({"final": True, "actors": callers * actors, "wrong": wrong}), flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
