"""The Ray half of a pod's agent: a process of its own that runs the pod's raylet and, as a driver, has the pod's hosts as Ray actors.

``python -P -m actorgrid.cluster.pod_ray``, started by `actorgrid.cluster.pod_ray_link`. A process of its own, since Ray's calls block
without time-outs while its control store is away, and since a driver may be ended by Ray when its raylet dies; the agent's probes must
survive both. The first line of stdin is a `RayOrder`, each further one a `Request`; every line of stdout is a `Report`. The end of stdin
ends the process, and with it the raylet and the hosts: so the kernel sees to it that nothing of a pod outlives its agent.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from actorgrid.cluster import ray_api

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
EXIT_SERVER_DIED: Final = 3
EXIT_FAILED: Final = 4


class RayOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to start: a raylet, and host actors on it.

    :ivar directory: of Ray's sockets and logs
    :ivar orders: by host: its `HostOrder`, encoded
    """

    directory: str
    address: str
    ip: str
    first_port: int
    label: str
    namespace: str
    cpus: int | None
    orders: dict[str, bytes]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be done with the actor of a host.

    :ivar verb: ``leave``, ``stop``: methods of `HostActor`; ``end``: end the actor; ``renew``: end it and create another one
    """

    number: int
    verb: str
    host: str
    timeout_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened.

    :ivar what: ``raylet``: it runs; ``started``: a host has, or has not with `problem`; ``answer``: to request `number`; ``died``: a server
        of Ray
    """

    what: str
    number: int = 0
    host: str = ""
    problem: str = ""


class RayHalf:
    """The process: one raylet, one driver, the pod's host actors."""

    def __init__(self, order: RayOrder, lines: IO[bytes], reports: IO[bytes]) -> None:
        self._order = order
        self._lines = lines
        self._reports = reports
        self._handles: dict[str, ray_api.HostHandle] = {}
        self._starting: dict[str, Any] = {}
        self._renewals: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._writing = threading.Lock()

    def run(self) -> int:
        """Start everything and look after it until stdin ends."""
        threading.Thread(target=self._follow, name="requests", daemon=True).start()
        order = self._order
        self._ray = ray_api.PodRay(
            Path(order.directory), address=order.address, ip=order.ip, first_port=order.first_port, label=order.label, cpus=order.cpus
        )
        self._ray.connect(order.namespace)
        self._report(Report(what="raylet"))
        for host in order.orders:
            self._create(host)
        while True:
            dead = self._ray.dead_servers()
            if dead:
                self._report(Report(what="died", problem=", ".join(dead)))
                return EXIT_SERVER_DIED
            self._look_at_starts()
            try:
                request = self._renewals.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            self._answer(request, self._renew)

    def _create(self, host: str) -> None:
        """Create the actor of a host on the raylet of this process; one that an earlier life of the pod left is ended before.

        It is pinned to this very raylet and not to the label: one that is pinned to a label would come back with the next raylet of the
        pod, with the order of an earlier life, and be in the way of the one that the pod wants now.
        """
        from actorgrid.cluster import ray_host

        earlier = ray_api.find_host_actor(host, "")
        if earlier is not None:
            log.info("host of an earlier life is ended: host=%s", host)
            earlier.end()
            ray_api.wait_until_free(host)
        handle = ray_api.create_host_actor(ray_host.HostActor, host, self._order.orders[host], node_id=self._ray.node_id)
        self._handles[host] = handle
        self._starting[host] = handle.begin("wait_started")

    def _look_at_starts(self) -> None:
        for host, reference in list(self._starting.items()):
            if not ray_api.is_ready(reference):
                continue
            [answer] = ray_api.results([reference], 1.0)
            if ray_api.is_end_of_process(answer):
                self._starting[host] = self._handles[host].begin("wait_started")  # Ray starts another process
                self._report(Report(what="started", host=host, problem="its process has ended, Ray starts another one"))
                continue
            del self._starting[host]
            problem = "" if answer is None else f"{answer[0]}: {answer[1]}" if isinstance(answer, list) else str(answer)
            self._report(Report(what="started", host=host, problem=problem))

    # -- requests

    def _follow(self) -> None:
        for line in self._lines:
            request = msgspec.json.decode(line, type=Request)
            if request.verb == "renew":
                self._renewals.put(request)  # like all that needs the control store, one after the other
            else:
                threading.Thread(target=self._answer, args=(request, self._do), name=request.verb, daemon=True).start()
        os._exit(0)

    def _answer(self, request: Request, do: Any) -> None:
        try:
            problem = do(request)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises is the answer
            problem = f"{type(error).__name__}: {error}"
        self._report(Report(what="answer", number=request.number, host=request.host, problem=problem))

    def _do(self, request: Request) -> str:
        handle = self._handles.get(request.host)
        if handle is None:
            return "there is no such actor"
        if request.verb == "end":
            handle.end()
            return ""
        [answer] = ray_api.results([handle.begin(request.verb)], request.timeout_s)
        return "" if answer is None else f"{type(answer).__name__}: {answer}"

    def _renew(self, request: Request) -> str:
        self._create(request.host)
        return ""

    def _report(self, report: Report) -> None:
        with self._writing:
            self._reports.write(msgspec.json.encode(report) + b"\n")
            self._reports.flush()


def main() -> None:
    """Entry point of the process."""
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    own_words = os.fdopen(os.dup(2), "w", buffering=1)
    logging.basicConfig(level=logging.INFO, stream=own_words, format="%(asctime)s %(levelname)s %(process)d %(name)s %(message)s")
    lines = sys.stdin.buffer
    order = msgspec.json.decode(lines.readline(), type=RayOrder)
    # What Ray prints is no report, and pages of it at every end of a raylet would hide what an operator should read.
    ray_api.quiet_actor_output(Path(order.directory) / "ray.out")
    os.environ.update(ray_api.pod_environment(order.ip))
    began = time.monotonic()
    try:
        code = RayHalf(order, lines, reports).run()
    except Exception:
        log.exception("ray's part of the pod failed: after_s=%.1f", time.monotonic() - began)
        code = EXIT_FAILED
    logging.shutdown()
    os._exit(code)  # Ray's exit hooks would wait for servers that are gone


if __name__ == "__main__":
    main()
