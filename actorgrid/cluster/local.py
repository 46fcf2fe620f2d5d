"""A grid on this machine: one Ray and N hosts that count as N nodes, or a host on each node of a Ray that runs already.

`up`, `down`, and `LocalGrid` for tests, demos and benches.

The calling process never imports Ray: all of that is in the keeper, a process of its own (`actorgrid.cluster.keeper`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import msgspec

from actorgrid import __version__
from actorgrid.client.map import PartitionMap
from actorgrid.cluster import grid_file, keeper, processes
from actorgrid.cluster.grid_file import GridFile, HostEntry, Wish
from actorgrid.cluster.processes import ProcessMark
from actorgrid.cluster.report import OK, Answers, Report, ask_all, build_report, read_digests, show_numbers, unserved
from actorgrid.errors import ActorGridError, SettingsError, from_wire
from actorgrid.settings import HostSettings
from actorgrid.wire.messages import HostInfo

START_TIMEOUT_S = 90.0
#: What an orderly end gets before everything is killed: the hosts' own time, and some for Ray.
DOWN_TIMEOUT_S = keeper.HOSTS_STOP_S + 7.0
LOG_LINES_SHOWN = 12
ASK_AGAIN_S = 0.02
#: Once every host answers: elections on old data take 1.5 s (promises of the last life run out) and a little; a filled disk some more.
PRIMARIES_WAIT_S = 15.0

#: Of one round of questions to all hosts.
REPORT_TIMEOUT_S = 1.5

_HOSTS_GO_ON = "hosts may go on at their Ray cluster: `actorgrid up` takes them over, and then `down` ends them"

T = TypeVar("T")
Progress = Callable[[str], None]

#: Keepers that this process started, by pid: a child must be waited for by its parent, else it stays as a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


class StartFailedError(ActorGridError):
    """The grid did not come up; nothing of it runs any more. The message says which host failed, why, and where its log is."""


class NotRunningError(ActorGridError):
    """No grid runs in the directory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A grid that serves.

    :ivar troubles: what a person should know of it: partitions that do not serve and why, fewer replicas than wanted
    """

    data: Path
    grid: GridFile
    is_new: bool
    keeper: ProcessMark
    seconds: float
    troubles: tuple[str, ...] = ()


def up(
    data: Path,
    wish: Wish,
    *,
    settings: HostSettings | None = None,
    timeout_s: float = START_TIMEOUT_S,
    progress: Progress = lambda _text: None,
) -> Started:
    """Start the grid in `data`, new or as it is there, and return when every host and every partition serves.

    A partition that has no write quorum, because data were lost, does not hold it up for ever: see `Started.troubles`.

    :param data: the grid's directory; created if it does not exist
    :param wish: numbers, ports and app
    :param settings: of the hosts; default: from ``ACTORGRID_*`` variables
    :param timeout_s: seconds until a start that hangs is given up
    :param progress: called with a few words at each step
    :raises DirectoryRefusedError: the directory is in use, or holds something else; nothing was changed
    :raises SettingsError: a number, a port or the app is wrong; nothing runs
    :raises StartFailedError: it did not come up for another reason; nothing runs
    """
    began = time.monotonic()
    data = data.absolute()
    host_settings = settings or HostSettings.from_environment()
    grid_file.make_directory(data)
    with grid_file.lock(data) as descriptor:
        _end_leftovers(data)
        grid, is_new = grid_file.open_grid(data, wish, version=__version__)
        before = None if is_new else (data / grid_file.GRID_FILE).read_bytes()
        grid_file.write_grid(data, grid)
        progress("starting Ray")
        order = keeper.KeeperOrder(
            data=str(data),
            grid=grid,
            settings=dataclasses.asdict(host_settings),
            lock_descriptor=descriptor,
            start_timeout_s=timeout_s,
            cpus=os.cpu_count() or 1,
            nodes_min=wish.nodes or 1,
            first_port=wish.port,
        )
        process = _start_keeper(data, order)
        mark = ProcessMark.of(process.pid)
        try:
            if mark is None:
                raise StartFailedError(f"the keeper process ended at once\n{_tail(_keeper_log(data))}")
            last = _follow(process, data, timeout_s, progress)
            errors = [(name, from_wire(*error)) for name, error in last.errors]
            grid = grid_file.read_grid(data) or grid  # the keeper may have seen hosts, and begun it
            if not errors:
                progress("waiting for partitions")
                troubles = _run(_wait_until_served(grid, began + timeout_s, last.hosts))
                absent = [host for host in grid.hosts if host.name not in last.hosts]
                troubles += tuple(f"{host.name} is not started: Ray has no node {host.node} for it now" for host in absent)
                _children[process.pid] = process
                return Started(data=data, grid=grid, is_new=is_new, keeper=mark, seconds=time.monotonic() - began, troubles=troubles)
        except BaseException:
            _end_start(data, process, mark)
            _restore(data, before)
            grid = grid_file.read_grid(data) or grid
            if is_new and not any((data / host.data_dir).exists() for host in grid.hosts):
                _forget_new_grid(data, grid)
            raise
        _end_start(data, process, mark)
        _restore(data, before)
        error = _start_error(data, grid, errors)
        if is_new and {name for name, _ in errors} >= {host.name for host in grid.hosts}:
            _forget_new_grid(data, grid)
        raise error


def _start_keeper(data: Path, order: keeper.KeeperOrder) -> subprocess.Popen[bytes]:
    log_path = _keeper_log(data)
    work = log_path.parent / "work"  # with nothing in it
    work.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(  # our own interpreter and module
            # -P: a `ray.py` in the user's directory must not shadow Ray. Nor anything else there, which is why the keeper works elsewhere:
            # Ray puts the directory its driver works in before all others in its workers.
            [sys.executable, "-P", "-m", "actorgrid.cluster.keeper"],
            cwd=work,
            env={**os.environ, **_absolute_python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,
            pass_fds=(order.lock_descriptor,),
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(msgspec.json.encode(order))
    return process


def _absolute_python_path() -> dict[str, str]:
    """PYTHONPATH as the caller means it, for processes that work in another directory."""
    entries = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in entries.split(os.pathsep))} if entries else {}


def _follow(process: subprocess.Popen[bytes], data: Path, timeout_s: float, progress: Progress) -> keeper.Step:
    """Read the keeper's steps to the end; the last one, which says what runs or what failed."""
    assert process.stdout is not None
    words = {"ray": "starting hosts", "hosts": "waiting for hosts", "begin": "creating the first replicas"}
    # The keeper bounds its own waits; this bounds a keeper that hangs in Ray.
    alarm = threading.Timer(timeout_s + 15.0, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        for step in _steps(process.stdout):
            if step.step in words:
                progress(words[step.step])
            elif step.step in ("started", "failed"):
                return step
    finally:
        alarm.cancel()
        process.stdout.close()
    raise StartFailedError(f"the keeper process ended before the grid was up\n{_tail(_keeper_log(data))}")


def _steps(stream: IO[bytes]) -> Iterator[keeper.Step]:
    for line in stream:
        yield msgspec.json.decode(line, type=keeper.Step)


def _end_start(data: Path, process: subprocess.Popen[bytes], mark: ProcessMark | None) -> None:
    """After a failed start: let the keeper clean up, then make sure."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(DOWN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
    if mark is not None:
        processes.end_session(mark)
    process.wait()
    running = grid_file.read_running(data)
    if running is not None:
        _remove_ray_dir(running)
        grid_file.remove_running(data)


def _start_error(data: Path, grid: GridFile, errors: list[tuple[str, ActorGridError]]) -> ActorGridError:
    """One error for what may have been the same on every host."""
    by_text: dict[str, list[str]] = {}
    for name, error in errors:
        by_text.setdefault(str(error), []).append(name)
    if all(isinstance(error, SettingsError) for _, error in errors):
        return SettingsError(
            *dict.fromkeys(problem for _, error in errors if isinstance(error, SettingsError) for problem in error.problems)
        )
    lines = []
    for text, names in by_text.items():
        lines.append(f"{', '.join(name for name in names if name) or 'the grid'}: {text}")
        entry = next((host for host in grid.hosts if host.name == names[0]), None)
        log_path = data / entry.data_dir / grid_file.HOST_LOG_FILE if entry else _keeper_log(data)
        lines.append(f"last lines of {log_path}:\n{_tail(log_path)}")
    return StartFailedError("\n".join(lines))


def _restore(data: Path, grid: bytes | None) -> None:
    """A start that failed leaves a grid as it was: its app and ports are those of the last start that worked."""
    if grid is None:
        return
    now, before = grid_file.read_grid(data), msgspec.json.decode(grid, type=GridFile)
    # What was begun stays begun.
    grid_file.write_grid(data, msgspec.structs.replace(before, begun=before.begun or (now is not None and now.begun)))


def _forget_new_grid(data: Path, grid: GridFile) -> None:
    """No host of a new grid ever served: leave the directory as if `up` had not been called, so that other numbers may be chosen."""
    (data / grid_file.GRID_FILE).unlink(missing_ok=True)
    for host in grid.hosts:
        shutil.rmtree(data / host.data_dir, ignore_errors=True)


def _end_leftovers(data: Path) -> None:
    """End what an earlier keeper that died left behind. The lock is ours, so no grid runs here."""
    running = grid_file.read_running(data)
    if running is None:
        return
    left = processes.end_session(running.keeper)
    _reap(running.keeper.pid)
    if left:
        raise StartFailedError(f"processes of the last run in {data} do not end: {', '.join(left)}")
    _remove_ray_dir(running)
    grid_file.remove_running(data)


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def _remove_ray_dir(running: grid_file.RunningFile) -> None:
    path = Path(running.ray_dir)
    if path.parent == Path(keeper.RAY_DIR_PARENT) and path.name.startswith(
        keeper.RAY_DIR_PREFIX
    ):  # never another directory, whatever the file says
        shutil.rmtree(path, ignore_errors=True)


def down(data: Path, *, timeout_s: float = DOWN_TIMEOUT_S) -> float:
    """End the grid of `data` in order: running turns finish for a short while, then every process of it ends.

    :param timeout_s: seconds until all that is left is killed, which loses nothing either
    :returns: the seconds it took
    :raises NotRunningError: no grid runs there, nor is anything left of one
    :raises StartFailedError: some process would not end, or hosts on a Ray cluster have outlived their keeper
    """
    began = time.monotonic()
    data = data.absolute()
    running = grid_file.read_running(data)
    if running is None:
        if data.is_dir() and grid_file.is_locked(data):
            raise NotRunningError(f"the grid in {data} is being started or stopped by another command; try again")
        raise NotRunningError(f"no grid runs in {data}")
    grid = grid_file.read_grid(data)
    is_on_other_ray = grid is not None and bool(grid.ray_address)
    has_ended = True
    if running.keeper.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.keeper.pid, signal.SIGTERM)
        has_ended = processes.wait_for_end([running.keeper], timeout_s)
    elif not processes.session_members(running.keeper):
        _reap(running.keeper.pid)
        _remove_ray_dir(running)
        if is_on_other_ray:
            raise StartFailedError(f"the keeper of {data} has ended without `down`; {_HOSTS_GO_ON}")
        grid_file.remove_running(data)
        raise NotRunningError(f"no grid runs in {data}; the last one ended without `down`")
    left = processes.end_session(running.keeper)
    _reap(running.keeper.pid)
    _remove_ray_dir(running)
    if left:
        raise StartFailedError(f"processes that would not end: {', '.join(left)}")
    if is_on_other_ray and not has_ended:
        raise StartFailedError(f"the keeper of {data} was killed after {timeout_s:g} s, before it had ended all hosts; {_HOSTS_GO_ON}")
    grid_file.remove_running(data)
    return time.monotonic() - began


async def _wait_until_served(grid: GridFile, deadline: float, started: Sequence[str]) -> tuple[str, ...]:
    """Wait until every host that was `started` answers and every partition has a primary that serves; what is not as it should be then.

    :raises StartFailedError: a host did not answer before `deadline` (monotonic seconds)
    """
    await _wait_until_answered(grid, deadline, [host for host in grid.hosts if host.name in started])
    deadline = min(time.monotonic() + PRIMARIES_WAIT_S, max(deadline, time.monotonic() + 1.0))
    while True:
        asked_at = time.monotonic()
        waiting = unserved(await grid_report(grid))
        if not waiting or time.monotonic() > deadline:
            break
        # Of many partitions the question itself is work for hosts that have enough to do.
        await asyncio.sleep(max(ASK_AGAIN_S, 2 * (time.monotonic() - asked_at)))
    by_why: dict[str, list[int]] = {}
    for partition in waiting:
        by_why.setdefault(f"{partition['health']}: {partition['why']}", []).append(partition["id"])
    troubles = [f"no calls to partitions {show_numbers(numbers)}: {why}" for why, numbers in by_why.items()]
    if grid.shortage:
        troubles.append(f"under-replicated: {grid.shortage}")
    return tuple(troubles)


async def grid_report(grid: GridFile, *, timeout_s: float = REPORT_TIMEOUT_S) -> Report:
    """What the hosts of `grid` say of it now, as ``actorgrid status --json`` shows it."""
    hosts = host_infos(grid)
    partition_map = PartitionMap(0, grid.cluster_id, hosts, (-1,) * grid.partition_count)
    answers = await ask_all(hosts, "status", cluster_id=grid.cluster_id, timeout_s=timeout_s)
    return build_report(partition_map, answers, {each.name: each.node for each in grid.hosts})


def host_infos(grid: GridFile) -> tuple[HostInfo, ...]:
    """Where each host of `grid` is reached."""
    return tuple(HostInfo(each.name, each.address, each.port) for each in grid.hosts)


async def _wait_until_answered(grid: GridFile, deadline: float, hosts: list[HostEntry]) -> None:
    """Ask each of `hosts` for its status until it answers.

    :raises StartFailedError: one did not before `deadline` (monotonic seconds)
    """
    left_s = max(1.0, deadline - time.monotonic())
    waiting = {host.name: HostInfo(host.name, host.address, host.port) for host in hosts}
    reasons: Answers = {}
    try:
        async with asyncio.timeout(left_s):
            while waiting:
                reasons = await ask_all(waiting.values(), "status", cluster_id=grid.cluster_id, timeout_s=REPORT_TIMEOUT_S)
                waiting = {name: info for name, info in waiting.items() if isinstance(reasons[name], ActorGridError)}
                if waiting:
                    await asyncio.sleep(ASK_AGAIN_S)
    except TimeoutError:
        why = "; ".join(f"{name}: {reasons.get(name, 'not asked yet')}" for name in waiting)
        raise StartFailedError(f"not all hosts answer within {left_s:.0f} s: {why}") from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, also when the caller is itself inside an event loop."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work)).result()


def _keeper_log(data: Path) -> Path:
    return data / grid_file.KEEPER_DIRECTORY / keeper.LOG_FILE


def _tail(path: Path, lines: int = LOG_LINES_SHOWN) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


class LocalGrid:
    """A local grid for the length of a ``with`` block: for tests, demos and benches.

    ::

        with LocalGrid(nodes=3, app=["bank"], app_path=[here], data=tmp) as g:
            async with grid.connect(g.address) as client: ...
            g.kill_host("host-2")          # SIGKILL; Ray starts it again with the same data

    :param nodes: hosts, each of which counts as a node; None: as the grid in `data` has it, or 3
    :param app: actor modules
    :param app_path: directories put in front of ``sys.path`` before they are imported
    :param data: the grid's directory, kept afterwards
    :param port: of the first host; 0: free ports, or those the grid in `data` had
    :param partitions: None: as the grid in `data` has it, or 64
    :param replicas: of each partition, as far as there are nodes; None: as the grid in `data` has it, or 3
    :param settings: of the hosts
    :param ray_address: control store of a Ray cluster that runs already; `nodes` is then how many of its nodes to wait for
    :param progress: called with a few words at each step of the start
    :raises SettingsError: on entering, as `up`
    """

    def __init__(
        self,
        *,
        nodes: int | None = None,
        app: Sequence[str],
        app_path: Sequence[str | os.PathLike[str]] = (),
        data: str | os.PathLike[str],
        port: int = 0,
        partitions: int | None = None,
        replicas: int | None = None,
        settings: HostSettings | None = None,
        ray_address: str | None = None,
        timeout_s: float = START_TIMEOUT_S,
        progress: Progress = lambda _text: None,
    ) -> None:
        self.data = Path(data).absolute()
        self._wish = Wish(
            nodes=nodes,
            partitions=partitions,
            replicas=replicas,
            port=port,
            app=tuple(app),
            app_path=tuple(str(Path(each).absolute()) for each in app_path),
            ray_address=ray_address,
        )
        self._settings = settings
        self._timeout_s = timeout_s
        self._progress = progress
        self._started: Started | None = None

    def start(self) -> None:
        """Start the grid, or start it again after `stop` or after it was ended by other means.

        :raises SettingsError: as `up`
        :raises StartFailedError: as `up`
        """
        wish = self._wish
        if wish.port == 0 and (self.data / grid_file.GRID_FILE).exists():
            wish = msgspec.structs.replace(wish, port=None)  # clients may hold the address
        self._started = up(self.data, wish, settings=self._settings, timeout_s=self._timeout_s, progress=self._progress)

    def stop(self) -> None:
        """End the grid, if it runs; its data stays."""
        with contextlib.suppress(NotRunningError):
            down(self.data)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def started(self) -> Started:
        """What `up` gave."""
        assert self._started is not None, "use LocalGrid in a with block"
        return self._started

    @property
    def hosts(self) -> tuple[HostEntry, ...]:
        """Every host with its name, address and port."""
        return self.started.grid.hosts

    @property
    def address(self) -> str:
        """All hosts, ``127.0.0.1:7400,127.0.0.1:7401,...``, as `grid.connect` takes them."""
        return self.started.grid.address

    def host_pids(self) -> dict[str, int]:
        """Process id of every host that has a process right now, by host name."""
        marks = {host.name: grid_file.read_host_mark(self.data, host) for host in self.hosts}
        return {name: mark.pid for name, mark in marks.items() if mark is not None}

    def kill_host(self, name: str, signal: signal.Signals = signal.SIGKILL) -> int:
        """Send `signal` to the process of host `name`; its pid.

        :raises NotRunningError: it has no process right now
        """
        entry = next(host for host in self.hosts if host.name == name)
        mark = grid_file.read_host_mark(self.data, entry)
        if mark is None:
            raise NotRunningError(f"{name} has no process right now")
        os.kill(mark.pid, signal)
        return mark.pid

    def lose_disk(self, name: str) -> int:
        """Kill the process of host `name` with SIGKILL and remove everything it had on disk, as if the machine had burnt; its pid.

        :raises NotRunningError: it has no process right now
        """
        directory = self.data / next(host for host in self.hosts if host.name == name).data_dir
        pid = self.kill_host(name)
        # Away in one step: Ray starts the next process soon, and that must find nothing or everything.
        lost = directory.with_name(f"{directory.name}.lost")
        directory.rename(lost)
        shutil.rmtree(lost)
        return pid

    def report(self) -> Report:
        """What the hosts say of the grid now, as ``actorgrid status --json`` shows it."""
        return _run(grid_report(self.started.grid))

    def read_digests(self, *, timeout_s: float = 60.0) -> dict[int, dict[str, str]]:
        """By partition and host: a digest of the state of every replica, once those of each partition have applied the same.

        :raises DeadlineExceededError: they did not within `timeout_s` seconds
        """
        grid = self.started.grid
        return _run(read_digests(host_infos(grid), cluster_id=grid.cluster_id, timeout_s=timeout_s))

    def wait_until_whole(self, *, timeout_s: float = 60.0) -> Report:
        """Return the report once every partition has all its replicas, voting and up to date.

        :raises StartFailedError: not within `timeout_s` seconds; the text says what is missing
        """
        deadline = time.monotonic() + timeout_s
        shortage = self.started.grid.shortage
        while True:
            found = self.report()
            ill = [each for each in (found["system_partition"], *found["partitions"]) if each["health"] != OK]
            if all(each["serving"] and each["why"] == shortage for each in ill):
                return found
            if time.monotonic() > deadline:
                whys = list(dict.fromkeys(f"{each['health']}: {each['why']}" for each in ill))
                raise StartFailedError(f"the grid is not whole after {timeout_s:g} s: {'; '.join(whys[:5])}")
            time.sleep(0.05)

    def wait_until_serving(self, name: str | None = None, *, timeout_s: float = 30.0) -> None:
        """Return when host `name`, or every host, answers.

        :raises StartFailedError: not within `timeout_s` seconds
        """
        hosts = [host for host in self.hosts if name in (None, host.name)]
        _run(_wait_until_answered(self.started.grid, time.monotonic() + timeout_s, hosts))
