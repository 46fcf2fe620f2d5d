"""`TestGrid`: a grid inside a test, on virtual time, for the tests of applications. See docs/testing.md."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import actorgrid
from actorgrid.actor.definition import ActorType, actor_type_of, is_actor
from actorgrid.actor.registry import ActorRegistry
from actorgrid.client.client import Client
from actorgrid.errors import SettingsError
from actorgrid.host.activation import Activation
from actorgrid.host.partition import HostedPartition
from actorgrid.ids import make_address, partition_of, show_address
from actorgrid.settings import ClientSettings, HostSettings
from actorgrid.testing.simulation.cluster import SimCluster
from actorgrid.testing.simulation.loop import SimLoop
from actorgrid.testing.simulation.network import Traffic
from actorgrid.testing.simulation.processes import Process
from actorgrid.testing.simulation.world import SECOND_NS, World

A = TypeVar("A")
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
Scenario = Callable[[Client], Awaitable[T]]

#: A scenario that is not over after so many virtual seconds is taken for stuck: twenty times the deadline of a call.
SCENARIO_TIMEOUT_S: Final = 600.0
#: What the grid itself is asked for is there within so many virtual seconds, or never.
GRID_TIMEOUT_S: Final = 60.0
#: One wait may cost so much: a minute or so of real time.
EVENTS_MAX: Final = 5_000_000
PARTITION_COUNT: Final = 4
HOST_COUNT_MAX: Final = 7
REPLICA_SET_SIZE: Final = 3

# A leap over time in which nothing happens. Hosts that hear each other leap less than a lease lasts, so that nobody misses anybody;
# before and after it time passes as ever, so that what is due (idle actors leave memory, say) happens.
_LEAP_ALONE_S: Final = 60.0
_LEAP_S: Final = 1.0
_AROUND_LEAPS_S: Final = 1.0
_BETWEEN_LEAPS_S: Final = 0.02
_UNTIL_QUIET_S: Final = 0.5
#: Between two tries to hand a partition over.
_BETWEEN_TRIES_NS: Final = 50_000_000

_APP_MODULE: Final = "actorgrid_test_grid_app"
_PACKAGE: Final = str(Path(actorgrid.__file__).parent)


class StuckError(AssertionError):
    """Something that was waited for did not happen within its virtual time. Says what waits, and where."""


class Running(Generic[T]):
    """A scenario that was started with `TestGrid.start`."""

    def __init__(self, test_grid: TestGrid, scenario: Scenario[T]) -> None:
        self._test_grid = test_grid
        self._scenario = scenario
        self._task: asyncio.Task[T] | None = None
        self._was_asked = False

    @property
    def is_over(self) -> bool:
        """Whether it has returned or raised."""
        return self._task is not None and self._task.done()

    def result(self, timeout_s: float = SCENARIO_TIMEOUT_S) -> T:
        """Let virtual time pass until it is over; what it returned. What it raised is raised here.

        :raises StuckError: it is not over after `timeout_s` virtual seconds
        :raises SimulationError: it is, and something else went wrong that nobody would have heard of, such as a task that raised
        """
        self._was_asked = True
        self._test_grid._run_until(lambda: self.is_over, timeout_s, f"{_name_of(self._scenario)} is over", self)
        assert self._task is not None
        if self._task.cancelled():
            raise asyncio.CancelledError(f"{_name_of(self._scenario)} was cancelled")
        result = self._task.result()
        self._test_grid.cluster.check()
        return result

    def _start(self, process: Process, client: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        async def main() -> T:
            awaitable = self._scenario(await client())
            if not inspect.isawaitable(awaitable):
                raise TypeError(
                    f"{_name_of(self._scenario)} returned {awaitable!r:.80}: a scenario is an `async def` that takes the client"
                )
            return await awaitable

        def begin() -> None:
            self._task = process.loop.create_task(main(), name=_name_of(self._scenario))
            self._task.add_done_callback(_look_at_error)

        process.loop.call_soon(begin)


class TestGrid:
    """A grid inside a test, on virtual time: no process, no thread, no socket, no file.

    What runs is the real thing from the client to the log; clock, event loop, network and disk are simulated. The same seed and the same
    test give the same run. Use it as a context manager, from plain ``def`` tests; only one at a time in a process.

    :param app: actor classes, also ones that are defined in the test, or modules with actor classes
    :param hosts: 1, or 3 for tests in which hosts are lost or actors move; at most `HOST_COUNT_MAX`
    :param seed: decides everything that is left to chance: which of several things that may happen first does
    :ivar cluster: the simulation below, for what is not here: see `SimCluster`
    :raises SettingsError: the app is not fit to be served; everything found is named
    """

    __test__ = False  # its name makes pytest look for tests in it

    def __init__(
        self,
        *app: type | types.ModuleType,
        hosts: int = 1,
        seed: int = 1,
        settings: HostSettings | None = None,
        client_settings: ClientSettings | None = None,
    ) -> None:
        if isinstance(hosts, bool) or not isinstance(hosts, int) or not 1 <= hosts <= HOST_COUNT_MAX:
            raise ValueError(f"hosts={hosts!r}: expected 1..{HOST_COUNT_MAX}")
        found = _types_in(app)
        ActorRegistry(found)  # here, and not when the hosts start: what is wrong is raised where the test says it
        self._app = types.ModuleType(_APP_MODULE)
        for number, actor_type in enumerate(found):
            setattr(self._app, f"actor_{number}", actor_type.cls)
        self.cluster = SimCluster(
            seed,
            [self._app],
            hosts=hosts,
            partitions=PARTITION_COUNT,
            replicas=min(hosts, REPLICA_SET_SIZE),
            settings=settings,
            client_settings=client_settings,
        )
        self._world: World = self.cluster.world
        self._scenarios: list[Running[Any]] = []
        self._is_open = False
        self._undo = contextlib.ExitStack()

    # -- life

    def __enter__(self) -> Self:
        _refuse_running_loop()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.cluster)  # first, since it refuses a second one
            sys.modules[_APP_MODULE] = self._app
            undo.callback(sys.modules.pop, _APP_MODULE)
            logging.getLogger("actorgrid").propagate = True  # to pytest's captured log; the cluster puts it back
            self.cluster.begin()
            self._client = self.cluster.client()
            self._is_open = True
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        try:
            if kind is None:
                self._raise_unheard()
        finally:
            self._is_open = False
            self._undo.close()

    def _raise_unheard(self) -> None:
        for scenario in self._scenarios:
            if scenario.is_over and not scenario._was_asked:
                scenario.result()
        self.cluster.check()

    # -- calls

    def run(self, scenario: Scenario[T], *, timeout_s: float = SCENARIO_TIMEOUT_S) -> T:
        """Run `scenario(client)` to its end; what it returns. What it raises is raised here.

        All scenarios of a grid have the same client, in a process of its own.

        :raises StuckError: it is not over after `timeout_s` virtual seconds
        """
        return self.start(scenario).result(timeout_s)

    def start(self, scenario: Scenario[T]) -> Running[T]:
        """Begin `scenario(client)` and return at once: it goes on whenever virtual time passes, in `advance` for example.

        What it raises is raised by `Running.result`, or at the end of the ``with`` block if nobody asked.
        """
        self._check_usable()
        given: Any = scenario
        if not callable(given):
            if inspect.iscoroutine(given):
                given.close()
            raise TypeError(f"expected an `async def` function that takes the client, got {given!r:.80}; pass the function, do not call it")
        running = Running(self, scenario)
        self._scenarios = [each for each in self._scenarios if not (each.is_over and each._was_asked)]
        self._scenarios.append(running)
        running._start(self._client.process, self._client.opened)
        return running

    def call(self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], actor_id: str, *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one call and wait for its answer: ``test_grid.call(Account.deposit, "alice", 5)``.

        :raises ActorGridError: as the client's `call`
        """

        async def calling(client: Client) -> R:
            return await client.call(method, actor_id, *args, **kwargs)

        return self.run(calling)

    # -- time

    @property
    def now_s(self) -> float:
        """Virtual seconds since the simulation began."""
        return self.cluster.now_s

    def advance(self, seconds: float) -> None:
        """Let virtual time pass. Cheap while neither a scenario nor a turn nor a task of an actor is under way.

        :raises SimulationError: something went wrong that nobody would have heard of, such as a task that raised
        """
        self._check_usable()
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): time goes forward only")
        end_ns = self._world.now_ns + int(seconds * SECOND_NS)
        leap_ns = int((_LEAP_ALONE_S if len(self.cluster.hosts) == 1 else _LEAP_S) * SECOND_NS)
        around_ns = int(_AROUND_LEAPS_S * SECOND_NS)
        self._pass(min(around_ns, end_ns - self._world.now_ns))
        while (left_ns := end_ns - around_ns - self._world.now_ns) > 0:
            if self._is_at_rest() and self._comes_to_be_quiet():
                self._world.leap(min(leap_ns, left_ns))
                self._pass(min(int(_BETWEEN_LEAPS_S * SECOND_NS), end_ns - self._world.now_ns))
            else:
                self._pass(min(around_ns, left_ns))
        self._pass(end_ns - self._world.now_ns)

    def run_until(self, is_so: Callable[[], bool], timeout_s: float = GRID_TIMEOUT_S) -> None:
        """Let virtual time pass until `is_so()`, which is asked after everything that happens: to stop in the middle of a turn, say.

        :raises StuckError: it is not so within `timeout_s` virtual seconds
        """
        self._run_until(is_so, timeout_s, f"{_name_of(is_so)} is true")

    # -- where actors are

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of all hosts, up or not: ``host-1``, ..."""
        return tuple(self.cluster.hosts)

    def host_of(self, actor: type, actor_id: str) -> str:
        """The host that serves the actor; if none does at the moment, time passes until one does.

        :raises StuckError: none does within a minute of virtual time
        """
        partition, address = self._partition_of(actor, actor_id)
        self._run_until(lambda: partition in self.cluster.primaries(), GRID_TIMEOUT_S, f"a host serves {show_address(address)}")
        return self.cluster.primaries()[partition]

    def is_active(self, actor: type, actor_id: str) -> bool:
        """Whether the actor is in memory, at the host that serves it."""
        self._check_usable()
        partition, address = self._partition_of(actor, actor_id)
        served_by = self.cluster.primaries().get(partition)
        return any(host == served_by for host, _, _ in self._activations(partition, address))

    # -- what may happen to them

    def deactivate(self, actor: type, actor_id: str) -> None:
        """Take the actor out of memory, as the grid does with idle ones: the next call reads its state back from storage.

        What is not persisted is gone then. ``on_deactivate`` runs. An actor that is not in memory stays where it is.

        :raises StuckError: a turn of it does not end
        """
        partition, address = self._partition_of(actor, actor_id)
        what = f"{show_address(address)} can leave memory"
        self._check_usable()
        while active := self._activations(partition, address):
            self._let_go(active, what)

    def _let_go(self, active: list[tuple[str, HostedPartition, Activation]], what: str) -> None:
        activations = [activation for _, _, activation in active]
        self._run_until(lambda: all(each.dead or each.droppable for each in activations), GRID_TIMEOUT_S, what)
        for host, hosted, activation in active:
            process = self.cluster.hosts[host].process
            if process is not None:
                process.loop.call_soon(hosted.deactivate, activation)
        # An actor that is called in this very moment stays, and is asked again.
        self._run_until(lambda: all(each.dead or (each.ready and not each.droppable) for each in activations), GRID_TIMEOUT_S, what)

    def fail_over(self, actor: type, actor_id: str) -> str:
        """Kill the host that serves the actor, in the middle of whatever it does, and wait until another serves it.

        The host is started again then, with its disk. A grid of one or two hosts cannot do without it: it serves again when that is back.
        Where another host has not got over the last loss yet, time passes first until it has.

        :returns: the host that serves the actor now
        """
        partition, address = self._partition_of(actor, actor_id)
        before = self.host_of(actor, actor_id)
        can_be_spared = len(self.hosts) > 2
        if can_be_spared:
            what = f"the grid can do without {before}"
            self._run_until(lambda: self._can_spare(self.cluster.primaries().get(partition, "")), GRID_TIMEOUT_S, what)
            before = self.host_of(actor, actor_id)
        self.crash(before)
        if can_be_spared:
            what = f"another host than {before} serves {show_address(address)}"
            self._run_until(lambda: self.cluster.primaries().get(partition, before) != before, GRID_TIMEOUT_S, what)
        self.cluster.hosts[before].start()
        return self.host_of(actor, actor_id)

    def crash(self, host: str) -> None:
        """Kill the process of `host`, and leave it dead. Its disk stays. Time does not pass."""
        self._check_usable()
        self._check_host(host)
        self.cluster.hosts[host].is_wanted = False
        self.cluster.hosts[host].kill()

    def restart(self, host: str) -> None:
        """Start a process of `host`, after killing one that runs, and wait until it listens.

        :raises StuckError: it does not
        """
        self.crash(host)
        self.cluster.hosts[host].start()
        self._run_until(lambda: self.cluster.hosts[host].host is not None, GRID_TIMEOUT_S, f"{host} is up")

    def move(self, actor: type, actor_id: str, to: str | None = None) -> str:
        """Let another host serve the actor, and the others of its partition, in an orderly way: turns end first, callers notice nothing.

        :param to: the host; default: any that can
        :returns: the host that serves it now
        :raises StuckError: none takes it, since a turn of it takes too long for example
        """
        partition, address = self._partition_of(actor, actor_id)
        before = self.host_of(actor, actor_id)
        if to is not None:
            self._check_host(to)
        if to == before:
            return before
        if len(self.hosts) == 1:
            raise ValueError("this grid has one host: use TestGrid(..., hosts=3) to move actors")
        what = f"{to or 'another host'} serves {show_address(address)}"
        timeout_ns = self._world.now_ns + int(GRID_TIMEOUT_S * SECOND_NS)
        while (serving := self.host_of(actor, actor_id)) == before or to not in (None, serving):
            if self._world.now_ns > timeout_ns:
                raise self._stuck(f"not within {GRID_TIMEOUT_S:g} virtual seconds: {what}", None)
            self._hand_over(partition, serving, to, what)
        return serving

    def _hand_over(self, partition: int, serving: str, to: str | None, what: str) -> None:
        """Ask `serving` once to hand the partition over, and wait until it has or cannot."""
        host = self.cluster.hosts[serving]
        assert host.host is not None
        assert host.process is not None
        process, hosted = host.process, host.host.partitions[partition]
        tried: list[bool] = []

        async def handing_over() -> None:
            member = hosted.best_successor() if to is None else hosted.replica.configuration.on_host(to)
            tried.append(member is not None and hosted.shell.may_lead(member) and await hosted.hand_over(member))

        process.start(handing_over)
        self._run_until(lambda: bool(tried) or process.is_over, GRID_TIMEOUT_S, what)
        self._pass(_BETWEEN_TRIES_NS)

    @contextlib.contextmanager
    def slow_network(self, latency_s: float, jitter_s: float = 0.0) -> Iterator[None]:
        """In this block everything that is sent takes `latency_s` and up to `jitter_s` more, one way."""
        self._check_usable()
        network = self.cluster.network
        before, network.traffic = network.traffic, Traffic(latency_s=latency_s, jitter_s=jitter_s)
        try:
            yield
        finally:
            network.traffic = before

    @contextlib.contextmanager
    def isolated(self, host: str) -> Iterator[None]:
        """In this block `host` is cut off from everybody, callers too: what it sends and what is sent to it waits."""
        self._check_usable()
        self._check_host(host)
        network = self.cluster.network
        links = [link for other in network.address_of if other != host for link in ((host, other), (other, host))]
        cut = [link for link in links if link not in network.cut]
        for link in cut:
            network.cut_link(*link)
        try:
            yield
        finally:
            for link in cut:
                network.heal_link(*link)

    def set_date_offset(self, seconds: float, host: str | None = None) -> None:
        """Let the wall clock of `host`, or of all hosts, be wrong by so much. Restarts keep it."""
        self._check_usable()
        if host is not None:
            self._check_host(host)
        for each in self.cluster.hosts.values() if host is None else [self.cluster.hosts[host]]:
            each.date_offset_ns = int(seconds * SECOND_NS)
            if each.process is not None:
                each.process.loop.date_offset_ns = each.date_offset_ns

    # -- inside

    def _check_usable(self) -> None:
        if not self._is_open:
            raise RuntimeError("the grid is not open: use it in `with TestGrid(...) as test_grid:`")
        if self._world.running is not None:
            raise RuntimeError(
                "called by a scenario or an actor, while virtual time passes: in a scenario use the client and await; what is to happen "
                "meanwhile comes from the test itself, between `running = test_grid.start(scenario)` and `running.result()`"
            )
        _refuse_running_loop()

    def _check_host(self, host: str) -> None:
        if host not in self.cluster.hosts:
            raise ValueError(f"there is no host {host!r}; there are {', '.join(self.hosts)}")

    @staticmethod
    def _partition_of(actor: type, actor_id: str) -> tuple[int, str]:
        address = make_address(actor_type_of(actor).name, actor_id)
        return partition_of(address, PARTITION_COUNT), address

    def _activations(self, partition: int, address: str) -> list[tuple[str, HostedPartition, Activation]]:
        found = []
        for name, host in self.cluster.hosts.items():
            hosted = host.host.partitions.get(partition) if host.host is not None else None
            activation = hosted.activations.get(address) if hosted is not None else None
            if hosted is not None and activation is not None and not activation.dead:
                found.append((name, hosted, activation))
        return found

    def _can_spare(self, host: str) -> bool:
        """Whether every partition has a write quorum without `host`, of replicas that have everything."""
        primaries = self.cluster.primaries()
        if len(primaries) <= PARTITION_COUNT:
            return False
        for partition, name in primaries.items():
            primary = self.cluster.hosts[name].host
            assert primary is not None
            core = primary.partitions[partition].replica
            ready = [
                member
                for member in core.configuration.voters
                if member.host != host
                and (member.host == name or ((it := core.progress.get(member)) is not None and core.is_caught_up(it)))
            ]
            if len(ready) < core.configuration.write_quorum:
                return False
        return True

    def _pass(self, duration_ns: int) -> None:
        self._world.run_until(self._world.now_ns + duration_ns)
        self.cluster.check()

    def _run_until(self, is_so: Callable[[], bool], timeout_s: float, what: str, waiting: Running[Any] | None = None) -> None:
        self._check_usable()
        world = self._world
        events_max = world.events + EVENTS_MAX
        if not is_so():
            world.run_until(world.now_ns + int(timeout_s * SECOND_NS), lambda: is_so() or world.events > events_max)
        if not is_so():
            self.cluster.check()
            busy = world.events > events_max
            how = f"after {EVENTS_MAX:,} events (something polls without a pause)" if busy else f"within {timeout_s:g} virtual seconds"
            raise self._stuck(f"not {how}: {what}", waiting)
        if waiting is None:
            self.cluster.check()

    def _stuck(self, what: str, waiting: Running[Any] | None) -> StuckError:
        lines = [what, f"seed {self._world.seed}, virtual time {self.now_s:.3f} s"]
        scenarios = [waiting] if waiting is not None else [each for each in self._scenarios if not each.is_over]
        for scenario in scenarios:
            if scenario._task is not None:
                lines += [f"{_name_of(scenario._scenario)} waits at", *_where(scenario._task.get_coro())]
        for name, host in self.cluster.hosts.items():
            if host.host is None or host.process is None:
                lines.append(f"{name} is down")
                continue
            for turn, since_ns in host.host.runner.suspended.items():
                waits_s = (host.process.loop.local_ns - since_ns) / 1e9
                method = turn.method.qualified_name
                lines.append(f"a turn on {name}, {method} of {show_address(turn.activation.address)}, waits since {waits_s:.3f} s at")
                coroutine = turn.task.get_coro() if turn.task is not None else None
                frame = getattr(coroutine, "cr_frame", None)
                lines += _where(frame.f_locals.get("coroutine") if frame is not None else None)
        return StuckError("\n".join(lines))

    # -- leaps

    def _is_at_rest(self) -> bool:
        """Whether all that goes on is the grid's own housekeeping: nothing of the test's or an actor's runs, or waits for its time."""
        if any(not scenario.is_over for scenario in self._scenarios):
            return False
        if any(host.host is not None and host.host.runner.admitted for host in self.cluster.hosts.values()):
            return False
        loops = [host.process.loop for host in self.cluster.hosts.values() if host.process is not None]
        return not any(map(_has_own_work, [self._client.process.loop, *loops]))

    def _comes_to_be_quiet(self) -> bool:
        """Let a little time pass until nothing is on its way: all that is left are timers."""

        def is_quiet() -> bool:
            return all(isinstance(getattr(callback, "__self__", None), SimLoop) for callback in self._world.due())

        return self._world.run_until(self._world.now_ns + int(_UNTIL_QUIET_S * SECOND_NS), is_quiet)


def _has_own_work(loop: SimLoop) -> bool:
    """Whether a task or timer of `loop` comes from outside of the grid."""
    for task in loop.tasks_left():
        coroutine = task.get_coro()
        code = getattr(coroutine, "cr_code", None)
        is_ours = code.co_filename.startswith(_PACKAGE) if code is not None else _is_compiled_of_ours(coroutine)
        if not is_ours:
            return True
    for timer in loop.timers_left():
        callback: Any = timer._callback  # type: ignore[attr-defined]
        module = getattr(callback, "__module__", None) or ""
        is_sleep = getattr(callback, "__qualname__", "") in ("_set_result_unless_cancelled", "Timeout._on_timeout")
        if not (module.startswith("actorgrid.") or is_sleep or _is_compiled_of_ours(getattr(callback, "__self__", None))):
            return True
    return False


def _is_compiled_of_ours(thing: object) -> bool:
    """Whether `thing` is an object of a compiled module of the package: those tell little more of themselves than their type."""
    return type(thing).__module__.startswith("actorgrid.")


def _types_in(app: tuple[type | types.ModuleType, ...]) -> list[ActorType]:
    """The actor types that a test names.

    :raises SettingsError: there are none
    :raises InvalidArgumentError: a class is no actor
    """
    found: list[ActorType] = []
    for each in app:
        if isinstance(each, types.ModuleType):
            in_module = [actor_type_of(value) for value in vars(each).values() if is_actor(value)]
            if not in_module:
                raise SettingsError(f"module {each.__name__!r} has no actor: no class in it is decorated with @grid.actor")
            found += in_module
        elif isinstance(each, type):
            found.append(actor_type_of(each))
        else:
            raise TypeError(f"TestGrid: expected actor classes or modules, got {each!r:.80}")
    if not found:
        raise SettingsError("TestGrid: no actor is given: name classes or modules, as in TestGrid(Account)")
    return list({id(actor_type): actor_type for actor_type in found}.values())


def _refuse_running_loop() -> None:
    running = asyncio._get_running_loop()
    if running is not None and not isinstance(running, SimLoop):
        raise RuntimeError(
            "an event loop runs here: a TestGrid has loops of its own, on virtual time. Use it from a plain `def` test, "
            "and put what awaits into a scenario: `async def scenario(client): ...`, `test_grid.run(scenario)`"
        )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))


def _look_at_error(task: asyncio.Task[Any]) -> None:
    """It is raised by whoever asks for the result, or by the end of the block: asyncio needs not tell of it."""
    if not task.cancelled():
        task.exception()


def _where(awaited: Any) -> list[str]:
    """Lines that say where a coroutine waits, outermost first; what the grid does itself is left out."""
    lines = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
            lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return lines or ["  (none of its own code: the answer of a call, for example)"]
