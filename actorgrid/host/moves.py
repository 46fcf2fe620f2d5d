"""The orders of a manager: which are under way, whom to leave alone for a moment, and what became of the last ones.

The orders of one tick are given one after the other until the next tick, and not all at once: each of them is work for two or three hosts,
and calls wait behind it. Together they would be one long wait for all callers; so they are many short ones, each for a few.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from msgspec import Struct

from actorgrid import ambient

logger = logging.getLogger(__name__)

#: Swaps wait for turns to end, builds for the host that is to build.
ORDER_TIMEOUT_S: Final = 5.0
#: Moves that are remembered, for operators: not part of any decision.
MOVES_REMEMBERED: Final = 1000
#: After an order was refused, doubled with each one in a row.
REFUSED_PAUSE_S: Final = 0.1
REFUSED_PAUSE_MAX_S: Final = 5.0
LEFT_OFFICE: Final = "the manager has left office"
WITHDRAWN: Final = "not given: it is decided anew"


class Order(NamedTuple):
    """What one host is told to do.

    :ivar what: the verb
    :ivar host: whose replica it is about
    :ivar asked: the host that is told
    """

    partition: int
    what: str
    host: str
    asked: str
    arguments: dict[str, Any]
    why: str


class Move(Struct):
    """Something that was ordered, for operators.

    :ivar at_ms: date; of one that has not begun, when it was decided
    :ivar outcome: empty while it is under way, ``done``, or why it came to nothing
    """

    number: int
    at_ms: int
    partition: int
    what: str
    host: str
    why: str
    outcome: str = ""
    seconds: float = 0.0


class AskHost(Protocol):
    """Asks a host of the grid."""

    async def __call__(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float, /) -> Any: ...


class Moves:
    """What a manager has ordered, at most one thing of a partition at a time.

    :param may_order_now: whether it is in office still; asked again before an order that had to wait
    :ivar last: the last orders of this life of the host, oldest first
    :ivar total: orders given in this life of the host
    :ivar one_is_done: set whenever an order has done what it should
    """

    def __init__(self, ask_host: AskHost, date_ms: Callable[[], int], may_order_now: Callable[[], bool]) -> None:
        self.last: deque[Move] = deque(maxlen=MOVES_REMEMBERED)
        self.total = 0
        self.one_is_done = asyncio.Event()
        self._ask_host = ask_host
        self._date_ms = date_ms
        self._may_order_now = may_order_now
        self._last_number = 0
        self._under_way: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._waiting: dict[int, Move] = {}  # of those, what is not given yet
        self._refused: dict[int, tuple[int, float]] = {}  # partition -> (orders refused in a row, no other one before)

    def may_order(self, partition: int) -> bool:
        """Whether no order is under way for it, and none was refused a moment ago."""
        return partition not in self._under_way and ambient.monotonic() >= self._refused.get(partition, (0, 0.0))[1]

    def under_way(self) -> dict[int, str]:
        """Partition -> what is done with it, or is about to be."""
        return {partition: what for partition, (what, _) in self._under_way.items()}

    def order(self, orders: Sequence[Order], within_s: float) -> None:
        """Give `orders`, the first at once and the others evenly within `within_s`; of partitions with an order under way none."""
        for place, order in enumerate(orders):
            if self.may_order(order.partition):
                self._begin(order, within_s * place / len(orders))

    def withdraw(self) -> None:
        """Do not give what is not given yet: what it was decided on has changed."""
        for partition, move in list(self._waiting.items()):
            move.outcome = WITHDRAWN
            self._under_way.pop(partition)[1].cancel()
        self._waiting.clear()

    def forget(self) -> None:
        """Let the outcome of what is under way be somebody else's, and hold nothing against anybody."""
        self._refused.clear()
        self._waiting.clear()
        for _, task in self._under_way.values():
            task.cancel()
        self._under_way.clear()

    def _begin(self, order: Order, after_s: float) -> None:
        # By date, so that those of the next manager have higher numbers.
        self._last_number = max(self._last_number + 1, self._date_ms() * 1000)
        partition, what = order.partition, order.what
        move = Move(self._last_number, self._date_ms(), partition, what, order.host, order.why)
        self.last.append(move)
        self._waiting[partition] = move
        task = asyncio.get_running_loop().create_task(self._carry_out(order, move, after_s), name=f"order {what} {partition}")
        self._under_way[partition] = what, task

        def over(done: asyncio.Task[None]) -> None:
            if move.outcome == "done":
                self.one_is_done.set()
            elif not move.outcome:  # it was not given
                move.outcome = LEFT_OFFICE
            if self._under_way.get(partition) == (what, done):
                del self._under_way[partition]

        task.add_done_callback(over)

    async def _carry_out(self, order: Order, move: Move, after_s: float) -> None:
        if after_s:
            await asyncio.sleep(after_s)
        del self._waiting[order.partition]
        if not self._may_order_now():
            return
        self.total += 1
        began_s, move.at_ms = ambient.monotonic(), self._date_ms()
        try:
            await self._ask_host(order.asked, order.what, order.arguments, ORDER_TIMEOUT_S)
            move.outcome = "done"
            self._refused.pop(move.partition, None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the order has come to nothing, and is decided anew
            move.outcome = str(error) or type(error).__name__
            times = self._refused.get(move.partition, (0, 0.0))[0] + 1
            self._refused[move.partition] = times, ambient.monotonic() + min(REFUSED_PAUSE_MAX_S, REFUSED_PAUSE_S * 2**times)
        except asyncio.CancelledError:
            move.outcome = LEFT_OFFICE
            raise
        finally:
            move.seconds = round(ambient.monotonic() - began_s, 4)
            logger.info(
                "move partition=%d what=%s host=%s seconds=%.3f outcome=%s why=%s",
                move.partition, move.what, move.host, move.seconds, move.outcome, move.why,
            )  # fmt: skip
