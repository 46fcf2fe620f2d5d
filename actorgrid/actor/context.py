"""What a turn knows about itself: ``grid.current()``. The host implements it; actor code sees this interface."""

from __future__ import annotations

import abc
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from actorgrid.errors import RequestError
from actorgrid.ids import RequestId

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

#: The running turn; set in the turn's own copy of the context, so that what it starts inherits it and nothing else sees it.
current_turn: contextvars.ContextVar[TurnContext | None] = contextvars.ContextVar("actorgrid_turn", default=None)


class TurnContext(abc.ABC):
    """The running turn, as ``grid.current()`` gives it to actor code."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def actor_type(self) -> str:
        """Name of the actor's type."""

    @property
    @abc.abstractmethod
    def actor_id(self) -> str:
        """The actor's id."""

    @property
    @abc.abstractmethod
    def request_id(self) -> RequestId | None:
        """Id of the call that this turn answers, the same in every retry; None in a hook."""

    @property
    @abc.abstractmethod
    def deadline_s(self) -> float:
        """Seconds left until the caller's deadline; calls made by this turn get no more."""

    @abc.abstractmethod
    def get(self, actor: type[T], actor_id: str) -> T:
        """A proxy of another actor. No I/O; its calls belong to this turn's chain and share its deadline.

        :raises InvalidArgumentError: `actor` is no actor class, or the id is not allowed
        """

    @abc.abstractmethod
    def call(
        self, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], actor_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]:
        """``await current().call(Account.deposit, "alice", 5)``."""

    @abc.abstractmethod
    async def offload(self, function: Callable[..., R], *args: Any, cpus: float = 1.0, memory_bytes: int | None = None) -> R:
        """See `offload`."""

    @abc.abstractmethod
    def report_load(self, load: float) -> None:
        """See `report_load`."""


def current() -> TurnContext:
    """The running turn.

    :raises RequestError: called outside a turn
    """
    turn = current_turn.get()
    if turn is None:
        raise RequestError("grid.current(), grid.offload() and grid.report_load() work only inside a turn of an actor")
    return turn


async def offload(function: Callable[..., R], *args: Any, cpus: float = 1.0, memory_bytes: int | None = None) -> R:
    """Run CPU-heavy work in a process of its own, anywhere in the cluster, and resume the turn with its result.

    The actor is held meanwhile, its host is not. Like a call, it leaves only after everything the turn has seen is committed;
    a turn that is executed again offloads again, so `function` should depend on its arguments alone.

    :param function: a module-level function; it is sent by name and its arguments and result as MessagePack, typed by its annotations
    :param cpus: processors to reserve; :param memory_bytes: memory to reserve, if any
    :raises InvalidArgumentError: `function` cannot be found by name, or an argument cannot be encoded
    :raises ActorError: the function raised; type, text and traceback are carried along
    """
    return await current().offload(function, *args, cpus=cpus, memory_bytes=memory_bytes)


def report_load(load: float) -> None:
    """Say how much load this actor is, in a unit of the application's own: frames a second, open games, whatever wears its host.

    It counts until the actor says otherwise or leaves memory; it is no state, and a turn that fails does not take it back. The load of a
    partition is the sum over its actors, as a mean over about a minute, and placement evens it out over the hosts (docs/placement.md).
    Costs about a microsecond.

    :param load: 0 or more; above 10^15 it counts as that much
    :raises InvalidArgumentError: it is no number, negative or not finite
    :raises RequestError: called outside a turn
    """
    current().report_load(load)
