"""`Map` and `List`: collections of an actor that are stored entry by entry and never loaded whole.

Within the actor an entry lies at ``field name + 00 + key bytes`` (`keys`; for a List the index + 2**63 in 8 bytes
big-endian), and the header (Map: the count; List: head and tail index; absent when empty) at ``field name``. Values and
header are MessagePack.

What the actor can rely on:

1. **No in-place change is lost.** A value of a mutable type that was handed out or set (``m[k].append(x)``) is remembered
   for the turn, encoded again at its end, and written when it differs. Within a turn a key gives the same object each time.
   A value belongs to its turn: one that is kept in some attribute and changed in a later turn is the actor's own.
2. **Memory stays bounded by what the actor itself holds.** When more than `HANDED_OUT_MAX` values are remembered, those that
   nothing else refers to (neither they nor any part of them) are written back if changed, and forgotten: nobody can change
   them any more. One that the actor still holds, whole or in part, stays remembered.
3. **What is stored can be read back.** A value is checked against the declared type when it is set and when it is written
   back; a value that would come back as something else is refused with ``TypeError``.
4. **Iteration sees the keys of the moment it began,** so the collection may be changed meanwhile. Values of immutable types
   are of that moment too. Values of mutable types are the entry's own, as of the moment they are handed out, and entries
   deleted meanwhile are left out: an old copy could be changed with no effect.

Cost is a few microseconds for each entry and one look-up in storage unless the entry was changed lately.

No I/O and no asyncio here; storage is behind `view.StateView`.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from typing import Any, Final, Generic, TypeVar, cast, get_args, overload

import msgspec

from actorgrid.actor.entries import HANDED_OUT_MAX, Entries, check_limit
from actorgrid.actor.keys import KeyCodec, key_codec, key_codec_of
from actorgrid.actor.types import ValueCodec
from actorgrid.actor.view import MemorySource, StateView

__all__ = ["HANDED_OUT_MAX", "List", "ListShape", "Map", "MapShape"]

K = TypeVar("K")
V = TypeVar("V")

_INDEX_OFFSET: Final = 1 << 63
_UNBOUND_NAME: Final = "(not bound)"


def _declared_types(collection: Any, count: int) -> tuple[Any, ...]:
    """The arguments of ``Map[str, int]()``, or Any for each of ``Map()``."""
    declared = getattr(collection, "__orig_class__", None)
    return get_args(declared) if declared is not None else (Any,) * count


_UNTYPED_VALUES: Final = ValueCodec(_UNBOUND_NAME, Any)


# Map


class MapShape(Generic[K, V]):
    """What all Maps of one field of an actor type have in common. Built once, when the class is read.

    :raises TypeError: the key or value type cannot be stored; the message names field and type
    """

    __slots__ = ("field_name", "key_codec", "values")

    def __init__(self, field_name: str, key_type: Any, value_type: Any) -> None:
        self.field_name = field_name
        try:
            self.key_codec = key_codec(key_type)
        except TypeError as error:
            raise TypeError(f"{field_name}: {error}") from None
        self.values = ValueCodec(field_name, value_type)

    def bind(self, view: StateView) -> Map[K, V]:
        """The Map of one activation."""
        bound: Map[K, V] = Map.__new__(Map)
        bound._open(self.field_name, view, self.key_codec, self.values)
        return bound

    def bind_in_memory(self) -> Map[K, V]:
        """A Map with the types of this field and a memory of its own, for an actor that is used without a grid."""
        bound: Map[K, V] = Map.__new__(Map)
        bound._open(self.field_name, StateView(MemorySource(), writable=True), self.key_codec, self.values, handed_out_max=sys.maxsize)
        return bound


class Map(Entries, MutableMapping[K, V]):
    """A sorted mapping, stored entry by entry: ``seen: grid.Map[str, int]``. It may be larger than memory.

    All that a dict does (but ``a | b`` and ``copy``), in the order of the keys instead of that of insertion, and ranges of keys
    with `scan`, `first` and `last`. ``len`` is O(1), an entry costs a look-up in storage, nothing loads the whole map. Key types:
    see `keys`.
    A key or value of another type than declared is a ``TypeError``, also in ``key in map`` and `get`.

    ``Map()`` that no grid has bound keeps its entries in memory, for unit tests of an actor class. Not knowing what was
    declared (``Map[str, int]()`` does) it takes the type of the first key for all, and any value that can be stored.
    """

    __slots__ = ("__orig_class__", "_count", "_decode_key", "_encode_bound", "_encode_key")

    _count: int | None
    _encode_key: Callable[[Any], bytes]
    _encode_bound: Callable[[Any], bytes]
    _decode_key: Callable[[bytes], Any]

    def __init__(self) -> None:
        unchosen = KeyCodec("any key", self._encode_first_key, lambda data, at: (data, at), ())
        self._open(_UNBOUND_NAME, StateView(MemorySource(), writable=True), unchosen, _UNTYPED_VALUES, handed_out_max=sys.maxsize)
        self._encode_bound = lambda bound: b""  # there is nothing to find yet

    @classmethod
    def bound(cls, field_name: str, view: StateView, key_type: Any, value_type: Any) -> Map[K, V]:
        """The Map of one field of one activation. `MapShape` does the same with what is costly done once."""
        return MapShape[K, V](field_name, key_type, value_type).bind(view)

    def _open(self, field_name: str, view: StateView, keys: KeyCodec, values: ValueCodec, *, handed_out_max: int = HANDED_OUT_MAX) -> None:
        self._attach(field_name, view, values, handed_out_max=handed_out_max)
        self._count = None
        self._use_keys(keys)

    def _use_keys(self, keys: KeyCodec) -> None:
        self._encode_key = keys.encode
        self._encode_bound = keys.encode_bound
        self._decode_key = keys.decode

    def _encode_first_key(self, key: Any) -> bytes:
        """Of an unbound Map: chooses the types at the first use, when ``Map[str, int]()`` has set its ``__orig_class__``."""
        key_type, value_type = _declared_types(self, 2)
        keys = key_codec_of(key) if key_type is Any else key_codec(key_type)
        data = keys.encode(key)
        if value_type is not Any:
            self._values = ValueCodec(_UNBOUND_NAME, value_type)
        self._use_keys(keys)
        return data

    # The dict

    def __getitem__(self, key: K) -> V:
        value = self._load(self._suffix(key), _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return cast(V, value)

    def __setitem__(self, key: K, value: V) -> None:
        if self._put(self._suffix(key), value):
            self._add_to_count(1)

    def __delitem__(self, key: K) -> None:
        if not self._delete(self._suffix(key)):
            raise KeyError(key)
        self._add_to_count(-1)

    def __contains__(self, key: object) -> bool:
        return self._view.get(self._suffix(key)) is not None

    def __len__(self) -> int:
        count = self._count
        if count is None:
            header = self._view.get(self._prefix[:-1])
            count = self._count = 0 if header is None else msgspec.msgpack.decode(header, type=int)
        return count

    def __iter__(self) -> Iterator[K]:
        return self._keys_of(self._view.scan(self._prefix, self._stop))

    def __reversed__(self) -> Iterator[K]:
        return self._keys_of(self._view.scan(self._prefix, self._stop, reverse=True))

    def __eq__(self, other: object) -> bool:
        """Against any mapping. Not loaded whole: one entry after the other, until one differs."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return len(self) == len(other) and all(other.get(key, _MISSING) == value for key, value in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Never the entries: a log line must not read a gigabyte.
        return f"<grid.Map {self._field_name}: {len(self)} entries>"

    def __ior__(self, other: Mapping[K, V] | Iterable[tuple[K, V]]) -> Map[K, V]:
        self.update(other)
        return self

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    @overload
    def get(self, key: K, default: Any = None, /) -> Any: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        """The value of `key`, or `default`, which is not stored (`setdefault` does that)."""
        return self._load(self._suffix(key), default)

    def items(self) -> ItemsView[K, V]:
        """Keys and values in the order of the keys."""
        return _MapItems(self)

    def values(self) -> ValuesView[V]:
        """Values in the order of their keys."""
        return _MapValues(self)

    def popitem(self) -> tuple[K, V]:
        """Removes and returns the entry with the smallest key (a dict's: the one set last).

        :raises KeyError: the map is empty
        """
        item = self.first()
        if item is None:
            raise KeyError("popitem of an empty grid.Map")
        del self[item[0]]
        return item

    def clear(self, *, limit: int | None = None) -> None:
        """Removes all entries, or the `limit` with the smallest keys.

        It reads in a stream, but each removal is a change of the turn, and a turn is one entry of the log: a large map is
        cleared in several turns, ``limit`` entries each.
        """
        removed = self._clear(self._prefix, self._stop, limit)
        if removed:
            self._add_to_count(-removed)

    # Ranges

    def scan(self, start: Any = None, stop: Any = None, *, reverse: bool = False, limit: int | None = None) -> Iterator[tuple[K, V]]:
        """Items with ``start <= key < stop``, in the order of the keys or against it.

        :param start: first key, or None for the smallest. For tuple keys a shorter tuple will do: ``("a",)`` is before all ``("a", ...)``
        :param stop: the key to stop before, or None for no end
        :param limit: at most so many items
        :raises TypeError, ValueError: a bound is no key
        """
        check_limit(limit)
        low = self._prefix if start is None else self._bound_suffix(start)
        high = self._stop if stop is None else self._bound_suffix(stop)
        if low >= high:
            return iter(())
        return itertools.islice(self._items_of(self._iterate(low, high, reverse=reverse)), limit)

    def first(self) -> tuple[K, V] | None:
        """The item with the smallest key, or None when empty. Cheaper than a `scan`."""
        return self._end(reverse=False)

    def last(self) -> tuple[K, V] | None:
        """The item with the largest key, or None when empty. Cheaper than a `scan`."""
        return self._end(reverse=True)

    def _end(self, *, reverse: bool) -> tuple[K, V] | None:
        entry = self._view.first(self._prefix, self._stop, reverse=reverse)
        return None if entry is None else (self._key(entry[0]), self._load(entry[0], None))

    def _suffix(self, key: Any) -> bytes:
        try:
            return self._prefix + self._encode_key(key)
        except TypeError as error:
            raise TypeError(f"{self._field_name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self._field_name}: {error}") from None

    def _bound_suffix(self, bound: Any) -> bytes:
        try:
            return self._prefix + self._encode_bound(bound)
        except TypeError as error:
            raise TypeError(f"{self._field_name}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self._field_name}: {error}") from None

    def _key(self, suffix: bytes) -> K:
        return cast(K, self._decode_key(suffix[len(self._prefix) :]))

    def _keys_of(self, entries: Iterator[tuple[bytes, bytes]]) -> Iterator[K]:
        return (self._key(suffix) for suffix, _ in entries)

    def _items_of(self, entries: Iterator[tuple[bytes, Any]]) -> Iterator[tuple[K, V]]:
        return ((self._key(entry[0]), entry[1]) for entry in entries)

    def _add_to_count(self, difference: int) -> None:
        self._count = len(self) + difference
        self._header_changed = True

    def _write_header(self) -> None:
        if self._count:
            self._view.put(self._prefix[:-1], msgspec.msgpack.encode(self._count))
        else:
            self._view.delete(self._prefix[:-1])

    def _forget_header(self) -> None:
        self._count = None

    def _show_key(self, suffix: bytes) -> str:
        return f"{self._key(suffix)!r:.80}"


class _MapItems(ItemsView[K, V]):
    """Items in one pass over storage; the inherited view looks every key up."""

    _mapping: Map[K, V]
    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.scan()

    def __reversed__(self) -> Iterator[tuple[K, V]]:
        return self._mapping.scan(reverse=True)


class _MapValues(ValuesView[V]):
    """Values in one pass over storage; the inherited view looks every key up."""

    _mapping: Map[Any, V]
    __slots__ = ()

    def __iter__(self) -> Iterator[V]:
        return (item[1] for item in self._mapping.scan())

    def __reversed__(self) -> Iterator[V]:
        return (item[1] for item in self._mapping.scan(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


class _Missing:
    """Equal to nothing but itself, and never a value."""


_MISSING: Final = _Missing()


# List


class ListShape(Generic[V]):
    """What all Lists of one field of an actor type have in common. Built once, when the class is read.

    :raises TypeError: the value type cannot be stored; the message names field and type
    """

    __slots__ = ("field_name", "values")

    def __init__(self, field_name: str, value_type: Any) -> None:
        self.field_name = field_name
        self.values = ValueCodec(field_name, value_type)

    def bind(self, view: StateView) -> List[V]:
        """The List of one activation."""
        bound: List[V] = List.__new__(List)
        bound._open(self.field_name, view, self.values)
        return bound

    def bind_in_memory(self) -> List[V]:
        """A List with the type of this field and a memory of its own, for an actor that is used without a grid."""
        bound: List[V] = List.__new__(List)
        bound._open(self.field_name, StateView(MemorySource(), writable=True), self.values, handed_out_max=sys.maxsize)
        return bound


class List(Entries, Sequence[V]):
    """A sequence open at both ends, stored entry by entry: ``log: grid.List[Event]``. It may be larger than memory.

    What costs one entry: `append`, `appendleft`, `extend`, `pop`, `popleft`, ``l[i]``, ``l[i] = v``, ``len``. A slice loads
    what it names; ``in``, `index` and `count` read through. `insert`, `remove`, ``del l[i]`` and ``pop(i)`` are not offered: they would
    rewrite every entry behind. Use a `grid.Map` where entries go from the middle.

    ``List()`` that no grid has bound keeps its entries in memory, for unit tests of an actor class, and takes any value that
    can be stored; ``List[int]()`` checks them.
    """

    __slots__ = ("__orig_class__", "_ends", "_typed")

    def __init__(self) -> None:
        self._open(_UNBOUND_NAME, StateView(MemorySource(), writable=True), _UNTYPED_VALUES, handed_out_max=sys.maxsize)
        self._typed = False

    @classmethod
    def bound(cls, field_name: str, view: StateView, value_type: Any) -> List[V]:
        """The List of one field of one activation. `ListShape` does the same with what is costly done once."""
        return ListShape[V](field_name, value_type).bind(view)

    def _open(self, field_name: str, view: StateView, values: ValueCodec, *, handed_out_max: int = HANDED_OUT_MAX) -> None:
        self._attach(field_name, view, values, handed_out_max=handed_out_max)
        self._ends: tuple[int, int] | None = None  # head, and tail: one past the last index
        self._typed = True

    # Reading

    def __len__(self) -> int:
        head, tail = self._head_and_tail()
        return tail - head

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: int | slice) -> V | list[V]:
        if isinstance(index, slice):
            return self._slice(range(len(self))[index])
        return self._at(self._position(index))

    def __iter__(self) -> Iterator[V]:
        return self._in_order(reverse=False)

    def __reversed__(self) -> Iterator[V]:
        return self._in_order(reverse=True)

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)

    def __eq__(self, other: object) -> bool:
        """Against a list or a List. Not loaded whole: one entry after the other, until one differs."""
        if not isinstance(other, list | List):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=False))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Never the entries: a log line must not read a gigabyte.
        return f"<grid.List {self._field_name}: {len(self)} entries>"

    # Writing

    def __setitem__(self, index: int, value: V) -> None:
        self._put_at(self._position(index), value)

    def append(self, value: V) -> None:
        """Adds a value behind the last one."""
        head, tail = self._head_and_tail()
        self._put_at(tail, value)
        self._move_ends(head, tail + 1)

    def appendleft(self, value: V) -> None:
        """Adds a value before the first one. Indexes of the others grow by one, at no cost."""
        head, tail = self._head_and_tail()
        self._put_at(head - 1, value)
        self._move_ends(head - 1, tail)

    def extend(self, values: Iterable[V]) -> None:
        """Appends each value."""
        for value in values:
            self.append(value)

    def __iadd__(self, values: Iterable[V]) -> List[V]:
        self.extend(values)
        return self

    def pop(self) -> V:
        """Removes and returns the last value.

        :raises IndexError: the list is empty
        """
        head, tail = self._head_and_tail()
        return self._take(tail - 1, head, tail - 1)

    def popleft(self) -> V:
        """Removes and returns the first value.

        :raises IndexError: the list is empty
        """
        head, tail = self._head_and_tail()
        return self._take(head, head + 1, tail)

    def clear(self, *, limit: int | None = None) -> None:
        """Removes all values, or the first `limit`: a large list is cleared in several turns, as each turn is one entry of the log."""
        head, tail = self._head_and_tail()
        removed = self._clear(self._prefix, self._stop, limit)
        if removed:
            self._move_ends(head + removed, tail)

    def _head_and_tail(self) -> tuple[int, int]:
        ends = self._ends
        if ends is None:
            header = self._view.get(self._prefix[:-1])
            ends = self._ends = (0, 0) if header is None else msgspec.msgpack.decode(header, type=tuple[int, int])
        return ends

    def _move_ends(self, head: int, tail: int) -> None:
        self._ends = head, tail
        self._header_changed = True

    def _position(self, index: int) -> int:
        """Where entry `index` is stored."""
        index = operator.index(index)  # a slice is read elsewhere, and not set at all
        head, tail = self._head_and_tail()
        position = index + (head if index >= 0 else tail)
        if not head <= position < tail:
            raise IndexError(f"{self._field_name}[{index}]: it has {tail - head} entries")
        return position

    def _suffix(self, position: int) -> bytes:
        return self._prefix + (position + _INDEX_OFFSET).to_bytes(8)

    def _at(self, position: int) -> V:
        value = self._load(self._suffix(position), _MISSING)
        assert value is not _MISSING, f"{self._field_name}: no entry at {position}, head and tail are {self._ends}"
        return cast(V, value)

    def _put_at(self, position: int, value: V) -> None:
        if not self._typed:
            self._choose_type()
        self._put(self._suffix(position), value)

    def _choose_type(self) -> None:
        """Of an unbound List: at the first write, when ``List[int]()`` has set its ``__orig_class__``."""
        (value_type,) = _declared_types(self, 1)
        if value_type is not Any:
            self._values = ValueCodec(_UNBOUND_NAME, value_type)
        self._typed = True

    def _take(self, position: int, head: int, tail: int) -> V:
        """Removes the entry at `position`, after which head and tail are those given."""
        if tail < head:
            raise IndexError(f"{self._field_name}: pop from an empty grid.List")
        suffix = self._suffix(position)
        value = self._at(position)
        self._delete(suffix)
        self._move_ends(head, tail)
        return value

    def _slice(self, indexes: range) -> list[V]:
        head = self._head_and_tail()[0]
        if abs(indexes.step) != 1 or not indexes:
            return [self._at(head + index) for index in indexes]
        low, high = min(indexes), max(indexes)
        start, stop = self._suffix(head + low), self._suffix(head + high + 1)
        return [entry[1] for entry in self._iterate(start, stop, reverse=indexes.step < 0)]

    def _in_order(self, *, reverse: bool) -> Iterator[V]:
        return (entry[1] for entry in self._iterate(self._prefix, self._stop, reverse=reverse))

    def _write_header(self) -> None:
        head, tail = self._head_and_tail()
        if head == tail:
            self._view.delete(self._prefix[:-1])
        else:
            self._view.put(self._prefix[:-1], msgspec.msgpack.encode((head, tail)))

    def _forget_header(self) -> None:
        self._ends = None

    def _show_key(self, suffix: bytes) -> str:
        return str(int.from_bytes(suffix[len(self._prefix) :]) - _INDEX_OFFSET - self._head_and_tail()[0])
