"""Turns that block the loop: found, reported by name, and after a while interrupted.

All actors of a host share one loop, so a turn that computes or sleeps without awaiting holds up everyone. A thread looks every few
milliseconds whether the loop is still in the same step of the same turn. Past ``loop_block_report_s`` it logs the method and where it
is; past ``loop_block_limit_s`` it raises `TurnBlockedError` inside the turn (the interpreter delivers it at the next bytecode), which
rolls the turn back like any other exception. Code stuck inside a C function gets it when that function returns.

Time is counted in the thread's own wake-ups, not on a clock: after the whole process was stopped, or starved of CPU, a turn has not
blocked anything.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actorgrid.host.turn import Turn

logger = logging.getLogger(__name__)


class TurnBlockedError(BaseException):
    """Raised inside a turn that blocks its host's loop. No `Exception`, so that ``except Exception`` in actor code does not keep it."""


class Watchdog:
    """Watches the loop of one host.

    The runner sets `current` to the turn around every step it makes and raises `step` each time; a step is what runs between two awaits.
    """

    def __init__(self, report_s: float, limit_s: float) -> None:
        self._report_s = report_s
        self._limit_s = limit_s
        self._tick_s = min(0.05, report_s / 2)
        self.current: Turn | None = None
        self.step = 0
        self.blocked_reported = 0
        self.interrupted = 0
        self.struck: Turn | None = None
        self._lock = threading.Lock()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="actorgrid watchdog", daemon=True)

    def start(self) -> None:
        """Call it in the loop's thread."""
        self._loop_thread = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def settle(self, turn: Turn) -> None:
        """The step of `turn` is over: an interruption that has not been delivered must not hit what comes after it."""
        if self.struck is turn:
            try:
                with self._lock:
                    self.struck = None
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._loop_thread), None)
            except TurnBlockedError:
                self.struck = None

    def _watch(self) -> None:
        seen, ticks, reported = -1, 0, False
        while not self._stopping.is_set():
            # Not Event.wait: that would take a lock that the loop's thread may need while it is being interrupted.
            time.sleep(self._tick_s)
            turn, step = self.current, self.step
            if turn is None or step != seen:
                seen, ticks, reported = step, 0, False
                continue
            ticks += 1
            blocked_s = ticks * self._tick_s
            if blocked_s >= self._report_s and not reported:
                reported = True
                self._report(turn, blocked_s)
            if blocked_s >= self._limit_s:
                self._interrupt(turn, step, blocked_s)

    def _report(self, turn: Turn, blocked_s: float) -> None:
        self.blocked_reported += 1
        frame = sys._current_frames().get(self._loop_thread)
        where = "".join(traceback.format_stack(frame, limit=4)) if frame is not None else "?"
        logger.warning(
            "loop blocked method=%s actor=%s for_s=%.2f; use @grid.blocking or grid.offload. It is at:\n%s",
            turn.method.qualified_name,
            turn.activation.address.replace("\0", "/"),
            blocked_s,
            where,
        )

    def _interrupt(self, turn: Turn, step: int, blocked_s: float) -> None:
        with self._lock:
            if self.current is not turn or self.step != step:
                return
            first = self.struck is not turn
            self.struck = turn
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._loop_thread), ctypes.py_object(TurnBlockedError))
        if first:
            self.interrupted += 1
            logger.error("turn interrupted method=%s blocked_s=%.2f", turn.method.qualified_name, blocked_s)
