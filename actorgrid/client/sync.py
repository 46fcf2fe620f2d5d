"""The client for code without asyncio: the asynchronous client, run by a thread of its own.

There is no second implementation: every method hands its arguments to the loop's thread and waits there for the answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, overload

from actorgrid.actor.definition import actor_type_of, method_of
from actorgrid.actor.methods import Method
from actorgrid.client.client import Client
from actorgrid.client.map import PartitionMap
from actorgrid.client.pending import PendingCall
from actorgrid.client.proxy import Proxy, make_proxy_class
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError
from actorgrid.ids import make_address
from actorgrid.settings import ClientSettings

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class _Waiter:
    """Where one thread waits for one answer. A bare lock is several times cheaper than a `concurrent.futures.Future`."""

    __slots__ = ("_error", "_is_over", "_lock", "_result", "future")

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] | None = None
        self._lock = threading.Lock()
        self._lock.acquire()
        self._is_over = False
        self._result: Any = None
        self._error: BaseException | None = None

    def wait(self) -> Any:
        self._lock.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # no cycle through the traceback
        return self._result

    def finish(self, result: Any, error: BaseException | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._result, self._error = result, error
            self._lock.release()

    def on_done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.finish(None, ActorGridError("the call was cancelled"))
            return
        error = future.exception()
        self.finish(None if error is not None else future.result(), error)


class _LoopThread:
    """An event loop in a thread, and the threads that wait for it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._waiters: set[_Waiter] = set()
        self._is_closed = False
        self._close_lock = threading.Lock()
        # A daemon: an application that forgets to close its client can still end.
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def run(self, start: Callable[..., asyncio.Future[Any]], *arguments: Any) -> Any:
        """Run `start` on the loop and wait for the future it returns. An interrupt of the waiting thread cancels the future.

        :raises ActorGridError: the loop is closed, or this is its own thread
        """
        waiter = _Waiter()
        # Into the set first: `close` fails everybody it finds there, so nobody is left waiting.
        self._waiters.add(waiter)
        try:
            if self._is_closed:
                raise ActorGridError("the client is closed")
            if threading.get_ident() == self._thread.ident:
                raise ActorGridError("a synchronous client cannot be used by its own thread: its answer could never come")
            try:
                self._loop.call_soon_threadsafe(self._start, waiter, start, arguments)
            except RuntimeError:
                raise ActorGridError("the client is closed") from None
            try:
                return waiter.wait()
            except KeyboardInterrupt:
                self._loop.call_soon_threadsafe(self._cancel, waiter)
                raise
        finally:
            self._waiters.discard(waiter)

    def run_coroutine(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine on the loop and wait for its result."""
        result: R = self.run(lambda: self._loop.create_task(make()))
        return result

    @staticmethod
    def _start(waiter: _Waiter, start: Callable[..., asyncio.Future[Any]], arguments: tuple[Any, ...]) -> None:
        try:
            future = waiter.future = start(*arguments)
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
            waiter.finish(None, error)
        else:
            future.add_done_callback(waiter.on_done)

    @staticmethod
    def _cancel(waiter: _Waiter) -> None:
        if waiter.future is not None:
            waiter.future.cancel()

    def close(self) -> None:
        """Stop the loop, join the thread, and let nobody wait on."""
        with self._close_lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            for waiter in tuple(self._waiters):
                waiter.finish(None, ActorGridError("the client was closed"))


class SyncClient:
    """Calls actors and waits for the answers. Get one from `grid.connect_sync` and use it in a ``with`` statement.

    It may be used by several threads at once. Errors and options are those of `Client`.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        settings: ClientSettings | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.address = address
        self.origin = self
        self._client = Client(address, timeout_s=timeout_s, settings=settings, credentials=credentials)
        self._thread: _LoopThread | None = None
        self._last_read = threading.local()
        self._proxy_classes: dict[type, tuple[str, type[Proxy]]] = {}

    # -- opening and closing

    def open(self) -> Self:
        """Connect to the grid; the ``with`` statement does it. Errors are those of `Client.open`."""
        if self.origin is not self:
            raise ActorGridError("a view made by with_options shares the connection of its client: open that one")
        if self._thread is not None:
            raise ActorGridError("the client is open already, or closed")
        self._thread = _LoopThread(f"actorgrid client {self.address}")
        try:
            self._thread.run_coroutine(self._client.open)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every pending call with an error, close all connections and join the thread. Safe to repeat."""
        thread = self.origin._thread
        if thread is None:
            return
        try:
            thread.run_coroutine(self.origin._client.close)
        except ActorGridError:
            pass  # closed already
        finally:
            thread.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- calls

    def get(self, actor: type[Any], actor_id: str) -> Any:
        """A stand-in for one actor whose methods return plain values: ``client.get(Account, "alice").deposit(5)``.

        No type checker can know that its methods do not return awaitables here, so it is typed ``Any``; `call` is the typed way.

        :raises InvalidArgumentError: `actor` is no actor class, or `actor_id` no id
        """
        found = self._proxy_classes.get(actor)
        if found is None:
            actor_type = actor_type_of(actor)
            found = self._proxy_classes[actor] = (actor_type.name, make_proxy_class(actor_type, _bind))
        return found[1](self, make_address(found[0], actor_id))

    def call(self, method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]], actor_id: str, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call one method and return its result: ``client.call(Account.deposit, "alice", 5)``. Errors: see `Client.call`."""
        actor_type, remote = method_of(method)
        result: R = self._call(make_address(actor_type.name, actor_id), remote, remote.encode_args(args, kwargs))
        return result

    @overload
    def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: Literal[False] = False
    ) -> list[R]: ...
    @overload
    def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: bool
    ) -> list[R | ActorGridError]: ...
    def map(
        self, method: Callable[..., Coroutine[Any, Any, R]], items: Iterable[Sequence[Any]], *, return_errors: bool = False
    ) -> list[Any]:
        """Call one method of many actors; results in the order of `items`. See `Client.map`."""
        items = list(items)  # an iterator of the application is run by the application's thread
        client = self._client
        return self._open_thread().run_coroutine(lambda: client.map(method, items, return_errors=return_errors))

    def call_by_name(self, type_name: str, actor_id: str, method_name: str, args: Sequence[Any] = ()) -> Any:
        """Call a method without having its class. See `Client.call_by_name`."""
        return self._open_thread().run(self._client.call_by_name, type_name, actor_id, method_name, tuple(args))

    def with_options(self, *, timeout_s: float | None = None, idempotency_key: str | None = None) -> SyncClient:
        """A view of this client, sharing everything, whose calls have other options. See `Client.with_options`."""
        view: SyncClient = object.__new__(SyncClient)
        view.__dict__.update(self.__dict__)
        view._client = self._client.with_options(timeout_s=timeout_s, idempotency_key=idempotency_key)
        return view

    @property
    def last_applied_lsn(self) -> int:
        """Position of the log that the last read with ``consistency="any"`` reflects which this thread made and got an answer to.

        0 before the first one. It is shared by all views of the client, and not set by `map`. See `Answer.applied_lsn`.
        """
        lsn: int = getattr(self._last_read, "applied_lsn", 0)
        return lsn

    # -- the grid

    @property
    def partition_map(self) -> PartitionMap:
        """The partition map as known now."""
        return self._client.partition_map

    def admin(self, address: str, port: int, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask one host an operator's question. See `Client.admin`."""
        return self._open_thread().run_coroutine(lambda: self._client.admin(address, port, verb, arguments))

    def __repr__(self) -> str:
        return f"<SyncClient of {self.address}>"

    # -- inside

    def _open_thread(self) -> _LoopThread:
        thread = self.origin._thread
        if thread is None:
            raise ActorGridError("the client is not connected: use it as `with grid.connect_sync(...) as client`")
        return thread

    def _call(self, address: str, method: Method, args: bytes) -> Any:
        thread, submit = self._open_thread(), self._client._submit
        if method.consistency == "primary":
            return thread.run(submit, address, method, args)
        made: list[PendingCall] = []

        def read() -> PendingCall:
            made.append(submit(address, method, args))
            return made[0]

        result = thread.run(read)
        self._last_read.applied_lsn = made[0].applied_lsn
        return result


def _bind(method: Method) -> Callable[..., Any]:
    def remote(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._client._call(self._address, method, method.encode_args(args, kwargs))

    return remote
