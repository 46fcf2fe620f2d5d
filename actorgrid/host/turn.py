"""One turn: a request being executed in an activation, and what it knows about itself (``grid.current()``)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from actorgrid import ambient
from actorgrid.actor.context import TurnContext
from actorgrid.actor.methods import Method
from actorgrid.errors import OverloadedError
from actorgrid.ids import ClientId, RequestId

if TYPE_CHECKING:
    from actorgrid.actor.scope import ReentrantScope
    from actorgrid.host.activation import Activation

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


#: Retries of one request that are attached to it: one a connection would do.
WAITERS_MAX: Final = 256


class Sink(Protocol):
    """Where answers go: a connection, or a turn of this host that called another actor of it."""

    def reply(self, correlation: int, status: int, payload: bytes, lsn: int = 0) -> None:
        """Hand over an answer; never raises, never blocks. `lsn`: what a read with consistency "any" reflects."""


class Outgoing(Protocol):
    """What leaves a turn: calls to other actors, and offloaded work. Implemented by `actorgrid.host.outgoing`."""

    def proxy(self, turn: Turn, actor: type[T], actor_id: str) -> T: ...
    def call(
        self, turn: Turn, function: Callable[..., Any], actor_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]: ...
    async def offload(self, turn: Turn, function: Callable[..., Any], args: tuple[Any, ...], cpus: Any, memory_bytes: Any) -> Any: ...


class Turn(TurnContext):
    """A request in execution, from admission to its answer.

    :ivar session_key: number, or (number, path), under which the session knows it; None for reads and hooks, which leave no record
    :ivar client_id: empty for hooks
    :ivar deadline_ns: monotonic
    :ivar waiters: who else asked under the same request id since
    :ivar waiting_for: addresses of the actors whose answers it waits for
    """

    __slots__ = (
        "activation",
        "again",
        "any_replica",
        "args",
        "args_bytes",
        "calls_made",
        "chain",
        "client_id",
        "correlation",
        "deadline_ns",
        "digest",
        "expired",
        "key",
        "method",
        "number",
        "over",
        "path",
        "scope",
        "session_key",
        "sink",
        "task",
        "timer",
        "waiters",
        "waiting_for",
    )

    def __init__(
        self,
        activation: Activation,
        method: Method,
        args: tuple[Any, ...],
        args_bytes: int,
        client_id: bytes,
        number: int,
        deadline_ns: int,
        sink: Sink | None,
        correlation: int,
    ) -> None:
        self.activation = activation
        self.method = method
        self.args = args
        self.args_bytes = args_bytes
        self.client_id = client_id
        self.number = number
        self.deadline_ns = deadline_ns
        self.sink = sink
        self.correlation = correlation
        self.path: tuple[int, ...] = ()
        self.chain: tuple[str, ...] = ()
        self.again = False
        self.any_replica = False
        self.key: str | None = None
        self.digest = 0
        self.session_key: int | tuple[int, tuple[int, ...]] | None = None
        self.waiters: list[tuple[Sink, int]] | None = None
        self.calls_made = 0
        self.waiting_for: tuple[str, ...] = ()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.scope: ReentrantScope | None = None
        self.expired = False
        self.over = False

    def answer(self, status: int, payload: bytes) -> None:
        """Send the answer to everyone who asked."""
        if self.sink is not None:
            self.sink.reply(self.correlation, status, payload)
        if self.waiters is not None:
            for sink, correlation in self.waiters:
                sink.reply(correlation, status, payload)

    def answer_at(self, status: int, payload: bytes, lsn: int) -> None:
        """Send the answer of a read that reflects the partition's position `lsn`."""
        if self.sink is not None:
            self.sink.reply(self.correlation, status, payload, lsn)

    def attach(self, sink: Sink, correlation: int) -> None:
        """A retry arrived while the first try is still under way: it gets the same answer.

        :raises OverloadedError: too many wait already (I16)
        """
        if self.waiters is None:
            self.waiters = []
        elif len(self.waiters) >= WAITERS_MAX:
            raise OverloadedError(f"{len(self.waiters)} retries wait for one request, which is the limit", retry_after_s=0.1)
        self.waiters.append((sink, correlation))

    @property
    def priority(self) -> tuple[int, bytes, tuple[int, ...]]:
        """Of two turns that wait for each other the greater gives way; the same in every try."""
        return (self.number, self.client_id, self.path)

    def next_path(self) -> tuple[int, ...]:
        """Path of the next call this turn makes: the same in each execution, if the method decides the same way."""
        path = (*self.path, self.calls_made)
        self.calls_made += 1
        return path

    # -- TurnContext; what actors hand in is checked behind it, where the error can say what is wrong: hence Any

    @property
    def actor_type(self) -> str:
        return self.activation.actor_type.name

    @property
    def actor_id(self) -> str:
        return self.activation.address.partition("\0")[2]

    @property
    def request_id(self) -> RequestId | None:
        return RequestId(ClientId(self.client_id), self.number, self.path) if self.client_id else None

    @property
    def deadline_s(self) -> float:
        return max(0.0, (self.deadline_ns - ambient.monotonic_ns()) / 1e9)

    def get(self, actor: type[T], actor_id: Any) -> T:
        return self.activation.partition.outgoing.proxy(self, actor, actor_id)

    def call(
        self, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], actor_id: Any, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[R]:
        return self.activation.partition.outgoing.call(self, method, actor_id, args, kwargs)

    async def offload(self, function: Callable[..., R], *args: Any, cpus: Any = 1.0, memory_bytes: Any = None) -> R:
        result: R = await self.activation.partition.outgoing.offload(self, function, args, cpus, memory_bytes)
        return result

    def report_load(self, load: Any) -> None:
        self.activation.partition.load.report(self.activation, load)

    def __repr__(self) -> str:
        request = f"{self.client_id.hex()[:8]}/{self.number}{self.path or ''}"
        return f"<turn {self.method.qualified_name} of {self.activation.address!r} request {request}>"
