"""The first step of a turn: what drives its coroutine, and the stand-in for its task, until it has waited for something and has one.

Not compiled: libraries refer to the current task weakly, which compiled objects do not allow; and the interpreter takes the result of a
coroutine without an exception, which compiled code cannot.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

from actorgrid.actor.context import TurnContext, current_turn


class Outcome:
    """What came of the step that a `drive` made.

    :ivar is_over: the coroutine has returned; otherwise what was sent is what it waits for
    :ivar is_last: that coroutine was the last one: the rest of it is driven as it would be itself
    """

    __slots__ = ("is_last", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self.is_last = False


@types.coroutine
def drive(outcome: Outcome) -> Generator[Any, tuple[TurnContext, Coroutine[Any, Any, Any]], Any]:
    """Make the first steps of one coroutine after another, each sent with its turn; begin it with None.

    A coroutine that returns into a `yield from` costs no StopIteration. One that raises ends the driver with its exception, and one that
    waits keeps it: set `Outcome.is_last` then, and begin another.
    """
    value: Any = None
    while not outcome.is_last:
        turn, coroutine = yield value
        outcome.is_over = False
        current_turn.set(turn)
        value = yield from coroutine
        turn = coroutine = None  # type: ignore[assignment]  # nobody is kept alive here until the next turn
        outcome.is_over = True
    return value


class FirstStepTask:
    """What ``asyncio.current_task()`` gives before a turn has waited for the first time.

    It becomes a front of the real task once there is one. Library code that holds on to the current task (``asyncio.timeout`` does)
    may cancel it at any time: what comes before there is a task is delivered to it then.
    """

    __slots__ = ("__weakref__", "_cancel_messages", "_loop", "_name", "_started", "_task", "used")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._cancel_messages: list[Any] = []
        self._started = False
        self._name = "turn"
        #: Somebody may hold on to it: the next turn gets another one. No property, since every turn looks.
        self.used = False

    def become(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self.used = True

    def start(self) -> None:
        """The task runs. A task that is cancelled before it has run at all would not run, and the turn would never end."""
        self._started = True
        if self._task is not None:
            for message in self._cancel_messages:
                self._task.cancel(message)

    def cancel(self, msg: Any = None) -> bool:
        if self._started and self._task is not None:
            return self._task.cancel(msg)
        self._cancel_messages.append(msg)
        self.used = True
        return True

    def cancelling(self) -> int:
        return self._task.cancelling() if self._started and self._task is not None else len(self._cancel_messages)

    def uncancel(self) -> int:
        if self._started and self._task is not None:
            return self._task.uncancel()
        if self._cancel_messages:
            self._cancel_messages.pop()
        return len(self._cancel_messages)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def get_name(self) -> str:
        return self._name

    def set_name(self, value: object) -> None:
        self._name = str(value)

    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def cancelled(self) -> bool:
        return self._task is not None and self._task.cancelled()

    def __getattr__(self, name: str) -> Any:
        # The rest of a task's interface exists only once there is a task.
        task = object.__getattribute__(self, "_task")
        if task is None:
            raise AttributeError(f"{name}: this turn has not awaited anything yet, so it has no task")
        return getattr(task, name)
