"""What callers were told, to be held against what is stored: every acknowledged change once, none lost, none twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How what is stored compares with what callers were told.

    :ivar acknowledged: changes that callers were told of
    :ivar failed: calls that raised, of which some may have taken effect
    :ivar lost: acknowledged changes that are not there
    :ivar doubled: changes that are there and that nobody can have asked for
    """

    acknowledged: int
    failed: int
    lost: int
    doubled: int

    @property
    def is_clean(self) -> bool:
        return not self.lost and not self.doubled


class Book:
    """Counts changes by key while calls run. The call numbered n goes to key n modulo `keys`, and adds one.

    :param is_change: whether the call of that number changes anything; default: all do
    :param refusals: errors that promise that nothing happened; after any other error the change may be there or not
    """

    def __init__(
        self, keys: int, *, is_change: Callable[[int], bool] | None = None, refusals: tuple[type[BaseException], ...] = ()
    ) -> None:
        self.keys = keys
        self.acknowledged = [0] * keys
        self.unknown = [0] * keys
        self.refused = 0
        self._is_change = is_change
        self._refusals = refusals

    @classmethod
    def told(cls, acknowledged: list[int], unknown: list[int], refused: int = 0) -> Book:
        """The book of callers in another process."""
        made = cls(len(acknowledged))
        made.acknowledged, made.unknown, made.refused = acknowledged, unknown, refused
        return made

    @property
    def failures(self) -> int:
        """Calls that raised, whatever became of them; of a mix, those that would have changed something."""
        return self.refused + sum(self.unknown)

    def answered(self, number: int) -> None:
        if self._is_change is None or self._is_change(number):
            self.acknowledged[number % self.keys] += 1

    def failed(self, number: int, error: BaseException) -> None:
        if isinstance(error, self._refusals):
            self.refused += 1
        elif self._is_change is None or self._is_change(number):
            self.unknown[number % self.keys] += 1

    def merge(self, other: Book) -> None:
        """Add the book of another client process.

        :raises ValueError: it is of other keys
        """
        if other.keys != self.keys:
            raise ValueError(f"books of {self.keys} and {other.keys} keys cannot be merged")
        self.acknowledged = [mine + theirs for mine, theirs in zip(self.acknowledged, other.acknowledged, strict=True)]
        self.unknown = [mine + theirs for mine, theirs in zip(self.unknown, other.unknown, strict=True)]
        self.refused += other.refused

    def judge(self, stored: Sequence[int]) -> Verdict:
        """Compare with the changes that are stored, by key.

        :raises ValueError: not one number for each key
        """
        if len(stored) != self.keys:
            raise ValueError(f"expected a number for each of {self.keys} keys, got {len(stored)}")
        lost = doubled = 0
        for there, told, unknown in zip(stored, self.acknowledged, self.unknown, strict=True):
            lost += max(0, told - there)
            doubled += max(0, there - told - unknown)
        return Verdict(sum(self.acknowledged), self.failures, lost, doubled)

    def spread(self, places: Sequence[Sequence[int]], size: int) -> Book:
        """The same by place, where a call changes several: that of key k adds one to each of ``places[k]``, all below `size`.

        Of a failed call each change may be there or not by itself.
        """
        made = Book(size)
        for where, told, unknown in zip(places, self.acknowledged, self.unknown, strict=True):
            for place in where:
                made.acknowledged[place] += told
                made.unknown[place] += unknown
        made.refused = self.refused
        return made
