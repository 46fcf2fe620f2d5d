"""CPU-heavy work: `grid.offload` runs a function in a process of its own, anywhere in the cluster; the turn goes on with its result."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time

from example_grid import example_grid

from actorgrid import grid


@dataclasses.dataclass(frozen=True)
class Counted:
    """How many primes there are, and which process counted them."""

    primes: int
    process: int


def count_primes(below: int) -> Counted:
    """A plain function at the top of a module: it is found by its name, and its arguments and result travel as MessagePack."""
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return Counted(sum(sieve), os.getpid())


@grid.actor
class Mathematician:
    """Remembers what it had counted."""

    known: dict[int, int] = {}

    async def primes_below(self, limit: int) -> int:
        """How many primes there are below `limit`; counted once."""
        if limit not in self.known:
            # This actor is held meanwhile; its host goes on with others.
            counted = await grid.offload(count_primes, limit)
            assert counted.process != os.getpid(), "not in the host's process"
            self.known[limit] = counted.primes
        return self.known[limit]

    @grid.read
    async def read_known(self) -> dict[int, int]:
        """All that was counted."""
        return self.known


async def main(address: str) -> None:
    async with grid.connect(address) as client:
        others = [(f"student-{number}",) for number in range(30)]
        counting = client.call(Mathematician.primes_below, "euclid", 20_000_000)
        answered = 0
        while not counting.done():
            answered += len(await client.map(Mathematician.read_known, others))
        print("primes below 20,000,000:", await counting)
        print("others were answered meanwhile:", answered > len(others))
        began = time.monotonic()
        await client.call(Mathematician.primes_below, "euclid", 20_000_000)
        print("the second time it is remembered:", time.monotonic() - began < 0.5)


if __name__ == "__main__":
    with example_grid("offload_example") as address:
        asyncio.run(main(address))
