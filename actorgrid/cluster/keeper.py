"""The keeper: one process per grid that leads its session, starts Ray and the hosts, and ends them in order.

``python -P -m actorgrid.cluster.keeper``, started by `actorgrid.cluster.local.up`: reads a `KeeperOrder` from stdin, tells
on stdout how far it is (`Step`, one JSON object a line) and closes it once every host has answered and the grid is begun. It inherits the
directory's lock and holds it to its end. SIGHUP: there are requests for hosts to come or go (`nodes`). SIGTERM: hosts stop in order, then
everything of the session is ended. It takes no part in serving.

With `GridFile.ray_address` it starts no Ray but attaches to one that runs, on which hosts come and go with the nodes (`ray_nodes`).
They outlive a keeper that dies; the next one takes them over.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import grid_file, nodes, processes
from actorgrid.cluster.processes import ProcessMark
from actorgrid.errors import ActorGridError, DeadlineExceededError, RequestError, from_wire, to_wire
from actorgrid.settings import HostSettings, WireSettings

if TYPE_CHECKING:
    from actorgrid.cluster import ray_nodes

log = logging.getLogger(__name__)

LOG_FILE = "keeper.log"
#: What `Host.stop` gets; running turns have their own, shorter grace inside it.
HOSTS_STOP_S = 8.0
WATCH_INTERVAL_S = 0.5
#: A host whose disk went back in time ends its first process by itself, and Ray starts another: a start goes on for so long after a death.
RESTARTS_WATCHED_S = 15.0
RESTART_LOOK_S = 0.1
#: Short, since a socket's path has at most 107 bytes and Ray adds 75; the directory itself is ours alone (mode 0700).
RAY_DIR_PARENT = "/tmp"  # noqa: S108
RAY_DIR_PREFIX = "ag-"


class KeeperOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to start.

    :ivar nodes_min: on a Ray cluster: how many nodes to wait for
    :ivar first_port: on a Ray cluster: of the first host of a new grid; None: the default, 0: any
    """

    data: str
    grid: grid_file.GridFile
    settings: dict[str, float | int]
    lock_descriptor: int
    start_timeout_s: float
    cpus: int
    nodes_min: int = 1
    first_port: int | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the start is: ``ray``, ``hosts``, ``begin`` (new grids only), and at the end ``started`` or ``failed``.

    :ivar errors: for ``failed``: host name (or ``""``) with error class, message and details
    :ivar hosts: for ``started``: those that run
    """

    step: str
    errors: list[tuple[str, tuple[str, str, dict[str, Any]]]] = []
    hosts: tuple[str, ...] = ()


class Keeper:
    """One run of a grid."""

    def __init__(self, order: KeeperOrder, steps: IO[bytes]) -> None:
        self._order = order
        self._steps = steps
        self._data = Path(order.data)
        self._ray_dir = Path(tempfile.mkdtemp(prefix=RAY_DIR_PREFIX, dir=RAY_DIR_PARENT))
        self._told_to_stop = False
        self._wake_up, self._wake_up_end = os.pipe()
        self._ray: Any = None
        self._nodes: ray_nodes.RayNodes | None = None
        self.hosts: list[Any] = []
        self._grid = order.grid
        self._settings = HostSettings()

    @property
    def grid(self) -> grid_file.GridFile:
        """As ``grid.json`` has it."""
        return self._grid

    def run(self) -> int:
        """Start, watch until told to stop, end everything; the process's exit code."""
        signal.signal(signal.SIGHUP, self._on_sighup)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for `up --block`, which then asks us
        try:
            started = self._start()
        except Exception as error:
            log.exception("start failed")
            known = error if isinstance(error, ActorGridError) else ActorGridError(f"Ray did not start: {type(error).__name__}: {error}")
            self._tell(Step(step="failed", errors=[("", to_wire(known))]))
            started = False
        self._steps.close()
        try:
            ended_well = started and self._watch()
        except Exception:
            log.exception("the keeper cannot go on, the grid ends")
            ended_well = False
        self._end()
        return 0 if ended_well else 1

    def _on_sigterm(self, *_: object) -> None:
        # A pipe and not a threading.Event: the handler runs in the very thread that waits, and an event's lock is no RLock.
        self._told_to_stop = True
        os.write(self._wake_up_end, b".")

    def _on_sighup(self, *_: object) -> None:
        os.write(self._wake_up_end, b"r")

    def _start(self) -> bool:
        self._write_running()
        self._settings = HostSettings(**self._order.settings)  # type: ignore[arg-type]  # it checks each value itself
        if self._grid.ray_address:
            self._attach()
        else:
            self._start_ray()
        self._tell(Step(step="hosts"))
        errors = self._wait_started()
        if not errors and not self._grid.begun:
            self._tell(Step(step="begin"))
            self._begin()
        self._tell(Step(step="failed" if errors else "started", errors=errors, hosts=tuple(host.name for host in self.hosts)))
        return not errors

    def _start_ray(self) -> None:
        """Start a Ray of our own, and a host for each entry of the grid."""
        from actorgrid.cluster import ray_api

        gcs_directory = self._data / grid_file.KEEPER_DIRECTORY / "ray"
        # What Ray knew of the last run are actors of processes that are gone; grid.json is the truth that stays.
        shutil.rmtree(gcs_directory, ignore_errors=True)
        gcs_directory.mkdir(parents=True)
        os.environ.update(ray_api.ray_environment(gcs_directory))
        self._ray = ray_api.LocalRay(self._ray_dir, cpus=self._order.cpus)
        self._connect()
        from actorgrid.cluster import ray_host

        self.hosts = [
            ray_api.create_host_actor(ray_host.HostActor, host.name, ray_host.order_of(self._grid, host, self._data, self._settings))
            for host in self._grid.hosts
        ]

    def _attach(self) -> None:
        """Connect to the Ray that runs already, and start a host on each of its nodes."""
        from actorgrid.cluster import ray_api

        os.environ.update(ray_api.attached_environment())
        self._ray = ray_api.AttachedRay(self._grid.ray_address)
        self._connect()
        from actorgrid.cluster import ray_nodes

        self._nodes = ray_nodes.RayNodes(
            self._ray,
            self,
            self._data,
            self._settings,
            start_timeout_s=self._order.start_timeout_s,
            told_to_stop=lambda: self._told_to_stop,
        )
        self._nodes.start_first(self._order.nodes_min, self._order.first_port)

    def _connect(self) -> None:
        self._write_running()
        self._tell(Step(step="ray"))
        self._ray.connect(self._grid.cluster_id)
        signal.signal(signal.SIGTERM, self._on_sigterm)  # after connect, which installs one of Ray's

    def _wait_started(self) -> list[tuple[str, tuple[str, str, dict[str, Any]]]]:
        """Wait until every host serves; those that do not, with the reason."""
        from actorgrid.cluster import ray_api

        deadline = time.monotonic() + self._order.start_timeout_s
        died_at: dict[str, float] = {}
        answers: dict[str, Any] = {}
        waiting = list(self.hosts)
        while waiting:
            left_s = max(0.1, deadline - time.monotonic())
            found = ray_api.results([host.begin("wait_started") for host in waiting], left_s, cancelled=lambda: self._told_to_stop)
            answers.update((host.name, answer) for host, answer in zip(waiting, found, strict=True))
            now = time.monotonic()
            waiting = [
                host
                for host in waiting
                if ray_api.is_end_of_process(answers[host.name])
                and now < min(deadline, died_at.setdefault(host.name, now) + RESTARTS_WATCHED_S)
                and not self._told_to_stop
            ]
            if waiting:
                time.sleep(RESTART_LOOK_S)
        return [(name, _as_wire(answer)) for name, answer in answers.items() if answer is not None]

    def _begin(self) -> None:
        """Let the hosts create their first replicas, and remember that they have: what comes up empty from now on is filled by the others.

        :raises ActorGridError: not all of them did; the next `up` asks again, which is safe
        """
        grid = self._grid
        log.info("grid begun: %s", asyncio.run(self._ask_to_begin(grid)))
        self._grid = msgspec.structs.replace(grid, begun=True)
        grid_file.write_grid(self._data, self._grid)

    async def _ask_to_begin(self, grid: grid_file.GridFile) -> Any:
        host = grid.hosts[0]
        asking = asyncio.create_task(
            admin.ask(
                host.address,
                host.port,
                "init",
                {},
                client_id=new_client_id(),
                cluster_id=grid.cluster_id,
                wire=WireSettings(),
                timeout_s=self._order.start_timeout_s,
            )
        )
        while not asking.done() and not self._told_to_stop:
            await asyncio.wait({asking}, timeout=WATCH_INTERVAL_S)
        if not asking.done():
            asking.cancel()
            raise DeadlineExceededError("told to stop while the grid was being begun")
        return asking.result()

    def _write_running(self) -> None:
        keeper = ProcessMark.of(os.getpid())
        assert keeper is not None
        grid_file.write_running(
            self._data,
            grid_file.RunningFile(
                keeper=keeper,
                address=self._grid.address,
                ray_address=self._ray.address if self._ray is not None else "",
                ray_dir=str(self._ray_dir),
                namespace=self._order.grid.cluster_id,
                started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
        )

    def _tell(self, step: Step) -> None:
        log.info("step=%s errors=%s", step.step, step.errors)
        with contextlib.suppress(BrokenPipeError):  # `up` went away; the grid does not care
            self._steps.write(msgspec.json.encode(step) + b"\n")
            self._steps.flush()

    def _watch(self) -> bool:
        """Until told to stop (True), or until Ray's raylet, and with it every host, or the data is gone (False)."""
        while not self._told_to_stop:
            woken, _, _ = select.select([self._wake_up], [], [], WATCH_INTERVAL_S)
            if woken:
                os.read(self._wake_up, 1024)
                self._answer_requests()
            if not self._holds_directory():
                log.error("the data directory was removed, the grid ends: data=%s", self._data)
                return False
            if self._nodes is not None:
                self._nodes.look()
            for name in self._ray.dead_servers():
                if name != "gcs_server":
                    log.error("ray server died, the grid ends: server=%s", name)
                    return False
                log.warning("ray control store died, hosts serve on: starting it again")
                self._ray.restart_control_store()
        return True

    def _answer_requests(self) -> None:
        for path, request in nodes.take_requests(self._data):
            try:
                if isinstance(request, ActorGridError):
                    raise request
                answer: nodes.NodeAnswer | ActorGridError = self._add(request) if request.verb == "add" else self._stop_host(request)
            except ActorGridError as error:
                answer = error
            except Exception as error:
                log.exception("request failed: request=%s", request)
                answer = ActorGridError(f"{type(error).__name__}: {error}")
            log.info("request=%s answer=%s", request, answer)
            with contextlib.suppress(OSError):  # who asked sees no answer in time
                nodes.answer_request(path, answer)

    def _add(self, request: nodes.NodeRequest) -> nodes.NodeAnswer:
        """Start one more host, or one that was stopped."""
        if self._nodes is not None:
            return self._nodes.add(request.name)
        from actorgrid.cluster import ray_api, ray_host

        running = {host.name for host in self.hosts}
        known = next((host for host in self._grid.hosts if host.name == request.name and host.name not in running), None)
        entry = known or nodes.new_host(self._grid, request.name)
        if known is None:
            self.write_hosts((*self._grid.hosts, entry))
        order = ray_host.order_of(self._grid, entry, self._data, self._settings)
        handle = ray_api.create_host_actor(ray_host.HostActor, entry.name, order)
        [answer] = ray_api.results([handle.begin("wait_started")], self._order.start_timeout_s, cancelled=lambda: self._told_to_stop)
        if answer is not None:
            handle.end()
            if known is None:
                self.write_hosts(tuple(host for host in self._grid.hosts if host.name != entry.name))
            raise from_wire(*_as_wire(answer))
        self.hosts.append(handle)
        return nodes.NodeAnswer(host=entry.name, address=f"{entry.address}:{entry.port}")

    def _stop_host(self, request: nodes.NodeRequest) -> nodes.NodeAnswer:
        """Stop a host in order."""
        from actorgrid.cluster import ray_api

        if request.verb != "stop":
            raise RequestError(f"unknown request {request.verb!r}")
        handle = next((host for host in self.hosts if host.name == request.name), None)
        if handle is None and request.forget and any(host.name == request.name for host in self._grid.hosts):
            self._forget_host(request.name)  # it died with its node, which then was to be removed
            return nodes.NodeAnswer(host=request.name)
        if handle is None:
            names = ", ".join(sorted(host.name for host in self.hosts))
            raise RequestError(f"no host {request.name!r} runs; those that do are {names}")
        if len(self.hosts) == 1:
            raise RequestError(f"{request.name} is the last host that runs: use `actorgrid down`")
        [answer] = ray_api.results([handle.begin("stop")], HOSTS_STOP_S)
        if answer is not None:
            log.warning("host did not stop in order: host=%s reason=%s", handle.name, answer)
        handle.end()
        self.hosts.remove(handle)
        if self._nodes is not None:
            self._nodes.dismiss(handle)
        if request.forget:
            self._forget_host(request.name)
        return nodes.NodeAnswer(host=request.name)

    def _forget_host(self, name: str) -> None:
        self.write_hosts(tuple(host for host in self._grid.hosts if host.name != name))

    def write_hosts(self, hosts: tuple[grid_file.HostEntry, ...]) -> None:
        """Change which hosts the grid has, for good."""
        present = grid_file.read_grid(self._data) or self._grid  # `begun` may have been written meanwhile
        self._grid = msgspec.structs.replace(present, hosts=hosts)
        grid_file.write_grid(self._data, self._grid)
        self._write_running()

    def _holds_directory(self) -> bool:
        # Somebody who removes the directory of a running grid could never end it with `down`, and a new grid could take its place.
        try:
            return os.path.samestat(os.stat(self._data / grid_file.LOCK_FILE), os.fstat(self._order.lock_descriptor))
        except FileNotFoundError:
            return False

    def _end(self) -> None:
        if self.hosts and self._ray is not None:
            from actorgrid.cluster import ray_api

            log.info("stopping hosts")
            for host, answer in zip(self.hosts, ray_api.results([host.begin("stop") for host in self.hosts], HOSTS_STOP_S), strict=True):
                if answer is not None:
                    log.warning("host did not stop in order: host=%s reason=%s", host.name, answer)
            if self._nodes is not None:  # another one's Ray goes on; our actors must not
                for host in self.hosts:
                    host.end()
        if self._ray is not None:
            self._ray.stop()
        me = ProcessMark.of(os.getpid())
        assert me is not None
        left = processes.end_session(me)
        if left:
            log.error("processes that would not end: %s", ", ".join(left))
        shutil.rmtree(self._ray_dir, ignore_errors=True)
        grid_file.remove_running(self._data)
        log.info("ended")


def _as_wire(answer: Any) -> tuple[str, str, dict[str, Any]]:
    if isinstance(answer, list):
        name, message, details = answer
        return name, message, details
    if isinstance(answer, TimeoutError):
        return to_wire(ActorGridError(f"did not start: {answer}"))
    return to_wire(ActorGridError(f"its process ended at the start: {type(answer).__name__}: {answer}"))


def main() -> None:
    """Entry point of the process."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=KeeperOrder)
    # Not for Ray's processes, which must not keep the directory locked when we are gone.
    os.set_inheritable(order.lock_descriptor, False)
    # The pipe to `up` is ours alone as well: it ends when we close it.
    steps = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(process)d %(name)s %(message)s")
    code = Keeper(order, steps).run()
    logging.shutdown()
    os._exit(code)  # Ray's exit hooks would wait for servers that are gone


if __name__ == "__main__":
    main()
