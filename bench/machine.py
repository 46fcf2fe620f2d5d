"""What the machine did meanwhile: CPU time of processes, load, steal, memory. Linux, from /proc."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import actorgrid
from bench import interpreter
from bench.results import Machine

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Above these a machine is not quiet: somebody else had the processor, and rates say little. CPU per call still does.
#: Of two cores Ray's own processes, which take no part in calls, have 5 to 9 % by themselves.
STEAL_MAX = 0.03
OTHERS_MAX = 0.15
LOAD_BEFORE_MAX = 0.5


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU, user and system, that these processes have used so far. Resolution: one tick (10 ms) a process.

    :raises FileNotFoundError: one of them does not exist
    """
    return sum(map(_cpu_of, pids))


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class CpuMeter:
    """CPU seconds of this process and others since its making; others may come and go.

    What a process uses between the last `sample` and its end is not seen.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        own = os.getpid()
        for pid in {own: None, **dict.fromkeys(pids)}:
            try:
                self._first[pid] = self._last[pid] = _cpu_of(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def sample(self, pids: Iterable[int] = ()) -> None:
        """Look again; `pids` are processes that may be new, all of whose CPU time counts."""
        for pid in pids:
            self._first.setdefault(pid, 0.0)
        for pid in self._first:
            try:
                self._last[pid] = _cpu_of(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def used_s(self, pids: Iterable[int] = ()) -> float:
        """Seconds used so far, after a last `sample`."""
        self.sample(pids)
        return sum(last - self._first[pid] for pid, last in self._last.items())


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} tells no resident memory")


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """Where the machine's time went, as fractions of all cores.

    :ivar cpu_s: seconds of processor time that `busy` is
    """

    busy: float
    steal: float
    cpu_s: float = 0.0

    def others(self, used_s: float) -> float:
        """What of `busy` was not the measured processes, which used `used_s` seconds; as a fraction of all cores."""
        return max(0.0, self.busy * (1 - used_s / self.cpu_s)) if self.cpu_s > 0 else 0.0


class MachineWatch:
    """Measures `Share` between its making and `stop`."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]

    def stop(self) -> Share:
        spent = [now - then for now, then in zip(self._read(), self._start, strict=True)]
        total = sum(spent[:8]) or 1
        idle, steal = spent[3] + spent[4], spent[7]
        busy = total - idle - steal
        return Share(busy=busy / total, steal=steal / total, cpu_s=busy / TICKS_PER_S)


def load_1m() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]


def describe() -> Machine:
    """The machine, for beside the figures."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return Machine(
        cpu=model.group(1).strip() if model else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(int(memory.group(1)) / (1 << 20), 1) if memory else 0.0,
        kernel=platform.release(),
        python=platform.python_version(),
        interpreter_ms=1e3 * interpreter.fastest([sys.executable]).get(sys.executable, 0.0),
        build="compiled" if actorgrid.__compiled__ else "pure",
        load_1m_before=load_1m(),
    )


def commit_of(directory: Path) -> str:
    """Short name of the commit that is checked out, with a plus if files were changed since; "unknown" outside of a repository."""
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=directory, capture_output=True, text=True, check=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=directory, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")
