"""What a load in another process saw and was told: one line of JSON from a client process, or from a peer's child."""

from __future__ import annotations

from typing import Self

import msgspec

from bench.book import Book
from bench.latencies import Latencies
from bench.load import Load


class LoadAnswer(msgspec.Struct, kw_only=True):
    """A `bench.load.Load` without its timeline, and a `bench.book.Book`.

    :ivar latencies: HDR histogram
    """

    calls: int
    failed: int
    elapsed_s: float
    latencies: str
    errors: dict[str, int]
    longest_gap_s: float
    folding_cpu_s: float
    acknowledged: list[int]
    unknown: list[int]
    refused: int

    @classmethod
    def of(cls, load: Load, book: Book) -> Self:
        return cls(
            calls=load.calls,
            failed=load.failed,
            elapsed_s=load.elapsed_s,
            latencies=load.latencies.encode(),
            errors=load.errors,
            longest_gap_s=load.longest_gap_s,
            folding_cpu_s=load.folding_cpu_s,
            acknowledged=book.acknowledged,
            unknown=book.unknown,
            refused=book.refused,
        )

    def load(self) -> Load:
        return Load(
            calls=self.calls,
            failed=self.failed,
            elapsed_s=self.elapsed_s,
            latencies=Latencies.decode(self.latencies),
            errors=self.errors,
            longest_gap_s=self.longest_gap_s,
            folding_cpu_s=self.folding_cpu_s,
        )

    def book(self) -> Book:
        return Book.told(self.acknowledged, self.unknown, self.refused)
