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
from bench.book import Book, Verdict
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
        """An empty book for the changes these calls make, by the actor that is called; see `changed_by` for the others."""
        # The error of a call that called others says nothing of these.
        refusals = () if self.actor is Relay else (TransientError,)
        return Book(self.actors, is_change=is_write_of_mix if self.kind == "mixed" else None, refusals=refusals)

    @property
    def actor(self) -> type[Any]:
        """Class of the actors that are called."""
        if self.kind in ("chain", "fan-out"):
            return Relay
        return Parcel if self.payload_bytes or self.kind in ("put", "get", "touch") else Counter

    async def prepare(self, client: grid.Client) -> None:
        """Make every actor that is called, so that the first calls are like all others."""
        data, all_ids = bytes(self.payload_bytes), self.ids()
        size = batch_size(self.payload_bytes)
        for start in range(0, self.actors, size):
            ids = all_ids[start : start + size]
            if self.actor is Parcel:
                await client.map(Parcel.put, [(each, data) for each in ids])
            elif self.actor is Relay:
                await client.map(Relay.hop, [(each, []) for each in ids])
            else:
                await client.map(Counter.add, [(each, 1) for each in ids])

    def changed(self) -> list[tuple[type[Any], str]]:
        """Every actor that the calls change, those that are called first."""
        others: list[tuple[type[Any], str]] = []
        if self.kind == "chain":
            others = [(Relay, link) for each in self.ids() for link in self.links(each)]
        elif self.kind == "fan-out":
            others = [(Counter, each) for each in self.targets()]
        return [*((self.actor, each) for each in self.ids()), *others]

    def changed_by(self, key: int) -> list[int]:
        """Places in `changed` of what a call of the actor numbered `key` changes, each once."""
        if self.kind == "chain":
            first = self.actors + key * (CHAIN - 1)
            return [key, *range(first, first + CHAIN - 1)]
        if self.kind == "fan-out":
            return [key, *(self.actors + place for place in self.targets_of(key))]
        return [key]

    def links(self, first: str) -> list[str]:
        """The actors that a chain goes on to; they belong to it alone."""
        return [f"{first}-link-{place}" for place in range(1, CHAIN)]

    def targets(self) -> list[str]:
        """All actors that fan-outs call."""
        return [f"{self.prefix}-target-{place}" for place in range(max(FAN, self.actors * 4))]

    def targets_of(self, key: int) -> list[int]:
        """Those that the fan-out of one actor calls, by their place in `targets`; several share each."""
        count = max(FAN, self.actors * 4)
        return [(key * FAN + place) % count for place in range(FAN)]

    async def read_back(self, client: grid.Client) -> list[int]:
        """The number of changes that each actor of `changed` has, in order.

        :raises RuntimeError: some cannot be read: nothing can be said of them
        """
        found: list[int] = []
        actors = self.changed()
        for start in range(0, len(actors), BATCH):
            by_type: dict[type[Any], list[str]] = {}
            for actor, each in actors[start : start + BATCH]:
                by_type.setdefault(actor, []).append(each)
            # Actors of one class lie side by side, so the order is kept.
            for actor, ids in by_type.items():
                answers: list[Any] = await client.map(actor.read, [(each,) for each in ids], return_errors=True)
                errors = [answer for answer in answers if isinstance(answer, ActorGridError)]
                if errors:
                    raise RuntimeError(f"{len(errors)} of {len(ids)} actors cannot be read back: {errors[0]}")
                found += [int(answer) for answer in answers]
        return found

    def judge(self, book: Book, before: Sequence[int], stored: Sequence[int]) -> Verdict:
        """Hold what was read back before and after the load against what callers were told."""
        changes = [now - then for now, then in zip(stored, before, strict=True)]
        return book.spread([self.changed_by(key) for key in range(self.actors)], len(changes)).judge(changes)


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
    links = [workload.links(each) for each in ids]
    return lambda number: proxies[number % size].hop(links[number % size])


def _fan_out(workload: Workload, client: grid.Client) -> Call:
    size = workload.actors
    proxies = [client.get(Relay, each) for each in workload.ids()]
    targets = workload.targets()
    called = [[targets[place] for place in workload.targets_of(each)] for each in range(size)]
    return lambda number: proxies[number % size].fan(called[number % size])


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
