"""Keys of a `grid.Map` as bytes: the order of the bytes is the order of the values, and every encoding knows where it ends.

1. ``a < b`` if and only if ``encode(a) < encode(b)``, and ``decode(encode(a)) == a``, for every two values of one key type.
2. No encoding is a prefix of another one of the same type, so the encoding of a tuple is that of its parts, one after the other.
3. The format is stored: a change of it is a migration.

| type | bytes |
|---|---|
| str, bytes | (UTF-8) content with ``00`` as ``01 01`` and ``01`` as ``01 02``, then ``00`` |
| int | value + 2**63, 8 bytes big-endian |
| bool | ``00`` or ``01`` |
| float | IEEE 754, 8 bytes big-endian, sign bit flipped, all bits flipped when negative |
| UUID | its 16 bytes |
| date | proleptic ordinal, 4 bytes big-endian |
| datetime | microseconds since the year 1 (an aware one in UTC), 8 bytes big-endian |
| Enum | as its value, which is a str or an int in all members |
| tuple[A, B, ...] of fixed length | its parts |

Tuples and escapes are those of FoundationDB's tuple layer but for two things: no type codes, as the type is known, and
``00`` escaped by ``01 01`` instead of ``00 FF``, as without type codes the next part of a tuple may itself begin with ``FF``.

This module knows nothing of actors, fields or storage.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import struct
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["KeyCodec", "key_codec", "key_codec_of"]

_INT_OFFSET = 1 << 63
_ALL_BITS = (1 << 64) - 1
_UINT64 = struct.Struct(">Q")
_UINT32 = struct.Struct(">I")
_FLOAT64 = struct.Struct(">d")
_NAIVE_ZERO = datetime.datetime(1, 1, 1)
_AWARE_ZERO = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
_DATETIME_MAX_US = (datetime.datetime.max - _NAIVE_ZERO) // datetime.timedelta(microseconds=1)

_Encode = Callable[[Any], bytes]
_DecodeAt = Callable[[bytes, int], tuple[Any, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class KeyCodec:
    """Encodes and decodes the keys of one key type. Built once per field by `key_codec`; stateless.

    :ivar shown: the key type, for messages
    :ivar encode: value -> bytes. ``TypeError``: another type. ``ValueError``: a value without a place in the order or out of range
    :ivar decode_at: (data, position) -> (value, position after it). ``ValueError``: not an encoding of this type
    :ivar parts: for a tuple the codecs of its parts, otherwise empty
    """

    shown: str
    encode: _Encode
    decode_at: _DecodeAt
    parts: tuple[KeyCodec, ...] = ()

    def decode(self, data: bytes) -> Any:
        """The value that `encode` was given.

        :raises ValueError: not an encoding of this type, or bytes behind its end
        """
        value, end = self.decode_at(data, 0)
        if end != len(data):
            raise ValueError(f"stored key {data.hex()} is no {self.shown}: {len(data) - end} bytes behind its end")
        return value

    def encode_bound(self, value: Any) -> bytes:
        """As `encode`, but a tuple may be shorter than the keys: ``("a",)`` stands before every ``("a", ...)``."""
        if self.parts and type(value) is tuple and len(value) < len(self.parts):
            return b"".join([part.encode(item) for part, item in zip(self.parts, value, strict=False)])
        return self.encode(value)


def key_codec(annotation: Any) -> KeyCodec:
    """The codec of a key type.

    Takes exactly the types of the module's table, ``NewType`` and ``Annotated`` of them included. A plain
    ``datetime.datetime`` is an aware one; ``Annotated[datetime.datetime, msgspec.Meta(tz=False)]`` is a naive one: the two
    cannot be ordered, so one map never holds both.

    :raises TypeError: the type has no order-preserving encoding here; the message names it
    """
    annotation, tz = _unwrap(annotation)
    if annotation is datetime.datetime:
        return _NAIVE_DATETIME if tz is False else _AWARE_DATETIME
    if tz is not None:
        raise TypeError(f"{_show(annotation)} with msgspec.Meta(tz={tz}) cannot be a key: tz is for datetime.datetime")
    if isinstance(annotation, type) and annotation in _SCALARS:
        return _SCALARS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum_codec(annotation)
    if typing.get_origin(annotation) is tuple:
        arguments = typing.get_args(annotation)
        if arguments and Ellipsis not in arguments:
            return _tuple_codec(tuple(key_codec(argument) for argument in arguments))
        raise TypeError(f"{_show(annotation)} cannot be a key: a tuple key has a fixed number of parts, at least one")
    raise TypeError(
        f"{_show(annotation)} cannot be a key: use str, int, bool, bytes, float, uuid.UUID, datetime.date, datetime.datetime, "
        f"an Enum of str or int values, or a tuple of fixed length of these"
    )


def key_codec_of(value: Any) -> KeyCodec:
    """The codec for the type of a value at hand, for a map whose key type nobody declared.

    :raises TypeError: as `key_codec`
    """
    if type(value) is tuple and value:
        return _tuple_codec(tuple(key_codec_of(item) for item in value))
    if type(value) is datetime.datetime:
        return _NAIVE_DATETIME if value.tzinfo is None else _AWARE_DATETIME
    return key_codec(type(value))


def _unwrap(annotation: Any) -> tuple[Any, bool | None]:
    """The type under ``NewType``, ``type X = ...`` and ``Annotated``, and what ``msgspec.Meta(tz=...)`` said."""
    tz: bool | None = None
    alias_type = getattr(typing, "TypeAliasType", ())  # Python 3.12
    while True:
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, alias_type):
            annotation = annotation.__value__
        elif typing.get_origin(annotation) is typing.Annotated:
            annotation, *metadata = typing.get_args(annotation)
            for meta in metadata:
                if not isinstance(meta, msgspec.Meta):
                    continue
                if any(getattr(meta, name) is not None for name in _CONSTRAINTS):
                    # Accepting it and not checking it would be a promise broken in silence.
                    raise TypeError(f"Annotated[{_show(annotation)}, {meta!r}] cannot be a key: of msgspec.Meta only tz is checked in keys")
                tz = meta.tz if tz is None else tz
        else:
            return annotation, tz


_CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length")


def _show(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) and not typing.get_args(annotation) else repr(annotation)


def _wrong_type(expected: str, value: Any) -> TypeError:
    return TypeError(f"key: expected {expected}, got {type(value).__qualname__}: {value!r:.80}")


def _bad_data(shown: str, data: bytes, position: int) -> ValueError:
    return ValueError(f"stored key {data.hex()} is no {shown} at byte {position}")


# str and bytes: 00 and 01 are escaped, so 00 ends the content and is smaller than whatever could have followed.


def _delimit(data: bytes) -> bytes:
    if b"\0" in data or b"\1" in data:
        data = data.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
    return data + b"\0"


def _undelimit(shown: str, data: bytes, position: int) -> tuple[bytes, int]:
    end = data.find(b"\0", position)
    if end < 0:
        raise _bad_data(shown, data, position)
    content = data[position:end]
    if b"\1" in content:
        # 01 begins a pair and ends one only as 01 01, so neither replacement can match across two pairs.
        content = content.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1")
    return content, end + 1


def _encode_str(value: Any) -> bytes:
    if type(value) is not str:
        raise _wrong_type("str", value)
    try:
        return _delimit(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"key: {value!r:.80} is not valid Unicode (lone surrogate)") from None


def _decode_str(data: bytes, position: int) -> tuple[str, int]:
    content, end = _undelimit("str", data, position)
    return content.decode(), end


def _encode_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise _wrong_type("bytes", value)
    return _delimit(value)


def _decode_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    return _undelimit("bytes", data, position)


def _decode_uint64(shown: str, data: bytes, position: int) -> int:
    if len(data) < position + 8:
        raise _bad_data(shown, data, position)
    number: int = _UINT64.unpack_from(data, position)[0]
    return number


def _encode_int(value: Any) -> bytes:
    if type(value) is not int:
        raise _wrong_type("int", value)
    try:
        return _UINT64.pack(value + _INT_OFFSET)
    except struct.error:
        raise ValueError(f"key: expected an int of 64 bits (-2**63 .. 2**63 - 1), got one of {value.bit_length()} bits") from None


def _decode_int(data: bytes, position: int) -> tuple[int, int]:
    return _decode_uint64("int", data, position) - _INT_OFFSET, position + 8


def _encode_bool(value: Any) -> bytes:
    if type(value) is not bool:
        raise _wrong_type("bool", value)
    return b"\1" if value else b"\0"


def _decode_bool(data: bytes, position: int) -> tuple[bool, int]:
    byte = data[position : position + 1]
    if byte not in (b"\0", b"\1"):
        raise _bad_data("bool", data, position)
    return byte == b"\1", position + 1


def _encode_float(value: Any) -> bytes:
    if type(value) is int:
        value = _exact_float(value)
    elif type(value) is not float:
        raise _wrong_type("float", value)
    if value != value:
        raise ValueError("key: nan has no place in the order")
    # + 0.0 makes -0.0 the 0.0 it is equal to.
    bits: int = _UINT64.unpack(_FLOAT64.pack(value + 0.0))[0]
    return _UINT64.pack(bits ^ (_ALL_BITS if bits & _INT_OFFSET else _INT_OFFSET))


def _exact_float(value: int) -> float:
    try:
        exact = float(value)
    except OverflowError:
        raise ValueError(f"key: an int of {value.bit_length()} bits is out of the range of float") from None
    if exact != value:
        # Two different ints must not become one key.
        raise ValueError(f"key: no float is equal to the int {value}")
    return exact


def _decode_float(data: bytes, position: int) -> tuple[float, int]:
    bits = _decode_uint64("float", data, position)
    bits ^= _INT_OFFSET if bits & _INT_OFFSET else _ALL_BITS
    number: float = _FLOAT64.unpack(_UINT64.pack(bits))[0]
    return number, position + 8


def _encode_uuid(value: Any) -> bytes:
    if type(value) is not uuid.UUID:
        raise _wrong_type("UUID", value)
    return value.bytes


def _decode_uuid(data: bytes, position: int) -> tuple[uuid.UUID, int]:
    content = data[position : position + 16]
    if len(content) < 16:
        raise _bad_data("UUID", data, position)
    return uuid.UUID(bytes=content), position + 16


def _encode_date(value: Any) -> bytes:
    if type(value) is not datetime.date:
        raise _wrong_type("date", value)
    return _UINT32.pack(value.toordinal())


def _decode_date(data: bytes, position: int) -> tuple[datetime.date, int]:
    if len(data) < position + 4:
        raise _bad_data("date", data, position)
    try:
        return datetime.date.fromordinal(_UINT32.unpack_from(data, position)[0]), position + 4
    except (ValueError, OverflowError):
        raise _bad_data("date", data, position) from None


def _datetime_codec(*, aware: bool) -> KeyCodec:
    shown = "an aware datetime" if aware else "a naive datetime"
    zero = _AWARE_ZERO if aware else _NAIVE_ZERO
    hint = (
        "add a tzinfo, or declare the key type as Annotated[datetime, msgspec.Meta(tz=False)]"
        if aware
        else "the key type is declared with msgspec.Meta(tz=False)"
    )

    def encode(value: Any) -> bytes:
        if type(value) is not datetime.datetime:
            raise _wrong_type(shown, value)
        if (value.utcoffset() is not None) is not aware:
            raise ValueError(f"key: expected {shown}, got {value!r}: naive and aware ones have no order between them; {hint}")
        delta = value - zero
        microseconds = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        if not 0 <= microseconds <= _DATETIME_MAX_US:
            raise ValueError(f"key: {value!r} is outside the years 1 to 9999 in UTC")
        return _UINT64.pack(microseconds)

    def decode_at(data: bytes, position: int) -> tuple[datetime.datetime, int]:
        microseconds = _decode_uint64(shown, data, position)
        if microseconds > _DATETIME_MAX_US:
            raise _bad_data(shown, data, position)
        return zero + datetime.timedelta(microseconds=microseconds), position + 8

    return KeyCodec(shown, encode, decode_at)


def _enum_codec(enum_class: type[enum.Enum]) -> KeyCodec:
    shown = enum_class.__qualname__
    members = list(enum_class)
    value_types = {type(member.value) for member in members}
    if value_types not in ({str}, {int}):
        found = ", ".join(sorted(value_type.__qualname__ for value_type in value_types)) or "no members"
        raise TypeError(f"{shown} cannot be a key: the values of an Enum key are all str or all int, got {found}")
    by_value = _SCALARS[value_types.pop()]
    for member in members:
        by_value.encode(member.value)  # an int of more than 64 bits is refused here, not at the first use

    def encode(value: Any) -> bytes:
        if not isinstance(value, enum_class):
            raise _wrong_type(shown, value)
        return by_value.encode(value.value)

    def decode_at(data: bytes, position: int) -> tuple[Any, int]:
        value, end = by_value.decode_at(data, position)
        return enum_class(value), end

    return KeyCodec(shown, encode, decode_at)


def _tuple_codec(parts: tuple[KeyCodec, ...]) -> KeyCodec:
    shown = f"tuple[{', '.join(part.shown for part in parts)}]"
    encoders = tuple(part.encode for part in parts)
    decoders = tuple(part.decode_at for part in parts)

    def encode(value: Any) -> bytes:
        if type(value) is not tuple:
            raise _wrong_type(shown, value)
        if len(value) != len(encoders):
            raise ValueError(f"key: expected {shown}, {len(encoders)} parts, got {len(value)}: {value!r:.80}")
        return b"".join([encode_part(item) for encode_part, item in zip(encoders, value, strict=True)])

    def decode_at(data: bytes, position: int) -> tuple[tuple[Any, ...], int]:
        items = []
        for decode_part in decoders:
            item, position = decode_part(data, position)
            items.append(item)
        return tuple(items), position

    return KeyCodec(shown, encode, decode_at, parts)


_AWARE_DATETIME = _datetime_codec(aware=True)
_NAIVE_DATETIME = _datetime_codec(aware=False)
_SCALARS: dict[type, KeyCodec] = {
    str: KeyCodec("str", _encode_str, _decode_str),
    bytes: KeyCodec("bytes", _encode_bytes, _decode_bytes),
    int: KeyCodec("int", _encode_int, _decode_int),
    bool: KeyCodec("bool", _encode_bool, _decode_bool),
    float: KeyCodec("float", _encode_float, _decode_float),
    uuid.UUID: KeyCodec("UUID", _encode_uuid, _decode_uuid),
    datetime.date: KeyCodec("date", _encode_date, _decode_date),
}
