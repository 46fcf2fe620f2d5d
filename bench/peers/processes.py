"""Processes of a peer: started with a log file each, watched while they start, ended by id. Ports, tools, and a cache for what is built.

Only what was started here, and its descendants, is ever signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"

#: What a process gets to end after SIGTERM; orderly stops of most take less than two seconds.
TERM_S = 5.0
KILL_S = 5.0
POLL_S = 0.05
LOG_TAIL_BYTES = 1500
#: Lines of foreign clients carry a histogram and one number for each key.
LINE_BYTES_MAX = 64 << 20


class MissingPeerError(Exception):
    """The peer cannot be had on this machine, and why. To be reported as missing, never as zero."""


class PeerError(Exception):
    """The peer is there and does not work: a process ended, or is not ready in time. Its log's end is in the message."""


class Processes:
    """What one peer started.

    :param directory: where logs go, and where the processes run
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._started: dict[str, asyncio.subprocess.Process] = {}
        #: Everything ever seen: a process whose parent has gone is nobody's descendant. psutil compares start times, so that a reused id
        #: is no danger.
        self._seen: dict[int, psutil.Process] = {}

    async def start(
        self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, pipes: bool = False
    ) -> asyncio.subprocess.Process:
        """Start a process in a group of its own, so that an interrupt at the keyboard is ours alone.

        :param name: of the process and its log file
        :param env: added to this process's environment
        :param pipes: stdin and stdout are pipes; stderr always goes to the log
        """
        assert self._directory is not None, "start of a peer that was not started"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        # Whatever ends us, even SIGKILL, ends what we started: the kernel tells the child.
        with_us = [setpriv, "--pdeathsig", "TERM", "--"] if (setpriv := shutil.which("setpriv")) is not None else []
        with self._log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *with_us,
                *map(str, argv),
                stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipes else log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, **(env or {})},
                cwd=self._directory,
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        self._started[name] = process
        self._look()
        return process

    async def wait_until(self, name: str, is_ready: Callable[[], Awaitable[bool]], *, timeout_s: float = 60.0) -> None:
        """Ask `is_ready` again and again.

        :raises PeerError: the process ended, or is not ready in time
        """
        process = self._started[name]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not await is_ready():
            if process.returncode is not None:
                raise PeerError(f"{name} ended with {process.returncode}: {self.log_tail(name)}")
            if loop.time() >= deadline:
                raise PeerError(f"{name} is not ready after {timeout_s:g} s: {self.log_tail(name)}")
            await asyncio.sleep(POLL_S)

    async def wait_for_port(self, name: str, port: int, *, timeout_s: float = 60.0) -> None:
        """Wait until somebody listens on `port`.

        :raises PeerError: as `wait_until`
        """

        async def listens() -> bool:
            return await is_listening(port)

        await self.wait_until(name, listens, timeout_s=timeout_s)

    def pids(self) -> list[int]:
        """Live processes and their live descendants."""
        self._look()
        return sorted(pid for pid, process in self._seen.items() if _is_alive(process))

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        process = self._started[name]
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(KILL_S):
            await process.wait()

    async def stop(self) -> None:
        """SIGTERM to what was started, newest first, then SIGKILL to whatever is left of it and its descendants."""
        self._look()
        for process in reversed(self._started.values()):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERM_S):
                for process in self._started.values():
                    await process.wait()
        # Also a new descendant of the last seconds: of what is still alive here, and only of that.
        self._look()
        for seen in self._seen.values():
            if _is_alive(seen):
                with contextlib.suppress(psutil.NoSuchProcess):
                    seen.send_signal(signal.SIGKILL)
        async with asyncio.timeout(KILL_S):
            for process in self._started.values():
                await process.wait()
            while any(map(_is_alive, self._seen.values())):
                await asyncio.sleep(POLL_S)
        self._started.clear()
        self._seen.clear()

    def log_tail(self, name: str) -> str:
        """The end of a process's log, on one line."""
        log = self._log(name)
        text = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines() if line.strip()) or "its log is empty"

    def _log(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{name}.log"

    def _look(self) -> None:
        for process in self._started.values():
            if process.returncode is None:
                self._see(process.pid)
        for seen in list(self._seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in seen.children(recursive=True):
                    self._seen.setdefault(child.pid, child)

    def _see(self, pid: int) -> None:
        if pid not in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen[pid] = psutil.Process(pid)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_ports(count: int) -> list[int]:
    """TCP ports of loopback that are free now. Somebody may take one before it is used; then the start fails and says so."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


async def is_listening(port: int) -> bool:
    """Whether something accepts connections on `port` of loopback."""
    try:
        async with asyncio.timeout(2.0):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def run_tool(argv: Sequence[str | Path], *, cwd: Path, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and give its output.

    :raises PeerError: it fails, or takes longer than `timeout_s`
    """
    command = " ".join(Path(str(part)).name for part in argv[:3])
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise PeerError(f"{command} takes longer than {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    if process.returncode != 0:
        raise PeerError(f"{command} ended with {process.returncode}: {text.strip()[-LOG_TAIL_BYTES:]}")
    return text


def cache_directory() -> Path:
    """Where things that are built or fetched at first use stay; ``ACTORGRID_BENCH_CACHE`` puts it elsewhere."""
    chosen = os.environ.get("ACTORGRID_BENCH_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actorgrid-bench"
    base.mkdir(parents=True, exist_ok=True)
    return base
