"""Which activations stay in memory: idle ones leave after a while, and the least recently used ones when memory is short.

A clock hand goes round over all activations, a bounded number at a time, so that a host with a million of them never stops to look
at them all.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from actorgrid.host.activation import Activation
from actorgrid.settings import HostSettings

#: Activations looked at in one sweep: at about 0.3 us each this holds up the loop for less than a millisecond.
SWEEP_MAX: Final = 2000


class Residents:
    """The activations of one host."""

    def __init__(self, settings: HostSettings) -> None:
        self._idle_s = settings.activation_idle_s
        self._bytes_max = settings.activation_bytes_max
        self._ring: deque[Activation] = deque()
        self.count = 0
        self.bytes = 0
        self.dropped_total = 0

    def added(self, activation: Activation) -> None:
        self._ring.append(activation)
        self.count += 1
        self.bytes += activation.bytes

    def removed(self, activation: Activation) -> None:
        self.dropped_total += 1
        self.count -= 1
        self.bytes -= activation.bytes

    def sweep(self, now_s: float) -> None:
        """Look at the next activations of the round; let those go that are idle, or not used since the last round if memory is short.

        :param now_s: monotonic seconds
        """
        ring = self._ring
        idle_before = now_s - self._idle_s
        for _ in range(min(len(ring), SWEEP_MAX)):
            activation = ring.popleft()
            if activation.dead:
                continue
            activation.settle()
            if activation.used:
                activation.used = bool(activation.running) or activation.queue is not None  # what those change is measured next time
                activation.last_used_s = now_s
                size = activation.size_bytes()
                self.bytes += size - activation.bytes
                activation.bytes = size
            elif activation.last_used_s < idle_before or self.bytes > self._bytes_max:
                activation.partition.deactivate(activation)
            ring.append(activation)

    @property
    def over_limit(self) -> bool:
        return self.bytes > self._bytes_max
