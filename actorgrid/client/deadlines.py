"""Which calls have run out of time, without a timer per call.

Calls with the client's default timeout expire in the order of their numbers, so a queue of numbers is enough; the others go to a
heap. Answered calls leave both lazily: a number that is no longer pending is skipped.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping

from actorgrid.client.pending import PendingCall

#: Numbers of answered calls kept before a queue is rebuilt, besides twice the pending ones.
_SLACK = 4096


class Deadlines:
    """Numbers of pending calls by deadline.

    :ivar ordinary: numbers with the default timeout, oldest first
    :ivar own: numbers of this client's calls with a timeout of their own, oldest first
    """

    __slots__ = ("_heap", "ordinary", "own")

    def __init__(self) -> None:
        self.ordinary: deque[int] = deque()
        self.own: deque[int] = deque()
        self._heap: list[tuple[float, int]] = []

    def add_own(self, number: int, deadline: float) -> None:
        """Watch a call whose timeout is not the default one."""
        heapq.heappush(self._heap, (deadline, number))

    def lowest(self, pending: Mapping[int, PendingCall], next_number: int) -> int:
        """The lowest number pending, of `ordinary` and `own`; amortised constant."""
        lowest = next_number
        for queue in (self.ordinary, self.own):
            while queue and queue[0] not in pending:
                queue.popleft()
            if queue and queue[0] < lowest:
                lowest = queue[0]
        return lowest

    def expired(self, pending: Mapping[int, PendingCall], now: float) -> Iterator[PendingCall]:
        """Calls whose deadline has passed; each must be taken out of `pending` before the next is asked for."""
        ordinary, heap = self.ordinary, self._heap
        while ordinary:
            call = pending.get(ordinary[0])
            if call is not None:
                if call.deadline > now:
                    break
                yield call
            ordinary.popleft()
        while heap:
            deadline, number = heap[0]
            call = pending.get(number)
            if call is not None:
                if deadline > now:
                    break
                yield call
            heapq.heappop(heap)

    def compact(self, pending: Mapping[int, PendingCall]) -> None:
        """Forget answered numbers behind one that is stuck (I16)."""
        limit = 2 * len(pending) + _SLACK
        if len(self.ordinary) > limit:
            self.ordinary = deque([number for number in self.ordinary if number in pending])
        if len(self.own) > limit:
            self.own = deque([number for number in self.own if number in pending])
        if len(self._heap) > limit:
            self._heap = [entry for entry in self._heap if entry[1] in pending]
            heapq.heapify(self._heap)
