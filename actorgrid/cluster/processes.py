"""Which operating system processes belong to a local grid, and how they are ended.

The keeper of a grid (`actorgrid.cluster.keeper`) leads a session of its own, and everything it starts stays in that
session: Ray's servers, agents and workers, and what those start. The kernel gives a session's number to no other process
while a member lives, so "keeper's pid and start" identifies them all, also when the keeper itself is gone. Nothing is
ever ended by name: another Ray on the same machine must not notice us.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
import psutil  # type: ignore[import-untyped]


class ProcessMark(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told apart from a later one that got the same pid.

    :ivar pid: process id
    :ivar start: when it started, in the kernel's clock ticks since boot; wall-clock steps do not change it
    :ivar boot: id of the machine's boot, so that a file from before a reboot matches nothing
    """

    pid: int
    start: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """The mark of the live process `pid`, or None if there is none (a zombie counts as none)."""
        try:
            process = psutil.Process(pid)
            if _has_ended(process):
                return None
            return cls(pid=pid, start=_start_of(pid, process), boot=_boot_id())
        except (psutil.Error, OSError):
            return None

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessMark.of(self.pid) == self

    def seconds_after(self, other: ProcessMark) -> float | None:
        """How long after `other` this process started; None if the machine was booted in between."""
        if self.boot != other.boot:
            return None
        try:
            per_second = 1 if "." in self.start else os.sysconf("SC_CLK_TCK")
            return (float(self.start) - float(other.start)) / per_second
        except ValueError:
            return None


def _start_of(pid: int, process: psutil.Process) -> str:
    with contextlib.suppress(FileNotFoundError):
        # The name in field 2 may hold spaces and brackets; field 22, the start in ticks, is the 20th after the last bracket.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{process.create_time():.2f}"  # no /proc (macOS)


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{psutil.boot_time():.0f}"


def _has_ended(process: psutil.Process) -> bool:
    """Whether nothing of it runs any more. Its first thread may be a zombie while others still end and hold its locks and sockets."""
    return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)


def session_members(leader: ProcessMark) -> list[psutil.Process]:
    """Live processes of the session that `leader` started, without the caller; `leader` itself may be gone."""
    if leader.boot != _boot_id():
        return []
    now_there = ProcessMark.of(leader.pid)
    if now_there is not None and now_there != leader:
        return []  # the number was given out again, so the session has ended
    members: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader.pid:
                members[process.pid] = process
                # A child that made a session of its own is still ours to end, as long as its parent tells us of it.
                members.update((child.pid, child) for child in process.children(recursive=True))
    members.pop(os.getpid(), None)
    return [process for process in members.values() if _is_running(process)]


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and not _has_ended(process))
    except psutil.Error:
        return False


def end_session(leader: ProcessMark, *, keep: Collection[int] = (), timeout_s: float = 10.0) -> list[str]:
    """SIGKILL every process of `leader`'s session, again until none is left.

    No SIGTERM first: whoever wanted an orderly end asked for it before, and durability needs no hook (facts, section Ray).

    :param keep: pids to leave alone
    :returns: what is still there after `timeout_s` seconds, one line a process; empty if all went
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = [process for process in session_members(leader) if process.pid not in keep]
        if not left or time.monotonic() > deadline:
            return [describe(process) for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)  # psutil compares the start time first
        psutil.wait_procs(left, timeout=0.2)


def describe(process: psutil.Process) -> str:
    """``pid 4711 (raylet)``, for people."""
    try:
        return f"pid {process.pid} ({process.name()})"
    except psutil.Error:
        return f"pid {process.pid}"


def wait_for_end(marks: Iterable[ProcessMark], timeout_s: float) -> bool:
    """Wait until none of `marks` runs any more; False if one still does after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    waiting = list(marks)
    while waiting := [mark for mark in waiting if mark.is_alive()]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
