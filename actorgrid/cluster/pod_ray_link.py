"""The agent's end of its Ray half (`pod_ray`): starts it once Ray's head can be reached, speaks with it, starts it again after its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import sys
from typing import Final

import msgspec
import psutil  # type: ignore[import-untyped]

from actorgrid.cluster import processes
from actorgrid.cluster.pod_ray import RayOrder, Report, Request
from actorgrid.cluster.pod_settings import PodSettings
from actorgrid.cluster.processes import ProcessMark

log = logging.getLogger(__name__)

HEAD_LOOK_S: Final = 1.0
HEAD_LOOK_MAX_S: Final = 5.0
HEAD_CONNECT_S: Final = 2.0
#: Until the raylet runs; it takes 3 to 8 s, and waits as long as the head is away.
RAYLET_START_S: Final = 60.0
START_AGAIN_S: Final = 1.0
START_AGAIN_MAX_S: Final = 15.0
#: A raylet that ran for so long begins its failures anew.
RAN_WELL_S: Final = 60.0
END_S: Final = 10.0
LINE_BYTES_MAX: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1


class RayLink:
    """Keeps the Ray half of the pod running.

    :ivar orders: by host: its order, encoded; complete before `run`
    :ivar head_reachable: whether Ray's control store took a connection at the last look
    :ivar is_up: the raylet runs, as far as is known
    :ivar started: hosts that said once that they serve, in the life of the present raylet
    """

    def __init__(self, settings: PodSettings) -> None:
        self.head_reachable = False
        self.is_up = False
        self.started: set[str] = set()
        self._settings = settings
        self.orders: dict[str, bytes] = {}
        self._mark: ProcessMark | None = None
        self._input: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Report]] = {}
        self._number = 0
        self._lives = 0
        self._said_away = False

    async def watch_head(self) -> None:
        """See for ever whether the head can be reached."""
        delay_s = HEAD_LOOK_S
        while True:
            reachable = await self._reach_head()
            if reachable and not self.head_reachable:
                log.info("ray's head can be reached: address=%s", self._settings.ray_address)
            elif not reachable and (self.head_reachable or not self._said_away):
                self._said_away = True
                log.warning(
                    "ray's head cannot be reached, what runs goes on, and what is to be started waits: address=%s",
                    self._settings.ray_address,
                )
            self.head_reachable = reachable
            delay_s = HEAD_LOOK_S if reachable else min(delay_s * 1.5, HEAD_LOOK_MAX_S)
            await asyncio.sleep(delay_s)

    async def _reach_head(self) -> bool:
        host, _, port = self._settings.ray_address.rpartition(":")
        try:
            async with asyncio.timeout(HEAD_CONNECT_S):
                _reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, TimeoutError):  # also of the look-up of its name
            return False
        writer.close()
        return True

    async def run(self) -> None:
        """Start the Ray half, and start it again whenever it has ended, for ever."""
        delay_s = START_AGAIN_S
        loop = asyncio.get_running_loop()
        while True:
            while not self.head_reachable:
                await asyncio.sleep(0.2)
            began = loop.time()
            try:
                await self._live()
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                log.error("ray's part of the pod failed: %s: %s", type(error).__name__, error)
            delay_s = START_AGAIN_S if loop.time() - began > RAN_WELL_S else min(2 * delay_s, START_AGAIN_MAX_S)
            await asyncio.sleep(delay_s)

    async def _live(self) -> None:
        settings = self._settings
        self._lives += 1
        directory = settings.run / f"r{self._lives}"
        directory.mkdir(parents=True)
        order = RayOrder(
            directory=str(directory),
            address=settings.ray_address,
            ip=settings.pod_ip,
            first_port=settings.ray_port,
            label=settings.pod,
            namespace=settings.cluster_id,
            cpus=settings.cpus,
            orders=self.orders,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "actorgrid.cluster.pod_ray",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            start_new_session=True,  # so that everything it leaves behind is found
            preexec_fn=_end_with_parent,
        )
        self._mark = ProcessMark.of(process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        self._input = process.stdin
        try:
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            await self._follow(process.stdout)
        finally:
            self.is_up = False
            self._input = None
            self.started.clear()
            for future in self._asked.values():
                future.cancel()
            self._asked.clear()
            await self._clear_up(process)
            shutil.rmtree(directory, ignore_errors=True)

    async def _follow(self, lines: asyncio.StreamReader) -> None:
        """Take reports until there are no more."""
        deadline = asyncio.get_running_loop().time() + RAYLET_START_S
        while True:
            try:
                async with asyncio.timeout_at(None if self.is_up else deadline):
                    line = await lines.readline()
            except TimeoutError:
                log.warning("the raylet has not started in time, tried again: after_s=%g", RAYLET_START_S)
                return
            if not line:
                log.warning("ray's part of the pod has ended, and the hosts with it: it is started again")
                return
            report = msgspec.json.decode(line, type=Report)
            match report.what:
                case "raylet":
                    self.is_up = True
                    log.info("raylet runs: life=%d", self._lives)
                case "started" if report.problem:
                    log.warning("host does not serve yet: host=%s reason=%s", report.host, report.problem)
                case "started":
                    self.started.add(report.host)
                    log.info("host has started: host=%s", report.host)
                case "died":
                    log.error("a server of ray died: server=%s", report.problem)
                case "answer":
                    future = self._asked.pop(report.number, None)
                    if future is not None and not future.done():
                        future.set_result(report)

    async def ask(self, verb: str, host: str, timeout_s: float) -> str:
        """Have something done with the actor of a host; empty, or why it was not done.

        :param verb: see `pod_ray.Request`
        """
        if self._input is None:
            return "ray's part of the pod does not run"
        self._number += 1
        request = Request(number=self._number, verb=verb, host=host, timeout_s=timeout_s)
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._asked[request.number] = future
        self._input.write(msgspec.json.encode(request) + b"\n")
        await asyncio.wait([future], timeout=timeout_s + 0.5)
        self._asked.pop(request.number, None)
        if not future.done():
            return f"no answer within {timeout_s:g} s"
        return "ray's part of the pod ended meanwhile" if future.cancelled() else future.result().problem

    async def _clear_up(self, process: asyncio.subprocess.Process) -> None:
        """End what the Ray half leaves behind: raylet, hosts, workers."""
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        left = await asyncio.to_thread(_end_all, self._mark)
        for each in left:
            log.error("a process of ray's part of the pod would not end: %s", each)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()


def _end_all(leader: ProcessMark | None) -> list[str]:
    left = processes.end_session(leader, timeout_s=END_S) if leader is not None else []
    reap_orphans()
    return left


def reap_orphans() -> None:
    """As the first process of a container this one inherits what others leave behind, and nobody else would take note of their end."""
    if os.getpid() != 1:
        return
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE and os.getsid(child.pid) != child.pid:
                os.waitpid(child.pid, os.WNOHANG)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
