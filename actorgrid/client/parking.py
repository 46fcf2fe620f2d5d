"""Calls that wait for their next try: one heap and one timer for all of them."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Mapping

from actorgrid.client.pending import PendingCall
from actorgrid.settings import ClientSettings

#: Answered calls left in the heap before it is rebuilt, besides twice the pending ones.
_SLACK = 4096
#: A call that may not be tried again before its deadline is woken this much after it, when the deadline has ended it.
_PAST_DEADLINE_S = 0.05


class ParkingLot:
    """Wakes each parked call after its backoff: doubling with jitter, and never before the time that a host named.

    :param pending: the calls that are not over; others are forgotten here when their time comes
    :param wake: called with a call whose time has come
    """

    def __init__(
        self, settings: ClientSettings, rng: random.Random, pending: Mapping[int, PendingCall], wake: Callable[[PendingCall], None]
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._pending = pending
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    def park(self, call: PendingCall, retry_after_s: float) -> None:
        """Keep `call` until its next try."""
        doubled = self._settings.retry_first_s * 2.0 ** min(call.refusals, 30)
        delay_s = min(doubled, self._settings.retry_max_s) * self._rng.uniform(0.5, 1.0)
        call.refusals += 1
        call.is_parked = True
        when = min(self._loop.time() + max(delay_s, retry_after_s), call.deadline + _PAST_DEADLINE_S)
        heapq.heappush(self._heap, (when, call.number))
        if len(self._heap) > 2 * len(self._pending) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in self._pending]
            heapq.heapify(self._heap)
        self._arm()

    def unpark(self, call: PendingCall) -> None:
        """Wake `call` now; its entry in the heap is skipped later."""
        call.is_parked = False
        self._wake(call)

    def close(self) -> None:
        """Wake nobody any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if not self._heap:
            return
        when = self._heap[0][0]
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        # Kept here: uvloop gives a plain handle, which does not know its time, for what is due at once.
        self._due = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][1] not in self._pending):
            _, number = heapq.heappop(heap)
            call = self._pending.get(number)
            if call is not None and call.is_parked:
                self.unpark(call)
        self._arm()
