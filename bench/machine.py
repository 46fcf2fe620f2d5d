"""What the machine did meanwhile: CPU time of processes, load, steal, memory. Linux, from /proc."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU, user and system, that these processes have used so far. Resolution: one tick (10 ms) a process."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} tells no resident memory")


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """Where the machine's time went, as fractions of all cores."""

    busy: float
    steal: float


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
        return Share(busy=(total - idle - steal) / total, steal=steal / total)


def describe() -> dict[str, object]:
    """The machine, for beside the figures."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": os.getloadavg()[0],
    }
