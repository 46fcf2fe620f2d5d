"""What one actor sees of its state: the changes that are not applied yet, laid over the entries that are.

An entry is a suffix (bytes within the actor) and a value (bytes). A change goes this way::

    put, delete -> (turn) -> take_changes -> (the host proposes it) -> logged(lsn) -> ... -> settle(applied_lsn)
                          \\_ rollback _/

1. Until it is settled a change is visible in the overlay; from then on it is visible in the source. Nothing is ever between the two.
2. `rollback` undoes exactly what was changed since the last `logged`, and nothing of what is in the log.
3. A scan is the state of the moment it was called, whatever happens afterwards.

A view belongs to one activation and is used by one turn at a time. It does no I/O of its own and knows no types: that is `collections`.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Literal, Protocol

__all__ = ["EntrySource", "MemorySource", "StateView"]


class EntrySource(Protocol):
    """The applied entries of one actor. The host implements it on storage, `MemorySource` in memory."""

    def get(self, suffix: bytes) -> bytes | None:
        """The value at `suffix`, or None."""

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Entries with ``start <= suffix < stop`` in byte order, a snapshot of the moment of the call (not of the first ``next``)."""


class MemorySource:
    """An `EntrySource` in a dict: for collections used without a grid, and for tests."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def get(self, suffix: bytes) -> bytes | None:
        """The value at `suffix`, or None."""
        return self.entries.get(suffix)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Entries of the range at this moment. Costs a sort."""
        return iter(sorted(((key, value) for key, value in self.entries.items() if start <= key < stop), reverse=reverse))

    def apply(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Does to the entries what applying a log entry does in storage."""
        for suffix, value in changes:
            if value is None:
                self.entries.pop(suffix, None)
            else:
                self.entries[suffix] = value


class _Sentinel(enum.Enum):
    NOT_THERE = enum.auto()


_NOT_THERE: Final = _Sentinel.NOT_THERE  #: the overlay says nothing of a suffix; None in it means deleted
_Overlaid = bytes | Literal[_Sentinel.NOT_THERE] | None


class StateView:
    """The overlay of one actor between its memory and its applied state.

    :param source: the applied entries
    :param writable: whether the running turn may write. The host sets the attribute of this name at the start and end of
        every turn; False outside of turns, so that a write that belongs to none is an error and not a loss
    """

    __slots__ = ("_batches", "_logged_lsn", "_lsn_of", "_overlay", "_sorted", "_source", "_taken", "_turn", "writable")

    def __init__(self, source: EntrySource, *, writable: bool = False) -> None:
        self.writable = writable
        self._source = source
        self._overlay: dict[bytes, bytes | None] = {}  # all that is not settled, this turn included
        self._turn: dict[bytes, _Overlaid] = {}  # suffix -> what the overlay held before this turn; in first-touched order
        self._taken = False
        self._lsn_of: dict[bytes, int] = {}  # of the last change in the log
        self._batches: deque[tuple[int, list[bytes]]] = deque()  # what was logged, oldest first
        self._logged_lsn = 0
        # Keys of the overlay in order. Made at the first scan and then kept up, so that a turn that scans between its
        # writes pays a memmove each and not a sort; given up when keys leave the overlay.
        self._sorted: list[bytes] | None = None

    # For the actor's collections

    def get(self, suffix: bytes) -> bytes | None:
        """The visible value at `suffix`, or None. One dict look-up, and one of the source if that has no answer."""
        value = self._overlay.get(suffix, _NOT_THERE)
        return self._source.get(suffix) if value is _NOT_THERE else value

    def put(self, suffix: bytes, value: bytes) -> bool:
        """Sets the value at `suffix`; returns whether there was none before.

        A value identical to the visible one is no change. The look-up this takes is repaid: a collection has to know
        whether the key is new anyway (hence the result), and a change that is none would be logged, sent and synced.

        :raises TypeError: the running turn may not write
        """
        if not self.writable:
            raise self._not_writable(suffix)
        assert not self._taken, "a turn wrote before the changes of the one before it were logged or rolled back"
        overlaid = self._overlay.get(suffix, _NOT_THERE)
        before = self._source.get(suffix) if overlaid is _NOT_THERE else overlaid
        if before == value:
            return False
        self._change(suffix, overlaid, value)
        return before is None

    def delete(self, suffix: bytes) -> bool:
        """Deletes the entry at `suffix`; returns whether there was one. Without one it is no change.

        :raises TypeError: the running turn may not write
        """
        if not self.writable:
            raise self._not_writable(suffix)
        assert not self._taken, "a turn wrote before the changes of the one before it were logged or rolled back"
        overlaid = self._overlay.get(suffix, _NOT_THERE)
        if (self._source.get(suffix) if overlaid is _NOT_THERE else overlaid) is None:
            return False
        self._change(suffix, overlaid, None)
        return True

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Visible entries with ``start <= suffix < stop`` in byte order, as they are now, whatever changes while iterating.

        Costs O(unsettled changes in the range) at the call, for the snapshot, and is lazy in what the source holds.
        """
        entries = self._source.scan(start, stop, reverse=reverse)
        changes = [(suffix, self._overlay[suffix]) for suffix in self._changed_between(start, stop, reverse=reverse)]
        return _merge(entries, iter(changes), reverse=reverse) if changes else entries

    def first(self, start: bytes, stop: bytes, *, reverse: bool = False) -> tuple[bytes, bytes] | None:
        """The first entry that `scan` would give, without its cost of a snapshot."""
        entries = self._source.scan(start, stop, reverse=reverse)
        changes = ((suffix, self._overlay[suffix]) for suffix in self._changed_between(start, stop, reverse=reverse))
        return next(_merge(entries, changes, reverse=reverse), None)

    # For the host

    def take_changes(self) -> list[tuple[bytes, bytes | None]]:
        """What this turn changed: last value per suffix, None for deleted, in first-touched order. Ends the turn.

        If it is not empty, `logged` or `rollback` (the entry is too large, say) comes before the next turn writes.
        """
        assert not self._taken, "changes were taken again before those taken last were logged or rolled back"
        self._taken = bool(self._turn)
        return [(suffix, self._overlay[suffix]) for suffix in self._turn]

    def logged(self, lsn: int) -> None:
        """The changes just taken are in the log at `lsn`. They stay visible. After an empty take it does nothing."""
        assert self._taken or not self._turn, f"logged({lsn}) in the middle of a turn: take_changes() comes first"
        if not self._taken:
            return
        assert lsn > self._logged_lsn, f"logged at {lsn}, but there are changes logged at {self._logged_lsn}"
        suffixes = list(self._turn)
        for suffix in suffixes:
            self._lsn_of[suffix] = lsn
        self._batches.append((lsn, suffixes))
        self._logged_lsn = lsn
        self._turn = {}
        self._taken = False

    def settle(self, applied_lsn: int) -> None:
        """The source now has what was logged at or below `applied_lsn`: forget it, unless changed again later. O(what is forgotten)."""
        batches = self._batches
        while batches and batches[0][0] <= applied_lsn:
            lsn, suffixes = batches.popleft()
            for suffix in suffixes:
                if self._lsn_of[suffix] != lsn:
                    continue  # logged again later
                del self._lsn_of[suffix]
                if suffix in self._turn:
                    self._turn[suffix] = _NOT_THERE  # a rollback goes back to the source
                else:
                    del self._overlay[suffix]
                    self._sorted = None

    def rollback(self) -> None:
        """Forgets the changes of the current turn, also when they were taken but not logged."""
        for suffix, before in self._turn.items():
            if before is _NOT_THERE:
                del self._overlay[suffix]
                self._sorted = None
            else:
                self._overlay[suffix] = before
        self._turn = {}
        self._taken = False

    @property
    def has_changes(self) -> bool:
        """Whether the current turn has changed anything (what was changed in place shows only after `flush`)."""
        return bool(self._turn)

    @property
    def unsettled(self) -> bool:
        """Whether there is any change that is not in the source."""
        return bool(self._overlay)

    def _change(self, suffix: bytes, overlaid: _Overlaid, value: bytes | None) -> None:
        if suffix not in self._turn:
            self._turn[suffix] = overlaid
            if overlaid is _NOT_THERE and self._sorted is not None:
                insort(self._sorted, suffix)
        self._overlay[suffix] = value

    def _changed_between(self, start: bytes, stop: bytes, *, reverse: bool) -> Iterator[bytes]:
        if not self._overlay:
            return iter(())
        keys = self._sorted
        if keys is None:
            keys = self._sorted = sorted(self._overlay)
        indexes = range(bisect_left(keys, start), bisect_left(keys, stop))
        return map(keys.__getitem__, reversed(indexes) if reverse else indexes)

    @staticmethod
    def _not_writable(suffix: bytes) -> TypeError:
        field_name = suffix.partition(b"\0")[0].decode(errors="replace")
        return TypeError(
            f"a @grid.read method may change nothing: it changed the field {field_name!r}; leave @grid.read away or the change"
        )


def _merge(
    entries: Iterator[tuple[bytes, bytes]], changes: Iterator[tuple[bytes, bytes | None]], *, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Two streams in the same order as one; of an equal suffix the change stands, and None hides the entry."""
    entry = next(entries, None)
    for suffix, value in changes:
        while entry is not None and (entry[0] > suffix if reverse else entry[0] < suffix):
            yield entry
            entry = next(entries, None)
        if entry is not None and entry[0] == suffix:
            entry = next(entries, None)
        if value is not None:
            yield suffix, value
    if entry is not None:
        yield entry
        yield from entries
