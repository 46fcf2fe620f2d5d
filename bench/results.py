"""What a run of the benchmarks gave: rows, the machine, and what could not be had. Stored as JSON with a format version.

A row's figures are medians over its runs, except the slowest call, which is the slowest of all runs. Times are in ms, CPU in microseconds
per call over all processes, the client's included.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Literal

import msgspec

FORMAT_VERSION = 1
OURS = "actorgrid"
MEDIANS = ("calls_per_s", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "cpu_us_per_call", "busy", "steal", "others", "load_1m")


class FormatError(ValueError):
    """A file is no result of this harness, or of a version of it that this one cannot read."""


class Machine(msgspec.Struct, kw_only=True, frozen=True):
    """Where it was measured.

    :ivar build: of actorgrid: "pure" or "compiled"
    :ivar load_1m_before: load average before the first row: what others did
    :ivar interpreter_ms: what this interpreter takes for the work of `bench.interpreter`, which depends on how it was built, and on the
        machine; 0: not measured
    """

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    build: str
    load_1m_before: float = 0.0
    interpreter_ms: float = 0.0

    @property
    def slug(self) -> str:
        """For file names: processor and number of cores."""
        words = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower().replace("(r)", "").replace("(tm)", "")).strip("-")
        return f"{words[:40].strip('-')}-{self.cores}c"

    @property
    def look(self) -> tuple[str, int, str, str]:
        """What two machines have in common whose figures may be compared."""
        return self.cpu, self.cores, ".".join(self.python.split(".")[:2]), self.build


class Run(msgspec.Struct, kw_only=True, frozen=True):
    """One run of a row. `busy`, `steal` and `others` (busy with something else) are fractions of all cores."""

    calls: int
    seconds: float
    calls_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    slowest_ms: float
    cpu_us_per_call: float
    busy: float
    steal: float
    others: float
    load_1m: float


class Faults(msgspec.Struct, kw_only=True, frozen=True):
    """What was read back from the grid after the load, held against what callers were told.

    :ivar failed: calls that raised
    :ivar lost: acknowledged changes that are not there
    :ivar doubled: changes that nobody asked for
    :ivar longest_gap_ms: longest time in which no caller got an answer
    """

    acknowledged: int
    failed: int
    lost: int
    doubled: int
    longest_gap_ms: float = 0.0


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One slice of a timeline: its begin, calls per second in it, failed calls, slowest call."""

    at_s: float
    calls_per_s: float
    failed: int
    slowest_ms: float


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened during a timeline; `kind` is "event", or the kind of move: "build", "swap", "remove"."""

    at_s: float
    what: str
    kind: str = "event"


class Times(msgspec.Struct, frozen=True):
    """How many times as good the grid is as another system, in turns of the same seconds.

    :ivar rate: its calls/s divided by theirs
    :ivar cpu: their CPU per call divided by its
    :ivar p50: their median latency divided by its
    """

    rate: float
    cpu: float
    p50: float


class Row(msgspec.Struct, kw_only=True):
    """One measured line.

    :ivar operation: what a call is, within the scenario: "write", "read", ...
    :ivar system: "actorgrid", or a peer's name
    :ivar durability: what an answer promises, in a few words
    :ivar in_flight: callers of the closed loop; 0 in an open loop
    :ivar rate_asked: calls/s of an open loop; 0 in a closed one
    :ivar load_label: the open loop's rate as it was asked for: "50%" of the peak, or "20000"
    :ivar latencies: HDR histogram (base64, V2) over all runs
    :ivar figures: what else the scenario measured, with the unit last in each name
    :ivar beside: of a peer that took turns with the grid: the grid's operation -> how it was held against that
    """

    scenario: str
    operation: str
    system: str = OURS
    durability: str = ""
    loop: Literal["closed", "open"] = "closed"
    hosts: int = 0
    partitions: int = 0
    replicas: int = 0
    actors: int = 0
    payload_bytes: int = 0
    clients: int = 1
    in_flight: int = 0
    rate_asked: float = 0.0
    load_label: str = ""
    calls_per_s: float = 0.0
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    slowest_ms: float = 0.0
    cpu_us_per_call: float = 0.0
    spread: float = 0.0
    cpu_spread: float = 0.0
    busy: float = 0.0
    steal: float = 0.0
    others: float = 0.0
    load_1m: float = 0.0
    failed: int = 0
    errors: dict[str, int] = {}
    runs: list[Run] = []
    faults: Faults | None = None
    latencies: str = ""
    timeline: list[Point] = []
    marks: list[Mark] = []
    figures: dict[str, float] = {}
    beside: dict[str, Times] = {}

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two rows of two results the same measurement."""
        return (
            *(self.scenario, self.operation, self.system, self.loop, self.load_label, self.in_flight),
            *(self.hosts, self.partitions, self.replicas, self.clients, self.actors, self.payload_bytes),
        )

    @property
    def name(self) -> str:
        """For people: scenario and operation, without saying a word twice."""
        return self.scenario if self.operation in (self.scenario, "") else f"{self.scenario}: {self.operation}"

    @property
    def load_name(self) -> str:
        """For people: callers, or the rate that was asked for."""
        return f"{self.in_flight:,}" if self.loop == "closed" else f"open, {self.load_label}"

    def fill(self, runs: list[Run]) -> None:
        """Take the medians of `runs`, and the spread: (largest - smallest) / median."""
        if not runs:
            return
        self.runs = runs
        for name in MEDIANS:
            setattr(self, name, statistics.median(getattr(run, name) for run in runs))
        self.slowest_ms = max(run.slowest_ms for run in runs)
        self.spread = _spread([run.calls_per_s for run in runs])
        self.cpu_spread = _spread([run.cpu_us_per_call for run in runs])


def _spread(values: list[float]) -> float:
    median = statistics.median(values)
    return (max(values) - min(values)) / median if median else 0.0


class Missing(msgspec.Struct, frozen=True):
    """A peer, or a scenario, that could not be measured, and why. Never a row of zeros."""

    what: str
    why: str


class Results(msgspec.Struct, kw_only=True):
    """Everything of one run of the harness. `created` is a UTC date, ISO 8601."""

    version: int = FORMAT_VERSION
    created: str
    commit: str
    command: str = ""
    machine: Machine
    rows: list[Row] = []
    missing: list[Missing] = []

    def write(self, path: Path) -> None:
        """Write it as JSON; directories are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    def over(self, old: Results) -> Results:
        """This result with the rows of an older one that it has not, of the same commit and machine."""
        own = {row.key for row in self.rows}
        return msgspec.structs.replace(self, rows=[*(row for row in old.rows if row.key not in own), *self.rows])

    @property
    def file_name(self) -> str:
        """``<date>-<commit>-<machine>.json``"""
        return f"{self.created[:10]}-{self.commit.rstrip('+')}{'-changed' if self.commit.endswith('+') else ''}-{self.machine.slug}.json"


class _Versioned(msgspec.Struct):
    version: int = 0


def read(path: Path) -> Results:
    """A stored result.

    :raises FormatError: it is none, or of another version; the text names the file
    :raises OSError: it cannot be read
    """
    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: no result of this harness: {error}") from None
    if version != FORMAT_VERSION:
        raise FormatError(f"{path}: format version {version}, and this harness reads {FORMAT_VERSION}; measure again")
    try:
        return msgspec.json.decode(data, type=Results)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: {error}") from None


def latest(directory: Path, machine: Machine, *, but: Path | None = None) -> tuple[Path, Results] | None:
    """The newest stored result of a machine that looks the same, other than `but`; files that are no results are passed over."""
    found: list[tuple[str, Path, Results]] = []
    for path in sorted(directory.glob("*.json")):
        if but is not None and path.resolve() == but.resolve():
            continue
        try:
            results = read(path)
        except FormatError:
            continue
        if results.machine.look == machine.look:
            found.append((results.created, path, results))
    if not found:
        return None
    _, path, results = max(found, key=lambda each: each[0])
    return path, results
