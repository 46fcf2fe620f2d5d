"""What comes from outside of the program and differs from run to run: time and chance.

Hosts and clients look at clocks and draw lots through here, so that `actorgrid.testing.simulation` can put a virtual world in the place of
the real one: then the same seed gives the same run. Call the five functions that `replaced_by` replaces through the module
(``ambient.monotonic_ns()``), never by a name that was imported: it would go on meaning the real one. Loops have their own clock
(``loop.time()``), which a simulation provides.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from actorgrid.ids import CLIENT_ID_BYTES, ClientId

#: Nanoseconds, from any beginning; decisions about safety look at this and at nothing else (I15).
monotonic_ns: Callable[[], int] = time.monotonic_ns
#: Seconds on the same clock.
monotonic: Callable[[], float] = time.monotonic
#: The date in ns since 1970. It may jump, and nothing that matters may depend on it (I15).
wall_clock_ns: Callable[[], int] = time.time_ns
#: So many bytes that nobody can guess.
random_bytes: Callable[[int], bytes] = secrets.token_bytes
#: A generator of its own for who asks: jitter, election timeouts.
new_random: Callable[[], random.Random] = random.Random


class World(Protocol):
    """What a simulation has in place of these."""

    def monotonic_ns(self) -> int: ...
    def monotonic(self) -> float: ...
    def wall_clock_ns(self) -> int: ...
    def random_bytes(self, count: int, /) -> bytes: ...
    def new_random(self) -> random.Random: ...


def random_hex(byte_count: int) -> str:
    """Two hex digits for each of so many random bytes."""
    return random_bytes(byte_count).hex()


def new_client_id() -> ClientId:
    """Nobody else's: 16 random bytes."""
    return ClientId(random_bytes(CLIENT_ID_BYTES))


@contextlib.contextmanager
def replaced_by(world: World) -> Iterator[None]:
    """Let time and chance come from `world`, in the whole process, until the end of the block."""
    names = ("monotonic_ns", "monotonic", "wall_clock_ns", "random_bytes", "new_random")
    real = {name: globals()[name] for name in names}
    globals().update({name: getattr(world, name) for name in names})
    try:
        yield
    finally:
        globals().update(real)
