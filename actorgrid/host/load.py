"""What actors say of their own load (``grid.report_load``): summed over those that are in memory, by partition."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from actorgrid.errors import InvalidArgumentError

if TYPE_CHECKING:
    from actorgrid.host.activation import Activation

#: More counts as this much, so that sums over a grid stay far from infinite.
LOAD_COUNTED_MAX: Final = 1e15
#: Sums are kept in whole parts of a unit: a sum of floats that come and go drifts, one of integers does not.
PARTS: Final = 1 << 20


class ReportedLoad:
    """The load of one partition. Turns of blocking methods report from threads, hence the lock."""

    def __init__(self) -> None:
        self._parts = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> float:
        """The sum over the activations."""
        return self._parts / PARTS

    def report(self, activation: Activation, load: object) -> None:
        """Let `activation` have this load, in place of what it said before.

        :raises InvalidArgumentError: it is no number, negative or not finite
        """
        if isinstance(load, bool) or not isinstance(load, int | float) or not 0 <= load < math.inf:
            raise InvalidArgumentError(f"grid.report_load: load must be a finite number, 0 or more, got {load!r:.100}")
        self._set(activation, int(min(load, LOAD_COUNTED_MAX) * PARTS))

    def forget(self, activation: Activation) -> None:
        """`activation` is gone, and its load with it."""
        self._set(activation, 0)

    def _set(self, activation: Activation, parts: int) -> None:
        with self._lock:
            if activation.dead:
                parts = 0  # a thread of it may be at work still
            self._parts += parts - activation.load_parts
            activation.load_parts = parts
