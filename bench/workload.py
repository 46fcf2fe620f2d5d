"""What a call of each kind is: made from a few words, so that a client process of its own can make the same.

The call numbered n goes to actor n modulo `actors`. Stand-ins are made once and kept, as an application does that calls its actors often.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from actorgrid import grid
from actorgrid.errors import ActorGridError, TransientError
from bench.actors import Counter, Parcel, Relay
from bench.book import Book
from bench.load import Call

#: Single calls in one `map` of the batch scenarios, and of preparing and reading back.
BATCH = 1_000
#: Actors in a chain, the first one included, and actors that a fan-out calls.
CHAIN = 3
FAN = 16
WRITES_OF_TEN = 1


class Workload(msgspec.Struct, kw_only=True, frozen=True):
    """Calls of one kind.

    :ivar kind: a name in `KINDS`
    :ivar actors: how many actors are called in turn
    :ivar prefix: of the actors' ids, so that scenarios on one grid do not share actors
    :ivar payload_bytes: sent along with each write and read back by each read, if the kind has it
    """

    kind: str
    actors: int
    prefix: str = "actor"
    payload_bytes: int = 0

    @property
    def weight(self) -> int:
        """Single calls in one."""
        return BATCH if self.kind.startswith("map") else 1

    @property
    def changes(self) -> bool:
        """Whether any of the calls changes state, so that there is something to read back."""
        return self.kind not in ("read", "get", "map-read")

    def ids(self) -> list[str]:
        """Ids of all actors."""
        return [f"{self.prefix}-{number}" for number in range(self.actors)]

    def call(self, client: grid.Client) -> Call:
        """What makes the call of a number.

        :raises ValueError: there is no such kind
        """
        make = KINDS.get(self.kind)
        if make is None:
            raise ValueError(f"no kind of call {self.kind!r}; known are {', '.join(KINDS)}")
        return make(self, client)

    def book(self) -> Book:
        """An empty book for the changes these calls make; each answered call is one change of its actor."""
        return Book(self.actors, is_change=is_write_of_mix if self.kind == "mixed" else None, refusals=(TransientError,))

    @property
    def actor(self) -> type[Any]:
        """Class of the actors that are called."""
        if self.kind in ("chain", "fan-out"):
            return Relay
        return Parcel if self.payload_bytes or self.kind in ("put", "get", "touch") else Counter

    async def prepare(self, client: grid.Client) -> None:
        """Make every actor that is called, so that the first calls are like all others."""
        data = bytes(self.payload_bytes)
        size = batch_size(self.payload_bytes)
        for start in range(0, self.actors, size):
            ids = self.ids()[start : start + size]
            if self.actor is Parcel:
                await client.map(Parcel.put, [(each, data) for each in ids])
            elif self.actor is Relay:
                await client.map(Relay.hop, [(each, []) for each in ids])
            else:
                await client.map(Counter.add, [(each, 1) for each in ids])

    async def read_back(self, client: grid.Client) -> list[int]:
        """The number of changes that each actor has, in order; -1 of one that could not be read."""
        found: list[int] = []
        ids = self.ids()
        for start in range(0, len(ids), BATCH):
            answers = await client.map(self.actor.read, [(each,) for each in ids[start : start + BATCH]], return_errors=True)
            found += [-1 if isinstance(answer, ActorGridError) else int(answer) for answer in answers]
        return found


def batch_size(payload_bytes: int) -> int:
    """So many calls with such a payload are made at once: some megabytes."""
    return max(1, min(BATCH, 4_000_000 // max(payload_bytes, 1)))


def is_write_of_mix(number: int) -> bool:
    """Whether the call of that number is one of the writes of the mix; spread over all actors, and the same in every run."""
    return (number * 2_654_435_761 >> 8) % 10 < WRITES_OF_TEN


def _write(workload: Workload, client: grid.Client) -> Call:
    if workload.payload_bytes:
        return _put(workload, client)
    proxies = [client.get(Counter, each) for each in workload.ids()]
    size = workload.actors
    return lambda number: proxies[number % size].add(1)


def _read(workload: Workload, client: grid.Client) -> Call:
    if workload.payload_bytes:
        return _get(workload, client)
    proxies = [client.get(Counter, each) for each in workload.ids()]
    size = workload.actors
    return lambda number: proxies[number % size].read()


def _mixed(workload: Workload, client: grid.Client) -> Call:
    write, read = _write(workload, client), _read(workload, client)
    return lambda number: write(number) if is_write_of_mix(number) else read(number)


def _map_read(workload: Workload, client: grid.Client) -> Call:
    batches = _batches(workload.ids())
    size = len(batches)
    return lambda number: client.map(Counter.read, [(each,) for each in batches[number % size]])


def _batches(ids: Sequence[str]) -> list[list[str]]:
    """Ids in groups of `BATCH`; each wraps around, so that every batch is full."""
    count = max(1, len(ids) // BATCH)
    return [[ids[(start * BATCH + place) % len(ids)] for place in range(BATCH)] for start in range(count)]


def _chain(workload: Workload, client: grid.Client) -> Call:
    ids = workload.ids()
    size = workload.actors
    proxies = [client.get(Relay, each) for each in ids]
    # The links belong to one chain each: the first of them is the key, whose count is read back.
    links = [[f"{each}-link-{place}" for place in range(1, CHAIN)] for each in ids]
    return lambda number: proxies[number % size].hop(links[number % size])


def _fan_out(workload: Workload, client: grid.Client) -> Call:
    ids = workload.ids()
    size = workload.actors
    proxies = [client.get(Relay, each) for each in ids]
    counters = [[f"{workload.prefix}-target-{(each * FAN + place) % (size * 4)}" for place in range(FAN)] for each in range(size)]
    return lambda number: proxies[number % size].fan(counters[number % size])


def _put(workload: Workload, client: grid.Client) -> Call:
    proxies = [client.get(Parcel, each) for each in workload.ids()]
    size = workload.actors
    # Two that differ: a grid that compared before it stored would see a change every time.
    data = (bytes(workload.payload_bytes), b"\1" * workload.payload_bytes)
    return lambda number: proxies[number % size].put(data[(number // size) & 1])


def _get(workload: Workload, client: grid.Client) -> Call:
    proxies = [client.get(Parcel, each) for each in workload.ids()]
    size = workload.actors
    return lambda number: proxies[number % size].get()


def _touch(workload: Workload, client: grid.Client) -> Call:
    proxies = [client.get(Parcel, each) for each in workload.ids()]
    size = workload.actors
    return lambda number: proxies[number % size].add(1)


KINDS: dict[str, Callable[[Workload, grid.Client], Callable[[int], Awaitable[object]]]] = {
    "write": _write,
    "read": _read,
    "mixed": _mixed,
    "map-read": _map_read,
    "chain": _chain,
    "fan-out": _fan_out,
    "put": _put,
    "get": _get,
    "touch": _touch,
}
