"""A world in one thread: virtual time, and everything that is still to happen in it.

Whatever happens does so at a moment of true time, in the order of these moments. What a process does takes no time; between two turns of
its loop lies a little, drawn from the seed, so that processes overtake each other differently in each run. The same seed gives the same
run: `World.digest` is over everything that happened, in order.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64

if TYPE_CHECKING:
    from actorgrid.testing.simulation.loop import SimLoop

SECOND_NS: Final = 1_000_000_000
#: The date on which every simulation begins: 2026-01-01, in ns since 1970.
BEGINNING_NS: Final = 1_767_225_600 * SECOND_NS
#: A world in which so much happens while no time passes has a loop that never rests.
EVENTS_AT_ONE_TIME_MAX: Final = 100_000
TAIL_LENGTH: Final = 400


class World:
    """Time and chance, and what is to happen when. It takes the place of the real ones: see `actorgrid.ambient.replaced_by`.

    :ivar now_ns: true time, which no process of the simulation sees: each has a clock of its own
    :ivar running: the loop whose turn it is
    :ivar loops: how many loops were made
    :ivar counts: how often what happened, for coverage
    :ivar problems: what a loop's exception handler was told: nothing may go wrong unheard
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.running: SimLoop | None = None
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LENGTH)
        self.events = 0
        self._seeds = random.Random(seed)  # noqa: S311 - a simulation is to be repeated
        self._lots = self.stream("lots")
        self._step_lots = self.stream("steps")
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._digest = xxh3_64()
        self._turns = 0
        self.loops = 0
        self._at_one_time = 0

    # -- time and chance, as `ambient` has them

    def monotonic_ns(self) -> int:
        """On the clock of the process whose turn it is."""
        running = self.running
        return running.local_ns if running is not None else self.now_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def wall_clock_ns(self) -> int:
        running = self.running
        return BEGINNING_NS + self.now_ns + (running.date_offset_ns if running is not None else 0)

    def random_bytes(self, count: int) -> bytes:
        return self._lots.randbytes(count)

    def new_random(self) -> random.Random:
        """The next stream; who asks in the same order gets the same."""
        return random.Random(self._lots.getrandbits(64))  # noqa: S311 - as above

    def stream(self, name: str) -> random.Random:
        """A stream that does not depend on who else draws lots."""
        return random.Random(f"{self.seed} {name}")  # noqa: S311 - as above

    # -- what is to happen

    def at(self, when_ns: int, callback: Callable[..., None], *args: Any) -> None:
        """Call it at `when_ns`, or now if that is past; calls of one moment in the order in which they were asked for."""
        self._order += 1
        heapq.heappush(self._heap, (max(when_ns, self.now_ns), self._order, callback, args))

    def after(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        """Call it `delay_s` from now."""
        self.at(self.now_ns + int(delay_s * SECOND_NS), callback, *args)

    def step_ns(self) -> int:
        """How long the turn of a loop takes, or what else is to be a little later: 1 to 60 us."""
        return 1_000 + int(self._step_lots.random() ** 2 * 59_000)

    def run_until(self, end_ns: int, is_over: Callable[[], bool] | None = None) -> bool:
        """Let things happen, up to `end_ns` or until `is_over()`; whether it was over. `is_over` is asked after everything that happens.

        :raises RuntimeError: time stands still
        """
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end_ns:
            when_ns, _, callback, args = pop(heap)
            if when_ns == self.now_ns:
                self._at_one_time += 1
                if self._at_one_time > EVENTS_AT_ONE_TIME_MAX:
                    raise RuntimeError(f"time stands still at {self.now_ns / 1e9:.6f} s: {callback}")
            else:
                self._at_one_time = 0
            self.now_ns = when_ns
            self.events += 1
            callback(*args)
            if is_over is not None and is_over():
                return True
        self.now_ns = max(self.now_ns, end_ns)
        return is_over is not None and is_over()

    def leap(self, duration_ns: int) -> None:
        """Go forward in time as if all machines had slept: what was due meanwhile is due now, once, in its order."""
        now_ns = self.now_ns + duration_ns
        self._heap[:] = [(max(when_ns, now_ns), order, callback, args) for when_ns, order, callback, args in self._heap]
        heapq.heapify(self._heap)
        self.now_ns = now_ns

    def due(self) -> list[Callable[..., None]]:
        """What is to be called, in no order."""
        return [callback for _, _, callback, _ in self._heap]

    # -- what has happened

    def has_turn(self, number: int) -> None:
        """The loop with this number runs now: into the digest. Hashes of numbers are the same in every process."""
        self._turns = hash((self._turns, self.now_ns, number))

    def happened(self, what: str | bytes) -> None:
        """Take `what` into the digest."""
        self._digest.update(b"%d %d " % (self.now_ns, self._turns))
        self._digest.update(what.encode() if isinstance(what, str) else what)

    def note(self, what: str) -> None:
        """Something a reader of a failed run wants to know; also part of the digest."""
        self.happened(what)
        self.tail.append(f"{self.now_ns / 1e9:11.6f} {what}")

    @property
    def digest(self) -> str:
        """16 hex digits over everything that has happened."""
        whole = self._digest.copy()
        whole.update(b"%d" % self._turns)
        return whole.hexdigest()
