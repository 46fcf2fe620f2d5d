"""The event loop of one simulated process: asyncio's interface on virtual time.

Callbacks of one loop run in the order in which they were asked for, as asyncio promises; what differs from run to run is how the loops of
different processes interleave. A loop can be paused (SIGSTOP: its clock goes on) and killed: from then on nothing in it runs, no
``finally`` either, as after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack

from actorgrid.testing.simulation.world import World

if TYPE_CHECKING:
    from actorgrid.testing.simulation.network import Network, SimServer, SimTransport

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

set_running_loop = asyncio._set_running_loop

#: What runs in a thread takes so long, at most.
THREAD_S: Final = 0.002


class SimLoop(asyncio.AbstractEventLoop):
    """The loop of one process.

    :param machine: where the process runs, as the network knows it
    :param clock_per_mille: speed of its monotonic clock, 1000 is true; :param clock_offset_ns: what it showed at the beginning
    :ivar date_offset_ns: by how much its wall clock is wrong
    """

    def __init__(
        self, world: World, network: Network, name: str, machine: str, clock_per_mille: int = 1000, clock_offset_ns: int = 0
    ) -> None:
        self.world = world
        self._number = world.loops = world.loops + 1
        self.network = network
        self.name = name
        self.machine = machine
        self.rate = clock_per_mille
        self.offset_ns = clock_offset_ns
        self.date_offset_ns = 0
        self.is_dead = False
        self.is_paused = False
        self.transports: dict[SimTransport, None] = {}
        self.servers: dict[SimServer, None] = {}
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._timer_order = 0
        self._armed_ns = -1  # when the loop wakes up; -1: it sleeps
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._threads: random.Random = world.stream(f"threads {name}")

    # -- its clock

    @property
    def local_ns(self) -> int:
        """What the monotonic clock of the process shows."""
        return self.offset_ns + self.world.now_ns * self.rate // 1000

    def _true_ns(self, local_ns: int) -> int:
        """When the clock shows `local_ns`, or has just shown it."""
        return -((self.offset_ns - local_ns) * 1000 // self.rate)

    def time(self) -> float:
        return self.local_ns / 1e9

    # -- running

    def _arm(self, when_ns: int) -> None:
        if self._armed_ns < 0 or when_ns < self._armed_ns:
            self._armed_ns = when_ns
            self.world.at(when_ns, self._wake, when_ns)

    def _wake(self, when_ns: int) -> None:
        if when_ns != self._armed_ns or self.is_dead:
            return  # it was to wake up earlier, and has
        self._armed_ns = -1
        if not self.is_paused:
            self._run_once()

    def _run_once(self) -> None:
        world, ready, timers = self.world, self._ready, self._timers
        while timers and timers[0][0] <= world.now_ns:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        world.has_turn(self._number)
        world.running = self
        set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                if self.is_dead:
                    return
        finally:
            set_running_loop(None)
            world.running = None
        self._sleep()

    def _sleep(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if self._ready:
            self._arm(self.world.now_ns + self.world.step_ns())
        elif timers:
            self._arm(max(timers[0][0], self.world.now_ns))

    def pause(self) -> None:
        """SIGSTOP: nothing runs until `resume`; time passes, and what arrives waits."""
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.is_paused:
            self.is_paused = False
            self._armed_ns = -1
            self._sleep()

    def kill(self) -> None:
        """SIGKILL: nothing runs any more."""
        self.is_dead = True

    def tasks_left(self) -> list[asyncio.Task[Any]]:
        """Tasks that are not done."""
        return list(self._tasks)

    def timers_left(self) -> list[asyncio.TimerHandle]:
        """Timers that were not cancelled."""
        return [timer for _, _, timer in self._timers if not timer.cancelled()]

    # -- asyncio's interface

    def call_soon(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self.is_paused and self.world.running is not self:
            self._arm(self.world.now_ns + self.world.step_ns())
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # A microsecond more, so that the clock never shows less than `when` for want of digits.
        due_ns = self._true_ns(int(when * 1e9) + 1_000)
        self._timer_order += 1
        heapq.heappush(self._timers, (due_ns, self._timer_order, timer))
        if not self.is_paused and self.world.running is not self:
            self._arm(max(due_ns, self.world.now_ns))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer goes when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Coroutine[Any, Any, T] | Generator[Any, None, T], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget_task)
        return task

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        """There are no threads: `func` runs in the loop, a little later, all at once."""
        future: asyncio.Future[T] = self.create_future()
        self.call_later(self._threads.random() * THREAD_S, self._run_in_place_of_thread, future, func, args)
        return future

    @staticmethod
    def _run_in_place_of_thread(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - whatever it raises belongs to who waits
            if not future.cancelled():
                future.set_exception(error)
        else:
            if not future.cancelled():
                future.set_result(result)

    def set_default_executor(self, executor: Any) -> None:
        """See `run_in_executor`."""

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        ssl: None = None,
        server_hostname: None = None,
        local_addr: tuple[str, int] | None = None,
    ) -> tuple[SimTransport, Any]:
        assert ssl is None, "simulated networks have no TLS"
        return await self.network.connect(self, protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int, *, backlog: int = 100
    ) -> SimServer:
        return self.network.listen(self, protocol_factory, host, port)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_dead:
            return
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        self.world.problems.append(f"{self.name}: {context.get('message')}: {error!r}\n{trace}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.world.running is self

    def is_closed(self) -> bool:
        return self.is_dead


def make_loop(world: World, network: Network, name: str, machine: str, clock_per_mille: int, clock_offset_ns: int) -> SimLoop:
    """A `SimLoop`. What of asyncio's interface no part of a grid uses is not there, which a type checker minds."""
    return SimLoop(world, network, name, machine, clock_per_mille, clock_offset_ns)  # type: ignore[abstract]
