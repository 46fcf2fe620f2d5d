"""The host as a Ray actor: a process that Ray starts, pins and restarts, around the same `Host` that runs without Ray in tests.

The `Host` runs in a thread of its own with an event loop of its own, which ``__init__`` starts: Ray re-runs nothing but
``__init__`` when it restarts an actor, and nothing can be awaited there. Ray's own loop stays free for the control methods,
which answer also while actor code blocks the host's loop.

How a host's life ends:

- a storage error ended its duty (I12), or its disk went back in time (I6): the process exits at once, so that the other hosts have
  proof of its end, and Ray starts a clean one. From the second time in a row on, that one waits before it tries;
- a start failed for a reason that may pass (a disk, a port): the process exits a little later, when that was told;
- the app or a setting is wrong: it stays, serves nothing, says why and looks now and then whether that was mended, since a
  restart alone would change nothing;
- `stop`: it leaves duty in order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import logging.handlers
import os
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from actorgrid.cluster import grid_file, ray_api
from actorgrid.cluster.supervision import RaySupervisor
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorError, ActorGridError, InvalidArgumentError, SettingsError, StorageError, to_wire
from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.host.huge_pages import HugePages
from actorgrid.host.offload import run_offloaded
from actorgrid.host.process import calm_garbage_collector, log_to
from actorgrid.host.reports import REPLICAS_UNLIMITED
from actorgrid.ids import HostName
from actorgrid.settings import HostSettings
from actorgrid.wire.messages import HostInfo

log = logging.getLogger(__name__)

#: Exit codes of the process, for people who read Ray's logs.
EXIT_DUTY_ENDED = 70
EXIT_START_FAILED = 71
EXIT_BUG = 72
#: A start that failed is repeated no faster, nor one after two failures in a row: a full disk does not empty itself in less, and `up`
#: must read the reason.
START_AGAIN_S = 3.0
FAILURES_AT_ONCE = 2
#: A restarted host whose port or module is away asks again so often, in the same process: a crash loop would help nobody.
MENDED_AGAIN_S = 5.0
LOG_BYTES_MAX = 16 << 20
LOG_FILES = 3
LOG_FORM = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"


class HostOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is to be, as plain data that Ray carries; the JSON form of `HostConfig`.

    :ivar listen: address to listen on; empty: `address`
    :ivar credentials: names of files, never what is in them; empty: none
    :ivar output: a file that gets a copy of the log, for example the standard output of who watches the host; empty: none
    """

    cluster_id: str
    name: str
    node: str
    zone: str = ""
    data_dir: str
    address: str
    port: int
    partition_count: int
    replica_set_size: int
    hosts: tuple[HostInfo, ...]
    app: tuple[str, ...]
    app_path: tuple[str, ...]
    settings: dict[str, float | int]
    labels: dict[str, str] = {}
    weight: float = 1.0
    replicas_max: int = REPLICAS_UNLIMITED
    listen: str = ""
    credentials: dict[str, str] = {}
    output: str = ""

    def config(self) -> HostConfig:
        """The same for `Host`."""
        return HostConfig(
            cluster_id=self.cluster_id,
            name=HostName(self.name),
            node=self.node,
            zone=self.zone,
            data_dir=Path(self.data_dir),
            address=self.address,
            port=self.port,
            partition_count=self.partition_count,
            replica_set_size=self.replica_set_size,
            hosts=self.hosts,
            app=self.app,
            app_path=self.app_path,
            settings=HostSettings(**self.settings),  # type: ignore[arg-type]  # HostSettings checks each value itself
            labels=self.labels,
            weight=self.weight,
            replicas_max=self.replicas_max,
            listen=self.listen,
            credentials=Credentials(**self.credentials) if self.credentials else None,
        )


def order_of(grid: grid_file.GridFile, host: grid_file.HostEntry, data: Path, settings: HostSettings) -> bytes:
    """The order for one host of a local grid."""
    return msgspec.json.encode(
        HostOrder(
            cluster_id=grid.cluster_id,
            name=host.name,
            node=host.node,
            data_dir=str(data / host.data_dir),
            address=host.address,
            port=host.port,
            partition_count=grid.partition_count,
            replica_set_size=grid.replica_set_size,
            hosts=tuple(HostInfo(name=each.name, address=each.address, port=each.port) for each in grid.hosts),
            app=grid.app,
            app_path=grid.app_path,
            settings=dataclasses.asdict(settings),
        )
    )


def is_same_order(one: bytes, other: bytes) -> bool:
    """Whether a host with the one order need not be started anew to have the other; which hosts there are it hears from the others."""
    first, second = (msgspec.structs.replace(msgspec.json.decode(each, type=HostOrder), hosts=(), output="") for each in (one, other))
    return first == second


class HostActor:
    """What Ray runs; see the module's text. Every method answers with plain data."""

    def __init__(self, order: bytes) -> None:
        self._order = msgspec.json.decode(order, type=HostOrder)
        self._directory = Path(self._order.data_dir)
        self._failures = 0
        self._started: concurrent.futures.Future[list[Any] | None] = concurrent.futures.Future()
        self._stopped: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._host: Host | None = None
        # Nothing may be raised here: Ray would take the actor for one that can never start.
        threading.Thread(target=self._run, name="actorgrid-host", daemon=True).start()

    async def wait_started(self) -> list[Any] | None:
        """None once the host serves; ``[error class, message, details]`` if it does not."""
        return await asyncio.wrap_future(self._started)

    async def describe(self) -> list[Any]:
        """The Ray node it runs on, the order it got, and whether it was stopped; for a keeper that finds the process."""
        _worker_id, node_id, _address = ray_api.own_worker()
        return [node_id, msgspec.json.encode(self._order), self._stop is not None and self._stop.is_set()]

    async def ping(self) -> int:
        """The process id: it runs, whatever its host's loop does."""
        return os.getpid()

    async def leave(self) -> None:
        """Let the rest of the grid do without it, for at most ``stop_grace_s``: see `Host.leave`. It goes on serving."""
        host, loop = self._host, self._loop
        if host is not None and loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(host.leave(), loop))

    async def stop(self) -> None:
        """Leave duty in order. The process stays, empty, until its keeper ends it."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.wrap_future(self._stopped)

    def _run(self) -> None:
        try:
            self._settle()
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._live())
        except BaseException:  # the process without its host is worth nothing: end it, and Ray starts another
            log.exception("host ended by a bug: host=%s pid=%d", self._order.name, os.getpid())
            self._exit(EXIT_BUG)

    def _settle(self) -> None:
        """Make the data directory this process's own."""
        directory, order = self._directory, self._order
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._failures = grid_file.read_host_failures(directory)
            ray_api.quiet_actor_output(directory / "host.out")
            path = directory / grid_file.HOST_LOG_FILE
            handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES, encoding="utf-8")
            log_to(handler, LOG_FORM)
            self._copy_log()
            grid_file.write_host_mark(directory)
        except OSError as error:
            self._answer(list(to_wire(StorageError(f"cannot write to {directory}: {error.strerror or error}"))))
            time.sleep(START_AGAIN_S)
            self._exit(EXIT_START_FAILED)
        log.info("process started: host=%s pid=%d data_dir=%s app=%s", order.name, os.getpid(), directory, ",".join(order.app))

    def _copy_log(self) -> None:
        if not self._order.output:
            return
        try:
            copy = open(self._order.output, "a", encoding="utf-8")  # noqa: SIM115  # it stays open as long as the process
        except OSError as error:
            log.warning("log is not copied: host=%s to=%s reason=%s", self._order.name, self._order.output, error)
        else:
            log_to(logging.StreamHandler(copy), f"{self._order.name} {LOG_FORM}")

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._failures >= FAILURES_AT_ONCE:
            log.warning(
                "host waits, its last processes failed: host=%s failures=%d for_s=%g", self._order.name, self._failures, START_AGAIN_S
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), START_AGAIN_S)
        while not self._stop.is_set():
            config = self._order.config()
            host = Host(config, offloader=RayOffloader(self._order.app_path), supervisor=RaySupervisor())
            if await self._start(host):
                HugePages(config.settings.huge_pages_look_s).start()
                await self._serve(host, self._stop)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), MENDED_AGAIN_S)
        self._stopped.set_result(None)

    async def _start(self, host: Host) -> bool:
        """Start `host` and tell who waits for it. False: not before somebody mends a setting, a module or a port."""
        name, pid = self._order.name, os.getpid()
        try:
            await host.start()
            calm_garbage_collector()
        except SettingsError as error:
            log.error("host does not start: host=%s pid=%d again_s=%g reason=%s", name, pid, MENDED_AGAIN_S, error)
            self._answer(list(to_wire(error)))
            return False
        except Exception as error:
            if host.state == "failed":  # it listened already: others may have been waiting for this end
                self._end_duty(error)
            log.exception("host did not start, a new process will try: host=%s pid=%d again_s=%g", name, pid, START_AGAIN_S)
            known = error if isinstance(error, ActorGridError) else StorageError(f"{type(error).__name__}: {error}")
            self._answer(list(to_wire(known)))
            await asyncio.sleep(START_AGAIN_S)
            self._exit(EXIT_START_FAILED)
        log.info("host serves: host=%s pid=%d address=%s:%d", name, pid, self._order.address, self._order.port)
        self._answer(None)
        return True

    def _answer(self, problem: list[Any] | None) -> None:
        if not self._started.done():
            self._started.set_result(problem)

    async def _serve(self, host: Host, stop: asyncio.Event) -> None:
        self._host = host
        stopping = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(host.run_until_failed())
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._end_duty(failing.exception() or failing.result())
        failing.cancel()
        await host.stop()
        log.info("host stopped: host=%s pid=%d", self._order.name, os.getpid())
        self._stopped.set_result(None)

    def _end_duty(self, reason: BaseException) -> NoReturn:
        name, pid = self._order.name, os.getpid()
        log.error("host left duty, a new process takes over: host=%s pid=%d reason=%s", name, pid, reason, exc_info=reason)
        self._exit(EXIT_DUTY_ENDED)

    def _exit(self, code: int) -> NoReturn:
        """End the process without any hook: nothing that runs now may write to the store again."""
        grid_file.write_host_failure(self._directory, self._failures)
        logging.shutdown()
        os._exit(code)


def offloaded_task(function: str, arguments: bytes, app_path: list[str]) -> list[Any]:
    """Body of the Ray task: ``[result]``, or ``[message, type, text, traceback]`` of what was raised. Plain data both ways."""
    try:
        return [run_offloaded(function, arguments, app_path)]
    except ActorError as error:
        return [str(error.args[0]), error.remote_type, error.remote_text, error.remote_traceback]
    except BaseException as error:  # noqa: BLE001  # SystemExit and the like: Ray would end the worker and say nothing of use
        name = type(error).__qualname__
        return [f"offloaded {function} raised {name}: {error}", name, str(error), traceback.format_exc()]


class RayOffloader:
    """`actorgrid.host.offload.Offloader` on Ray tasks: any worker of the cluster, its own process, the CPUs and memory asked for.

    :param app_path: directories the worker puts in front of ``sys.path``
    """

    def __init__(self, app_path: tuple[str, ...]) -> None:
        self._app_path = list(app_path)
        # Submitting may block while Ray's control store is away; one thread, so that it blocks turns that offload and nothing else.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="actorgrid-offload")
        self._runner: ray_api.TaskRunner | None = None

    async def run(self, function: str, args: bytes, *, cpus: float, memory_bytes: int | None) -> bytes:
        """Run ``module:qualname`` in a worker process and give its result.

        :raises ActorError: the function raised, or its process died more than twice (``remote_type`` names Ray's error then)
        :raises InvalidArgumentError: no node has so many CPUs
        """
        loop = asyncio.get_running_loop()
        runner, reference = await loop.run_in_executor(self._thread, self._begin, function, args, cpus, memory_bytes)
        try:
            answer = await reference
        except asyncio.CancelledError:
            self._thread.submit(runner.cancel, reference)
            raise
        except runner.errors as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            raise ActorError(f"offloaded {function} did not finish: {name}: {error}", remote_type=name, remote_text=str(error)) from None
        if len(answer) == 1:
            result: bytes = answer[0]
            return result
        message, name, text, trace = answer
        raise ActorError(message, remote_type=name, remote_text=text, remote_traceback=trace)

    async def close(self) -> None:
        """Submit nothing more. Tasks under way end with their turns, which cancel them."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, function: str, args: bytes, cpus: float, memory_bytes: int | None) -> tuple[ray_api.TaskRunner, Any]:
        if self._runner is None:
            self._runner = ray_api.TaskRunner(offloaded_task)
        largest = self._runner.largest_node_cpus() if cpus > 1 else 1.0
        if cpus > largest:
            raise InvalidArgumentError(f"offload of {function}: asks for {cpus:g} CPUs, the largest node has {largest:g}")
        return self._runner, self._runner.begin(
            (function, args, self._app_path), cpus=cpus, memory_bytes=memory_bytes, name=f"offload {function}"
        )
