"""What `Map` and `List` share: the stored entries of one field, the values of them that a turn has in its hands, and who else holds those.

The rules are those of `collections`.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from actorgrid.actor.types import ATOMS, ValueCodec
from actorgrid.actor.view import StateView

#: Remembered values before a sweep. Large enough that ordinary turns never sweep, small beside one storage block cache.
HANDED_OUT_MAX: Final = 512


def _collect(holder: list[Any]) -> tuple[list[Any], list[int]] | None:
    """The objects that `holder` is made of, but for atoms and itself, and how many references each has from within.

    None if there is one of a class whose inside is not known. In a function of its own, so that no local variable here is
    still a reference to any of them when they are counted.
    """
    nodes: list[Any] = []
    inner_references: list[int] = []
    position_of: dict[int, int] = {}
    at = -1
    while at < len(nodes):
        node = holder if at < 0 else nodes[at]
        at += 1
        parts: Iterable[Any]
        if isinstance(node, list | tuple | set | frozenset):
            parts = node
        elif isinstance(node, dict):
            parts = itertools.chain(node.keys(), node.values())
        elif isinstance(node, msgspec.Struct):
            parts = (getattr(node, name) for name in node.__struct_fields__)
        elif isinstance(node, bytearray):
            continue
        elif dataclasses.is_dataclass(node):
            # The dict is a part of its own, as somebody may hold vars(value).
            own = getattr(node, "__dict__", None)
            parts = (own,) if own is not None else (getattr(node, field.name) for field in dataclasses.fields(node))
        else:
            return None
        for part in parts:
            # The empty tuple and frozenset are one object in all of Python.
            if type(part) in ATOMS or isinstance(part, enum.Enum) or (not part and type(part) in (tuple, frozenset)):
                continue
            position = position_of.get(id(part))
            if position is None:
                position_of[id(part)] = len(nodes)
                nodes.append(part)
                inner_references.append(1)
            else:
                inner_references[position] += 1
    return nodes, inner_references


def _held_elsewhere(holder: list[Any]) -> bool:
    """Whether anything but `holder` refers to what it holds, directly or to a part. True when that cannot be told."""
    collected = _collect(holder)
    if collected is None:
        return True
    nodes, inner_references = collected
    counted = map(sys.getrefcount, nodes)
    return any(count > inner + _OWN_REFERENCES for count, inner in zip(counted, inner_references, strict=True))


def _count_own_references() -> int:
    """What `sys.getrefcount` says in `_held_elsewhere` of an object with no other reference: measured, as it is an interpreter's affair."""
    nodes: list[Any] = [[]]
    return max(map(sys.getrefcount, nodes))


_OWN_REFERENCES: Final = _count_own_references()


class Entries:
    """Stored entries of one field: handing values out, finding what was changed in them, iterating."""

    __slots__ = ("_field_name", "_handed_out", "_header_changed", "_prefix", "_stop", "_sweep_at", "_values", "_version", "_view")

    def _attach(self, field_name: str, view: StateView, values: ValueCodec, *, handed_out_max: int = HANDED_OUT_MAX) -> None:
        self._field_name = field_name
        self._view = view
        self._values = values
        self._prefix = field_name.encode() + b"\0"
        self._stop = field_name.encode() + b"\1"
        self._header_changed = False
        self._handed_out: dict[bytes, list[Any]] = {}  # suffix -> [value, its encoding as it is in the view]
        self._sweep_at = handed_out_max
        self._version = 0  # changes when an entry was replaced or deleted, so that iterators look again

    # For the host

    def flush(self) -> None:
        """Writes the header and what was changed in place into the view. At the end of a writing turn, before `take_changes`.

        :raises TypeError: a changed value no longer fits its type; names field, key, expected and given
        """
        for suffix, entry in self._handed_out.items():
            self._write_back(suffix, entry)
        if self._header_changed:
            self._write_header()
            self._header_changed = False

    def forget(self) -> None:
        """Drops what was handed out and the cached header. After every turn, and after a rollback."""
        self._handed_out.clear()
        self._sweep_at = HANDED_OUT_MAX
        self._header_changed = False
        self._version += 1
        self._forget_header()

    def changed_in_place(self) -> str | None:
        """What was changed in place and not written yet, for people (``seen['a']``), or None. After a reading turn, before `forget`."""
        for suffix, entry in self._handed_out.items():
            try:
                changed = self._changed_data(entry) is not None
            except TypeError:
                changed = True  # not even of its type any more
            if changed:
                return self._where(suffix)
        return None

    @property
    def has_handed_out(self) -> bool:
        """Whether this turn holds values that it may yet change in place. `forget` would lose such a change: it is for the turn's end."""
        return bool(self._handed_out)

    def _write_header(self) -> None:
        raise NotImplementedError

    def _forget_header(self) -> None:
        raise NotImplementedError

    def _show_key(self, suffix: bytes) -> str:
        raise NotImplementedError

    def _where(self, suffix: bytes) -> str:
        return f"{self._field_name}[{self._show_key(suffix)}]"

    # Entries

    def _put(self, suffix: bytes, value: Any) -> bool:
        """Sets an entry; returns whether there was none."""
        try:
            data = self._values.pack(value)
        except TypeError as error:
            raise TypeError(f"{self._where(suffix)}: {error}") from None
        # The value of before is nobody's entry any more: a sweep or flush must not write it over the new one.
        self._handed_out.pop(suffix, None)
        is_new = self._view.put(suffix, data)
        if not self._values.immutable:
            # Whoever gave the value may change it until the turn ends, as with a dict.
            self._make_room()
            self._handed_out[suffix] = [value, data]
            self._version += 1
        return is_new

    def _delete(self, suffix: bytes) -> bool:
        """Deletes an entry; returns whether there was one. A value handed out of it is the actor's own from now on."""
        if not self._view.delete(suffix):
            return False
        self._handed_out.pop(suffix, None)
        self._version += 1
        return True

    def _load(self, suffix: bytes, default: Any) -> Any:
        """The value of an entry as it is handed out, or `default`."""
        if self._values.immutable:
            data = self._view.get(suffix)
            return default if data is None else self._values.decode(data)
        entry = self._handed_out.get(suffix)
        if entry is not None:
            return entry[0]
        data = self._view.get(suffix)
        return default if data is None else self._hand_out(suffix, data)

    def _hand_out(self, suffix: bytes, data: bytes) -> Any:
        self._make_room()
        value = self._values.decode(data)
        self._handed_out[suffix] = [value, data]
        return value

    def _iterate(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, Any]]:
        """Suffix and value of the entries that are in the range now (rule 4)."""
        entries = self._view.scan(start, stop, reverse=reverse)
        if self._values.immutable:
            decode = self._values.decode
            return ((suffix, decode(data)) for suffix, data in entries)
        return self._iterate_mutable(entries, self._version)

    def _iterate_mutable(self, entries: Iterator[tuple[bytes, bytes]], version: int) -> Iterator[tuple[bytes, Any]]:
        # No local variable holds a value here: it would keep the value before last from being forgotten in a sweep.
        for suffix, data in entries:
            if suffix in self._handed_out:
                yield suffix, self._handed_out[suffix][0]
                continue
            current = data if version == self._version else self._view.get(suffix)
            if current is not None:
                yield suffix, self._hand_out(suffix, current)

    def _clear(self, start: bytes, stop: bytes, limit: int | None) -> int:
        check_limit(limit)
        count = 0
        for suffix, _ in itertools.islice(self._view.scan(start, stop), limit):
            count += self._delete(suffix)
        return count

    # In-place changes

    def _changed_data(self, entry: list[Any]) -> bytes | None:
        """The checked encoding of a remembered value if it differs from the stored one, else None."""
        value, stored = entry
        try:
            data = self._values.encode(value)
        except (TypeError, OverflowError, ValueError, RecursionError):
            return self._values.pack(value)  # raises, and says what was expected
        # The second comparison: a set, or a class that has got another field since, encodes otherwise than what is stored
        # although nobody changed it; a read would be reported as a write.
        if data == stored or data == self._values.encode(self._values.decode(stored)):
            return None
        return self._values.pack(value)

    def _write_back(self, suffix: bytes, entry: list[Any]) -> bool:
        try:
            data = self._changed_data(entry)
        except TypeError as error:
            raise TypeError(f"{self._where(suffix)} was changed in place: {error}") from None
        if data is None:
            return False
        self._view.put(suffix, data)
        entry[1] = data
        self._version += 1
        return True

    def _make_room(self) -> None:
        """Rule 2. Amortised: the next sweep comes only when twice as much is remembered as this one had to keep."""
        if len(self._handed_out) < self._sweep_at:
            return
        for suffix in list(self._handed_out):
            entry = self._handed_out[suffix]
            self._write_back(suffix, entry)  # in a turn that may not write this raises, which is right
            if not _held_elsewhere(entry):
                del self._handed_out[suffix]
        self._sweep_at = max(HANDED_OUT_MAX, 2 * len(self._handed_out))


def check_limit(limit: int | None) -> None:
    """A count of entries, or None for all of them.

    :raises ValueError: it is neither
    """
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ValueError(f"limit: expected None or an int of at least 0, got {limit!r:.80}")
