"""The asynchronous client: what an application holds."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from actorgrid import ambient
from actorgrid.actor.definition import actor_type_of, method_of
from actorgrid.actor.methods import Method
from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.client.batch import ITEMS_MIN, ReadMap, split_item
from actorgrid.client.caller import Caller, check_timeout_s
from actorgrid.client.map import PartitionMap
from actorgrid.client.pending import Answer, PendingCall
from actorgrid.client.proxy import Proxy, make_proxy_class
from actorgrid.client.seeds import parse_seeds
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError, InvalidArgumentError, OverloadedError
from actorgrid.ids import ClientId, make_address
from actorgrid.settings import ClientSettings, WireSettings

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

KEY_CHARACTERS_MAX = 512


class Options:
    """How calls of one view are made: its timeout, or None for the client's, and its idempotency key, or None."""

    __slots__ = ("key", "timeout_s")

    def __init__(self, timeout_s: float | None = None, key: str | None = None) -> None:
        self.timeout_s = timeout_s
        self.key = key

    def changed(self, timeout_s: float | None, key: str | None) -> Options:
        """These options with those given instead.

        :raises InvalidArgumentError: one is out of range
        """
        if timeout_s is not None:
            timeout_s = check_timeout_s(timeout_s)
        if key is not None and not (isinstance(key, str) and 1 <= len(key) <= KEY_CHARACTERS_MAX):
            raise InvalidArgumentError(f"idempotency_key: expected a str of 1..{KEY_CHARACTERS_MAX} characters, got {key!r:.80}")
        if key is not None:
            try:
                key.encode()
            except UnicodeEncodeError:
                raise InvalidArgumentError(f"idempotency_key: {key!r:.80} is not valid Unicode (lone surrogate)") from None
        return Options(timeout_s if timeout_s is not None else self.timeout_s, key if key is not None else self.key)


class Client:
    """Calls actors. Get one from `grid.connect` and use it as ``async with grid.connect(...) as client``.

    It belongs to one event loop. Every call is retried until its deadline and takes effect once. What a call raises is in
    `actorgrid.errors`: a `RequestError` or `ActorError` says no, a `TransientError` says that nothing happened, an
    `OutcomeUnknownError` that it may have.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        settings: ClientSettings | None = None,
        wire: WireSettings | None = None,
        rng: random.Random | None = None,
        client_id: ClientId | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self._credentials = credentials
        self.origin = self
        self._seeds = parse_seeds(address)
        settings = settings or ClientSettings()
        # As the default timeout it is cheaper than as every call's own.
        self._settings = settings if timeout_s is None else dataclasses.replace(settings, timeout_s=check_timeout_s(timeout_s))
        self._wire = wire or WireSettings()
        # Jitter only: where a client sends what must not hang on it.
        self._rng = rng or ambient.new_random()
        self._client_id = client_id or new_client_id()
        self._options = Options()
        self._caller: Caller | None = None
        self._proxy_classes: dict[type, tuple[str, type[Proxy]]] = {}

    # -- opening and closing

    async def open(self) -> Self:
        """Connect to the grid; ``async with`` does it.

        :raises HostUnavailableError: no host of the address answered within the timeout
        :raises AccessDeniedError: the grid refuses this client
        """
        if self.origin is not self:
            raise ActorGridError("a view made by with_options shares the connection of its client: open that one")
        if self._caller is not None:
            raise ActorGridError("the client is closed" if self._caller.is_closed else "the client is open already")
        caller = Caller(
            client_id=self._client_id,
            settings=self._settings,
            wire=self._wire,
            rng=self._rng,
            seeds=self._seeds,
            credentials=self._credentials,
        )
        self._caller = caller
        try:
            await caller.open(self._timeout_s)
        except BaseException:
            await caller.close()
            raise
        return self

    async def close(self) -> None:
        """End every pending call with an error and close all connections. Safe to repeat."""
        caller = self.origin._caller
        if caller is not None:
            await caller.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # -- calls

    def get(self, actor: type[T], actor_id: str) -> T:
        """A stand-in for one actor: its remote methods are called and awaited as if it were here. No I/O; any id exists.

        :raises InvalidArgumentError: `actor` is no actor class, or `actor_id` no id
        """
        found = self._proxy_classes.get(actor)
        if found is None:
            found = self._proxy_class(actor)
        return cast(T, found[1](self, make_address(found[0], actor_id)))

    def call(
        self, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], actor_id: str, *args: P.args, **kwargs: P.kwargs
    ) -> Answer[R]:
        """Call one method: ``await client.call(Account.deposit, "alice", 5)``.

        What it returns tells, when it is done, which position of the log a read with ``consistency="any"`` reflects: `Answer.applied_lsn`.

        :raises InvalidArgumentError: `method` is not remote, or id or arguments do not fit
        :raises OverloadedError: too much is in flight; nothing was sent
        :raises PayloadTooLargeError: the call is larger than a frame
        """
        actor_type, remote = method_of(method)
        return self._submit(make_address(actor_type.name, actor_id), remote, remote.encode_args(args, kwargs))

    @overload
    async def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: Literal[False] = False
    ) -> list[R]: ...
    @overload
    async def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: bool
    ) -> list[R | ActorGridError]: ...
    async def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: bool = False
    ) -> list[Any]:
        """Call one method of many actors: ``await client.map(Account.deposit, [("alice", 5), ("bob", 7)])``.

        All calls go out together, in one frame for each host as far as a frame holds them; of more calls than the client may have
        in flight, the rest follows as answers come in. A malformed item is found before anything is sent.

        :param items: the actor's id and the arguments of each call
        :param return_errors: put errors in the list instead of raising the first one in order
        :returns: results in the order of `items`, when every call is done
        :raises InvalidArgumentError: an item is malformed (nothing was sent), or the view has an idempotency key, which is for one call
        """
        if self._options.key is not None:
            raise InvalidArgumentError("map makes many calls, and an idempotency key is for one: use call")
        actor_type, remote = method_of(method)
        if remote.read and remote.consistency == "primary" and self._open_caller().knows_batches:
            items = list(items)
            if len(items) >= ITEMS_MIN:
                reads = ReadMap(self._open_caller(), remote, self._options.timeout_s, len(items))
                if reads.prepare(actor_type.name, items, return_errors):
                    await reads.run()
                    if reads.errors and not return_errors:
                        raise reads.results[min(reads.errors)]
                    return reads.results
        prepared: list[tuple[str, bytes] | ActorGridError] = []
        for item in items:
            try:
                actor_id, args = split_item(item)
                prepared.append((make_address(actor_type.name, actor_id), remote.encode_args(args, {})))
            except ActorGridError as error:
                if not return_errors:
                    raise
                prepared.append(error)
        calls: list[PendingCall | ActorGridError] = []
        try:
            for each in prepared:
                try:
                    calls.append(each if isinstance(each, ActorGridError) else self._submit(each[0], remote, each[1]))
                except OverloadedError:
                    assert not isinstance(each, ActorGridError)
                    calls.append(await self._submit_when_possible(each[0], remote, each[1], calls))
                except ActorGridError as error:
                    calls.append(error)
        except BaseException:
            _give_up(calls)
            raise
        return await _results_of(calls, return_errors)

    async def _submit_when_possible(
        self, address: str, method: Method, args: bytes, earlier: list[PendingCall | ActorGridError]
    ) -> PendingCall | ActorGridError:
        """Submit one call of a `map`; when the client's bounds are reached, as soon as an earlier call of it is answered."""
        while True:
            try:
                return self._submit(address, method, args)
            except OverloadedError as error:
                waiting = next((call for call in earlier if not isinstance(call, ActorGridError) and not call.done()), None)
                if waiting is None:
                    return error
                await asyncio.wait([waiting])
            except ActorGridError as error:
                return error

    def call_by_name(self, type_name: str, actor_id: str, method_name: str, args: Sequence[Any] = ()) -> asyncio.Future[Any]:
        """Call a method without having its class; the host checks the arguments, the result comes as plain values.

        :raises InvalidArgumentError: the id is none, or an argument cannot be encoded
        """
        address = make_address(type_name, actor_id)
        try:
            encoded = msgspec.msgpack.encode(tuple(args))
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
            raise InvalidArgumentError(f"{type_name}.{method_name}: {error}") from None
        caller = self._open_caller()
        return caller.submit(
            caller.lane_of(address), address, method_name, encoded, msgspec.msgpack.decode, self._options.timeout_s, self._options.key
        )

    def with_options(self, *, timeout_s: float | None = None, idempotency_key: str | None = None) -> Client:
        """A view of this client, sharing everything, whose calls have other options.

        :param timeout_s: seconds until a call gives up
        :param idempotency_key: 1..512 characters; calls to an actor with the same key, also of another process, take effect once. The grid
            keeps their results for 24 hours.
        :raises InvalidArgumentError: an option is out of range
        """
        view: Client = object.__new__(Client)
        view.__dict__.update(self.__dict__)
        view._options = self._options.changed(timeout_s, idempotency_key)
        view._caller = self.origin._caller
        return view

    # -- the grid

    @property
    def partition_map(self) -> PartitionMap:
        """The partition map as known now."""
        return self._open_caller().partition_map

    async def admin(self, address: str, port: int, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask one host an operator's question, on a connection of its own. See `actorgrid.client.admin.ask`."""
        cluster_id = self._open_caller().partition_map.cluster_id
        return await admin.ask(
            address,
            port,
            verb,
            arguments or {},
            client_id=self._client_id,
            cluster_id=cluster_id,
            wire=self._wire,
            timeout_s=self._timeout_s,
            credentials=self._credentials,
        )

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"

    # -- inside

    @property
    def _timeout_s(self) -> float:
        return self._options.timeout_s or self._settings.timeout_s

    def _open_caller(self) -> Caller:
        caller = self._caller
        if caller is None:
            caller = self._caller = self.origin._caller
            if caller is None:
                raise ActorGridError("the client is not connected: use it as `async with grid.connect(...) as client`")
        return caller

    def _submit(self, address: str, method: Method, args: bytes) -> PendingCall:
        caller = self._open_caller()
        options = self._options
        submit = caller.submit if method.consistency == "primary" else caller.submit_any
        return submit(caller.lane_of(address), address, method.name, args, method.decode_result, options.timeout_s, options.key)

    def _proxy_class(self, actor: Any) -> tuple[str, type[Proxy]]:
        actor_type = actor_type_of(actor)
        found = self._proxy_classes[actor] = (actor_type.name, make_proxy_class(actor_type, _bind))
        return found


async def _results_of(calls: list[PendingCall | ActorGridError], return_errors: bool) -> list[Any]:
    results: list[Any] = []
    first: ActorGridError | None = None
    try:
        for call in calls:
            try:
                results.append(call if isinstance(call, ActorGridError) else await call)
            except ActorGridError as error:
                results.append(error)
            if first is None and isinstance(results[-1], ActorGridError):
                first = results[-1]
    finally:
        _give_up(calls[len(results) :])
    if first is not None and not return_errors:
        raise first
    return results


def _give_up(calls: Iterable[PendingCall | ActorGridError]) -> None:
    """The caller was cancelled: none of these calls is wanted any more."""
    for call in calls:
        if not isinstance(call, ActorGridError) and not call.cancel() and not call.cancelled():
            call.exception()


def _bind(method: Method) -> Callable[..., PendingCall]:
    if method.consistency == "any":
        return _bind_any_read(method)
    name, encode_args, decode_result = method.name, method.encode_args, method.decode_result

    def remote(self: Any, /, *args: Any, **kwargs: Any) -> PendingCall:
        client = self._client
        caller = client._caller or client._open_caller()
        lane = self._lane
        if lane is None:
            lane = self._lane = caller.lane_of(self._address)
        options = client._options
        return caller.submit(lane, self._address, name, encode_args(args, kwargs), decode_result, options.timeout_s, options.key)  # type: ignore[no-any-return]

    return remote


def _bind_any_read(method: Method) -> Callable[..., PendingCall]:
    def remote(self: Any, /, *args: Any, **kwargs: Any) -> PendingCall:
        client: Client = self._client
        return client._submit(self._address, method, method.encode_args(args, kwargs))

    return remote
