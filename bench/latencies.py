"""Latencies as an HDR histogram: three digits from 1 us to ten minutes, mergeable, and small enough to be stored with each row.

The stored form is the compressed V2 encoding of HdrHistogram, which other HDR tools read. Values are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

LOWEST_NS = 1_000
HIGHEST_NS = 600 * 10**9
DIGITS = 3
#: For the curve of a row: enough for a smooth line, and the tail up to five nines.
CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995, 99.999)


class Latencies:
    """How long calls took. Add with `add` while measuring is over: it costs about 0.1 us a call, so not on a hot path."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)

    @classmethod
    def of_ns(cls, values: Iterable[int] | Sequence[int]) -> Latencies:
        """Those of a finished measurement, in nanoseconds; below 1 us counts as 1 us, above ten minutes as ten minutes."""
        made = cls()
        made.add(values)
        return made

    @classmethod
    def decode(cls, text: str) -> Latencies:
        """What `encode` made.

        :raises ValueError: it is no HDR histogram
        """
        made = cls()
        if text:
            try:
                made._histogram.decode_and_add(text)
            except Exception as error:
                raise ValueError(f"no HDR histogram: {text[:40]!r}: {error}") from error
        return made

    def encode(self) -> str:
        """Base64 text, a few kilobytes; empty if nothing was recorded."""
        return bytes(self._histogram.encode()).decode() if self.count else ""

    def add(self, values: Iterable[int] | Sequence[int]) -> None:
        """Record durations in nanoseconds."""
        array: np.ndarray[Any, np.dtype[np.int64]] = np.array(
            values if isinstance(values, Sequence | np.ndarray) else list(values), dtype=np.int64
        )
        if not len(array):
            return
        array = np.clip(array, LOWEST_NS, HIGHEST_NS)
        # Equal values are recorded together. Folding rounds down to 1/2048 of the value, finer than the three digits that are kept; the
        # slowest call, which has a column of its own, stays exact.
        slowest = int(array.max())
        shift = np.maximum(np.floor(np.log2(array)).astype(np.int64) - 11, 0)
        rounded = np.where(array == slowest, slowest, (array >> shift) << shift)
        folded, counts = np.unique(rounded, return_counts=True)
        for value, count in zip(folded.tolist(), counts.tolist(), strict=True):
            self._histogram.record_value(value, count)

    def merge(self, other: Latencies) -> None:
        """Add another's; for several runs and several client processes."""
        if other.count:
            self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        return int(self._histogram.total_count)

    @property
    def slowest_ms(self) -> float:
        """The slowest single call; 0 if there was none."""
        return float(self._histogram.get_max_value()) / 1e6 if self.count else 0.0

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` (0..100) of the calls did not exceed; 0 if there was none."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e6 if self.count else 0.0

    def curve(self) -> list[tuple[float, float]]:
        """(percentile, ms) pairs for a plot, as far out as there are calls to tell."""
        told = [percent for percent in CURVE if percent <= 50 or (100 - percent) / 100 * self.count >= 1]
        return [(percent, self.percentile_ms(percent)) for percent in told] if self.count else []
