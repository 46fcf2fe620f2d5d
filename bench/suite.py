"""The standard runs: what is measured, and for how long, so that all of it ends in time on two cores."""

from __future__ import annotations

from bench.options import Options, Rate
from bench.runner import Job

#: One caller, and the concurrency at which peak rates are told; 64 is left to longer runs.
LEVELS = (1, 1024)
HALF = (Rate.parse("50%"),)


def standard_jobs(peers: tuple[str, ...]) -> list[Job]:
    """Under ten minutes on two cores with all peers: about five for the grid, about four for the peers."""
    calls = Options(duration_s=3.0, warm_up_s=1.0, runs=3, concurrency=LEVELS, rates=HALF)
    curve = Options(duration_s=1.5, warm_up_s=0.3, concurrency=(4, 16, 64, 256))
    short = Options(duration_s=2.0, warm_up_s=0.5, concurrency=(1024,))
    return [
        Job(("write", "read", "one"), calls),
        Job(("write", "read"), curve),
        Job(("mixed", "map", "chain", "fan-out", "large"), short),
        Job(("scale-clients", "idle"), short),
        Job(("failover", "drain"), short),
        Job(("storm",), short),
        Job(("million",), Options(duration_s=3.0, concurrency=(1024,), actors=100_000)),
        Job(("partitions",), Options(duration_s=2.0, warm_up_s=0.5, concurrency=(1024,), partitions=(512,), partitions_given=True)),
        # The same scenarios as ours at the ends, in shorter runs; a peer's fault comes last, since its node does not come back.
        Job((), Options(duration_s=2.0, warm_up_s=0.5, concurrency=LEVELS), peers, compared=("write", "read", "failover")),
    ]


def quick_jobs() -> list[Job]:
    """Calls only, for the time between two changes of the code."""
    options = Options(duration_s=3.0, warm_up_s=1.0, runs=3, concurrency=(1, 1024))
    return [Job(("write", "read"), options), Job(("map",), options)]
