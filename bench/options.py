"""What a run is asked for, and what one text of it means."""

from __future__ import annotations

import dataclasses
import re

RATE_PATTERN = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<percent>%?)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of one run of the harness.

    :ivar duration_s: of each run of each row
    :ivar warm_up_s: before the first run of each row
    :ivar concurrency: callers of the closed loop; each level is a row
    :ivar hosts: of scenarios that do not vary them
    :ivar partitions: the first is that of scenarios that do not vary them
    :ivar partitions_given: whether somebody asked for `partitions`
    :ivar replicas: replica set sizes, each measured
    :ivar actors: None: what fits the scenario
    :ivar rates: of open loops after the closed ones; see `Rate`
    :ivar runs: of each row
    """

    duration_s: float = 5.0
    warm_up_s: float = 1.0
    concurrency: tuple[int, ...] = (1, 64, 1024)
    hosts: int = 3
    partitions: tuple[int, ...] = (64,)
    partitions_given: bool = False
    replicas: tuple[int, ...] = (3,)
    payload_bytes: int = 0
    actors: int | None = None
    rates: tuple[Rate, ...] = ()
    runs: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """Of an open loop: calls per second, or a part of the peak that was measured just before.

    :ivar label: as it was asked for
    """

    label: str
    calls_per_s: float = 0.0
    part: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Rate:
        """``20000`` or ``50%``.

        :raises ValueError: it is neither, or not above zero
        """
        match = RATE_PATTERN.fullmatch(text.strip())
        number = float(match["number"]) if match else 0.0
        if match is None or not number:
            raise ValueError(f"expected calls per second or a part of the peak, like 20000 or 50%, got {text!r}")
        if match["percent"]:
            return cls(text.strip(), part=number / 100)
        return cls(text.strip(), calls_per_s=number)

    def of(self, peak: float) -> float:
        """Calls per second, with such a peak."""
        return self.part * peak if self.part else self.calls_per_s


def parse_numbers(text: str, *, low: int = 1, high: int = 1_000_000) -> tuple[int, ...]:
    """Whole numbers separated by commas, doubles removed.

    :raises ValueError: one is no whole number, or outside `low`..`high`
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        word = part.strip().replace("_", "")
        if not word.isdigit() or not low <= int(word) <= high:
            raise ValueError(f"expected whole numbers from {low:,} to {high:,}, separated by commas, got {part.strip()!r}")
        found[int(word)] = None
    return tuple(found)
