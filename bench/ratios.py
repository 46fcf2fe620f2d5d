"""How many times another system's rate, and how much less processor time, in the same run at the same concurrency.

Of turns that followed one another where there were such; else of rows that may be minutes apart, in which a shared machine changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bench.results import OURS, Row

LIMIT_SYSTEM = "echo"
#: The grid's turns between those of peers.
BESIDE = "beside"


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """One comparison.

    :ivar rate: our calls/s divided by theirs
    :ivar cpu: their CPU per call divided by ours
    :ivar p50: their median latency divided by ours
    :ivar is_beside: they took turns
    """

    operation: str
    system: str
    in_flight: int
    ours: Row
    theirs: Row
    rate: float
    cpu: float
    p50: float
    is_beside: bool = False

    @property
    def is_limit(self) -> bool:
        """Whether the other one is a bare echo: what is possible, and no competitor."""
        return self.system == LIMIT_SYSTEM


def ratios_of(rows: Sequence[Row]) -> list[Ratio]:
    """Every peer's row against ours with the same operation and payload, and as many in flight; the best rate first."""
    found: list[Ratio] = []
    for theirs in rows:
        if theirs.system == OURS or not theirs.runs or theirs.scenario not in ("write", "read", LIMIT_SYSTEM):
            continue
        for operation in ("write", "read"):
            if theirs.operation not in (operation, LIMIT_SYSTEM):
                continue
            beside = theirs.beside.get(operation)
            ours = ours_of(rows, operation, theirs.in_flight, payload_bytes=theirs.payload_bytes, scenario=BESIDE)
            if beside is not None and ours is not None:
                found.append(
                    Ratio(operation, theirs.system, theirs.in_flight, ours, theirs, beside.rate, beside.cpu, beside.p50, is_beside=True)
                )
                continue
            ours = ours_of(rows, operation, theirs.in_flight, payload_bytes=theirs.payload_bytes)
            if ours is not None and theirs.calls_per_s and ours.cpu_us_per_call and ours.p50_ms:
                found.append(
                    Ratio(
                        operation,
                        theirs.system,
                        theirs.in_flight,
                        ours,
                        theirs,
                        rate=ours.calls_per_s / theirs.calls_per_s,
                        cpu=theirs.cpu_us_per_call / ours.cpu_us_per_call,
                        p50=theirs.p50_ms / ours.p50_ms,
                    )
                )
    return sorted(found, key=lambda each: (each.operation != "write", each.in_flight, -each.rate))


def ours_of(
    rows: Sequence[Row], operation: str, in_flight: int, *, payload_bytes: int | None = None, scenario: str | None = None
) -> Row | None:
    """Our row of an operation in a closed loop: the most replicas, one client, that payload; without one asked for the smallest.

    :param scenario: None: that of the operation's name
    """
    found = [
        row
        for row in rows
        if row.system == OURS
        and (row.scenario, row.operation) == (scenario or operation, operation)
        and row.loop == "closed"
        and row.in_flight == in_flight
        and row.runs
        if payload_bytes in (None, row.payload_bytes)
    ]
    return min(found, key=lambda row: (-row.replicas, row.clients, row.payload_bytes), default=None)
