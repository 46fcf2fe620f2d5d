"""What leaves a turn: calls to other actors, and offloaded work.

Nothing leaves before everything the turn has seen of its own actor is committed, and every call carries the root
request's id with a path, so that a turn that is executed again asks under the same ids and is answered from the records (I10).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import msgspec
from xxhash import xxh3_128_hexdigest

from actorgrid import ambient
from actorgrid.actor.definition import ActorType, actor_type_of, method_of
from actorgrid.actor.methods import Method
from actorgrid.client.caller import Caller
from actorgrid.errors import (
    ActorGridError,
    DeadlineExceededError,
    DeadlockError,
    InvalidArgumentError,
    ReentrancyError,
    RequestError,
    TransientError,
    WriteInDoubtError,
    from_wire,
)
from actorgrid.host.offload import Offloader, codec_of, name_of
from actorgrid.host.partition import HostedPartition
from actorgrid.host.runner import error_payload
from actorgrid.host.turn import Turn
from actorgrid.ids import make_address, partition_of, show_address
from actorgrid.wire.messages import STATUS_ERROR, STATUS_OK, Call, CallExtra, decode_error

T = TypeVar("T")

#: A chain longer than this is a runaway, not a design.
CHAIN_LENGTH_MAX: Final = 32
RETRY_FIRST_S: Final = 0.002
RETRY_MAX_S: Final = 0.25
LEASE_LOOK_S: Final = 0.01


class _LocalAnswer:
    """Takes the answer of a call to an actor of this very host."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[tuple[int, bytes]]) -> None:
        self.future = future

    def reply(self, correlation: int, status: int, payload: bytes, lsn: int = 0) -> None:
        if not self.future.done():
            self.future.set_result((status, payload))


class _Reference:
    """A proxy of another actor, good for the turn that made it."""

    __slots__ = ("_actor_id", "_actor_type", "_outgoing", "_turn")

    def __init__(self, outgoing: OutgoingCalls, turn: Turn, actor_type: ActorType, actor_id: str) -> None:
        self._outgoing = outgoing
        self._turn = turn
        self._actor_type = actor_type
        self._actor_id = actor_id

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = self._actor_type.methods.get(name)
        if method is None:
            known = ", ".join(sorted(self._actor_type.methods))
            raise AttributeError(
                f"{self._actor_type.name} has no remote method {name!r}; it has: {known}. Fields are read through methods."
            )
        return functools.partial(self._outgoing.call_method, self._turn, self._actor_type, method, self._actor_id)

    def __repr__(self) -> str:
        return f"<{self._actor_type.name}/{self._actor_id} in {self._turn!r}>"


class OutgoingCalls:
    """Calls made by the turns of one host."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        partition_count: int,
        partitions: dict[int, HostedPartition],
        watermarks: dict[bytes, int],
        remote: Caller,
        offloader: Offloader,
    ) -> None:
        self._loop = loop
        self._partition_count = partition_count
        self._partitions = partitions
        self._watermarks = watermarks
        self._remote = remote
        self._offloader = offloader
        self._random = ambient.new_random()  # jitter of retries

    def proxy(self, turn: Turn, actor: type[T], actor_id: str) -> T:
        actor_type = actor_type_of(actor)
        make_address(actor_type.name, actor_id)
        return cast(T, _Reference(self, turn, actor_type, actor_id))

    def call(
        self, turn: Turn, function: Callable[..., Any], actor_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        actor_type, method = method_of(function)
        return self.call_method(turn, actor_type, method, actor_id, *args, **kwargs)

    def call_method(self, turn: Turn, actor_type: ActorType, method: Method, actor_id: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call `method` of another actor on behalf of `turn`.

        The call gets its place in the chain here, in the order in which the turn makes its calls, whenever it is awaited.
        """
        if turn.over:
            raise RequestError(
                f"this proxy of {actor_type.name}/{actor_id} belongs to a turn that is over; get a new one from grid.current()"
            )
        if not turn.client_id:
            raise RequestError(f"{turn.method.qualified_name} cannot call other actors: a hook belongs to no request")
        address = make_address(actor_type.name, actor_id)
        chain = (*turn.chain, turn.activation.address)
        if address in chain and not method.reentrant:
            names = [show_address(each) for each in (*chain, address)]
            raise ReentrancyError(
                f"{method.qualified_name} was called by a chain of calls that {names[-1]} itself waits for: {' -> '.join(names)}; "
                "mark it @grid.reentrant if it may run in between",
                chain=names,
            )
        if len(chain) > CHAIN_LENGTH_MAX:
            raise InvalidArgumentError(
                f"a chain of more than {CHAIN_LENGTH_MAX} calls: {' -> '.join(map(show_address, chain[-4:]))} -> ..."
            )
        return self._call(turn, method, address, method.encode_args(args, kwargs), turn.next_path(), chain)

    async def _call(self, turn: Turn, method: Method, address: str, args: bytes, path: tuple[int, ...], chain: tuple[str, ...]) -> Any:
        await self._until_committed(turn)
        if turn.over:
            raise RequestError(
                f"{turn.method.qualified_name} is over, so its call of {method.qualified_name} was not made; await it in the turn"
            )
        target = partition_of(address, self._partition_count)
        turn.waiting_for = (*turn.waiting_for, address)
        try:
            turn.activation.partition.admission.settle_deadlock(turn, address)
            partition = self._partitions.get(target)
            payload = None
            if partition is not None and partition.serving:
                payload = await self._call_local(turn, partition, method, address, args, path, chain)
            if payload is None:
                payload = await self._call_remote(turn, target, method, address, args, path, chain)
        finally:
            waiting = list(turn.waiting_for)
            waiting.remove(address)
            turn.waiting_for = tuple(waiting)
        return method.decode_result(payload)

    async def _until_committed(self, turn: Turn) -> None:
        """Wait for the commit of what earlier turns of this actor changed: this turn has seen it, so it must not be ahead of it.

        And for proof that what it has seen is the newest there is (I8).
        """
        activation = turn.activation
        partition = activation.partition
        if activation.last_lsn > partition.replica.committed_lsn:
            waiter: asyncio.Future[None] = self._loop.create_future()
            partition.wait_committed(activation.last_lsn, waiter)
            await waiter
        # A primary that others have followed without its knowing must not act on what it has seen: it ends here, with its activations.
        while not partition.replica.has_lease(ambient.monotonic_ns()) and not turn.over:
            await asyncio.sleep(LEASE_LOOK_S)

    async def _call_remote(
        self, turn: Turn, target: int, method: Method, address: str, args: bytes, path: tuple[int, ...], chain: tuple[str, ...]
    ) -> bytes:
        answer = self._remote.submit_nested(
            partition=target,
            address=address,
            method_name=method.name,
            args=args,
            client_id=turn.client_id,
            number=turn.number,
            path=path,
            chain=chain,
            again=turn.again,
            lowest_anywhere=self._watermarks.get(turn.client_id, 0),
            key=_key_of(turn, path),
            timeout_s=max(0.001, turn.deadline_s),
        )
        return bytes(await answer)

    async def _call_local(
        self,
        turn: Turn,
        partition: HostedPartition,
        method: Method,
        address: str,
        args: bytes,
        path: tuple[int, ...],
        chain: tuple[str, ...],
    ) -> bytes | None:
        """The answer of an actor of this host; None if its partition is served by another one by now."""
        delay_s = RETRY_FIRST_S
        # A turn that is executed again may have made this call in its first life: nothing forgotten since then may be taken for new.
        since_lsn = 0 if turn.again else partition.replica.committed_lsn
        while True:
            extra = CallExtra(number=turn.number, path=path, chain=chain, key=_key_of(turn, path), again=turn.again)
            call = Call(0, address, method.name, max(1, int(turn.deadline_s * 1000)), msgspec.Raw(args), extra)
            answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
            watermark = self._watermarks.get(turn.client_id, 0)
            # Not at once: the other actor's turn would run on this one's stack, inside its context.
            now_ns = ambient.monotonic_ns()
            refusal = partition.refusal(now_ns)
            if refusal is None:
                self._loop.call_soon(partition.admit, call, turn.client_id, 0, watermark, since_lsn, _LocalAnswer(answer), now_ns)
            else:
                answer.set_result((STATUS_ERROR, error_payload(refusal)))
            status, payload = await answer
            if status == STATUS_OK:
                return payload
            error = _error_of(payload)
            if isinstance(error, WriteInDoubtError):
                turn.again = True  # from here on nothing that is forgotten may be taken for new
            if not partition.serving and isinstance(error, TransientError | WriteInDoubtError) and not isinstance(error, DeadlockError):
                return None
            if isinstance(error, DeadlockError) or not isinstance(error, TransientError | WriteInDoubtError):
                raise error
            if turn.deadline_s <= delay_s:
                raise DeadlineExceededError(f"{method.qualified_name} of {show_address(address)} could not be called in time: {error}")
            await asyncio.sleep(delay_s * (0.5 + self._random.random() / 2))
            delay_s = min(2 * delay_s, RETRY_MAX_S)

    async def offload(self, turn: Turn, function: Callable[..., Any], args: tuple[Any, ...], cpus: Any, memory_bytes: Any) -> Any:
        name = name_of(function)
        codec = codec_of(function)
        if isinstance(cpus, bool) or not isinstance(cpus, int | float) or not 0 <= cpus <= 4096:
            raise InvalidArgumentError(f"grid.offload: cpus must be 0..4096, got {cpus!r}")
        encoded = codec.encode_args(args, {})
        await self._until_committed(turn)
        turn.calls_made += 1
        return codec.decode_result(await self._offloader.run(name, encoded, cpus=cpus, memory_bytes=memory_bytes))


def _key_of(turn: Turn, path: tuple[int, ...]) -> str | None:
    """Key of a call made by a turn that itself has an idempotency key; None for others.

    Such a turn may be executed again for another client, under other numbers: only a key that follows from its own stays the same.
    """
    if turn.key is None:
        return None
    return f"{xxh3_128_hexdigest(f'{turn.activation.address}{chr(0)}{turn.key}'.encode())}/{path[-1]}"


def _error_of(payload: bytes) -> ActorGridError:
    decoded = decode_error(payload)
    return from_wire(decoded.error, decoded.message, decoded.details)
