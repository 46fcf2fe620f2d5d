"""What an annotation says of the values of a field: can they be stored, can they change in place, which classes are they.

Whatever walks a type runs once per field of an actor type, when the class is read; in a turn runs `ValueCodec` alone. It asks
`msgspec.inspect`, so that it cannot disagree with the codec about what an annotation means.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

__all__ = ["ATOMS", "ValueCodec", "accepted_classes", "find_misfit", "find_unstorable", "holds_sets", "is_immutable", "show_type"]

_IMMUTABLE_LEAVES = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.BytesType,
    inspect.DateTimeType,
    inspect.TimeType,
    inspect.DateType,
    inspect.TimeDeltaType,
    inspect.UUIDType,
    inspect.DecimalType,
    inspect.EnumType,
    inspect.LiteralType,
)

_CLASSES: dict[type[inspect.Type], tuple[type, ...]] = {
    inspect.NoneType: (type(None),),
    inspect.BoolType: (bool,),
    inspect.IntType: (int,),
    inspect.FloatType: (float, int),  # an int is a float to every Python type checker (PEP 484), and to msgspec
    inspect.StrType: (str,),
    inspect.BytesType: (bytes,),
    inspect.ByteArrayType: (bytearray,),
    inspect.DateTimeType: (datetime.datetime,),
    inspect.TimeType: (datetime.time,),
    inspect.DateType: (datetime.date,),
    inspect.TimeDeltaType: (datetime.timedelta,),
    inspect.UUIDType: (uuid.UUID,),
    inspect.DecimalType: (decimal.Decimal,),
    inspect.VarTupleType: (tuple,),
    inspect.TupleType: (tuple,),
    inspect.FrozenSetType: (frozenset,),
    inspect.TypedDictType: (dict,),
}


def show_type(annotation: Any) -> str:
    """An annotation as its user wrote it, more or less."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return repr(annotation).replace("typing.", "")


def is_immutable(annotation: Any) -> bool:
    """Whether no value of this type can change in place, so that nobody has to look whether one did.

    True for None, bool, int, float, str, bytes, dates and times, UUID, Decimal, Enum, Literal, and for tuples, named tuples,
    frozensets, frozen dataclasses, frozen Structs and unions of only such. False in doubt: for Any, and for what msgspec does not know.
    """
    return _is_immutable(inspect.type_info(annotation), frozenset())


def _is_immutable(info: inspect.Type, inside: frozenset[type]) -> bool:
    if isinstance(info, inspect.Metadata):
        return _is_immutable(info.type, inside)
    if isinstance(info, _IMMUTABLE_LEAVES):
        return True
    if isinstance(info, inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        if info.cls in inside:
            return True  # a type that holds itself is as immutable as the rest of it
        if not _is_frozen(info):
            return False
        inside |= {info.cls}
    elif not isinstance(info, inspect.UnionType | inspect.VarTupleType | inspect.TupleType | inspect.FrozenSetType):
        return False
    return all(_is_immutable(part, inside) for _, part in _parts(info))


def _is_frozen(info: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType) -> bool:
    if isinstance(info, inspect.NamedTupleType):
        return True
    if isinstance(info, inspect.StructType):
        return info.cls.__struct_config__.frozen
    # msgspec says DataclassType of attrs classes too; those are taken for mutable, which is only slower.
    parameters = getattr(info.cls, "__dataclass_params__", None)
    return bool(parameters is not None and parameters.frozen)


def find_unstorable(annotation: Any) -> str | None:
    """The first part of a type that cannot be stored, in words (``complex, in the values of the dict``), or None if all of it can.

    ``typing.Any`` is storable: its values come back as what MessagePack knows (a dataclass as a dict, a tuple as a list).
    """
    try:
        found = _find_custom(inspect.type_info(annotation), frozenset())
        if found is not None:
            return found
        # Some unions are well-formed types that no decoder can tell apart; only the decoder knows which.
        msgspec.msgpack.Decoder(annotation)
    except (TypeError, NameError, ValueError, RuntimeError) as error:
        return f"{show_type(annotation)} ({error})"
    return None


def _find_custom(info: inspect.Type, inside: frozenset[type]) -> str | None:
    if isinstance(info, inspect.CustomType):
        return show_type(info.cls)
    record = getattr(info, "cls", None)
    if record is not None:
        if record in inside:
            return None
        inside |= {record}
    for place, part in _parts(info):
        found = _find_custom(part, inside)
        if found is not None:
            return f"{found}, in {place}" if place else found
    return None


def _parts(info: inspect.Type) -> Iterator[tuple[str, inspect.Type]]:
    """The types that a type is made of, each with its place in words."""
    match info:
        case inspect.Metadata(type=inner):
            yield "", inner
        case inspect.UnionType(types=types):
            for part in types:
                yield "", part
        case inspect.TupleType(item_types=types):
            for number, part in enumerate(types):
                yield f"part {number} of the tuple", part
        case inspect.VarTupleType(item_type=item):
            yield "the items of the tuple", item
        case inspect.ListType(item_type=item):
            yield "the items of the list", item
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            yield "the items of the set", item
        case inspect.DictType(key_type=key, value_type=value):
            yield "the keys of the dict", key
            yield "the values of the dict", value
        case (
            inspect.StructType(fields=fields)
            | inspect.DataclassType(fields=fields)
            | inspect.NamedTupleType(fields=fields)
            | inspect.TypedDictType(fields=fields)
        ):
            for field in fields:
                yield f"{info.cls.__qualname__}.{field.name}", field.type
        case _:
            pass


def holds_sets(annotation: Any) -> bool:
    """Whether a value of this type can have a set in it. False for what only looks like Any: nobody knows."""
    return _holds_sets(inspect.type_info(annotation), frozenset())


def _holds_sets(info: inspect.Type, inside: frozenset[type]) -> bool:
    if isinstance(info, inspect.SetType | inspect.FrozenSetType):
        return True
    record = getattr(info, "cls", None)
    if record is not None:
        if record in inside:
            return False
        inside |= {record}
    return any(_holds_sets(part, inside) for _, part in _parts(info))


def accepted_classes(annotation: Any) -> tuple[type, ...] | None:
    """The classes a value of this type may have, or None where that cannot be told (Any, abstract containers).

    msgspec checks what an encoding can be read as, and many an encoding can be read as more than what was written: a list as a
    tuple, a str as a datetime. With these classes a value that would come back as something else is refused.
    """
    while isinstance(annotation, typing.NewType) or typing.get_origin(annotation) is typing.Annotated:
        annotation = annotation.__supertype__ if isinstance(annotation, typing.NewType) else typing.get_args(annotation)[0]
    info = inspect.type_info(annotation)
    if isinstance(info, inspect.UnionType):
        classes: tuple[type, ...] = ()
        for part in typing.get_args(annotation):
            found = accepted_classes(part)
            if found is None:
                return None
            classes += found
        return classes or None
    if isinstance(info, inspect.LiteralType):
        return tuple({type(value): None for value in info.values})
    if isinstance(info, inspect.EnumType | inspect.StructType | inspect.DataclassType | inspect.NamedTupleType):
        return (info.cls,)
    if isinstance(info, inspect.ListType | inspect.SetType | inspect.DictType):
        # Sequence[int] and Mapping[str, int] are a list and a dict to msgspec; what they accept is the user's affair.
        concrete = typing.get_origin(annotation) or annotation
        return (concrete,) if concrete in (list, set, dict) else None
    return _CLASSES.get(type(info))


#: Classes of values without parts that somebody could hold and change.
ATOMS: Final = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        str,
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        uuid.UUID,
        decimal.Decimal,
    }
)


class ValueCodec:
    """Encodes, checks and decodes the values of one field. Built once per field of an actor type.

    :raises TypeError: the type cannot be stored; the message names field and part
    """

    __slots__ = ("_classes", "_deep", "decode", "encode", "expected", "immutable")

    def __init__(self, field_name: str, value_type: Any) -> None:
        found = find_unstorable(value_type)
        if found is not None:
            raise TypeError(f"{field_name}: values of type {show_type(value_type)} cannot be stored: {found}")
        self.expected = show_type(value_type)
        self.encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(value_type).decode
        self.immutable = is_immutable(value_type)
        self._classes = accepted_classes(value_type)
        self._deep = self.immutable and not (self._classes and all(cls in ATOMS or issubclass(cls, enum.Enum) for cls in self._classes))

    def pack(self, value: Any) -> bytes:
        """The checked encoding of a value.

        :raises TypeError: it would not come back as it is
        """
        if self._classes is not None and not isinstance(value, self._classes):
            raise TypeError(f"expected {self.expected}, got {type(value).__qualname__}: {value!r:.80}")
        try:
            data = self.encode(value)
            decoded = self.decode(data)
        # TypeError: no such type in msgspec; OverflowError: an int over 64 bits; ValueError: a lone surrogate, or the
        # decoder's ValidationError; RecursionError: a value that holds itself.
        except (TypeError, OverflowError, ValueError, RecursionError) as error:
            raise TypeError(f"expected {self.expected}, got {type(value).__qualname__}: {error}") from None
        if self._deep:
            misfit = find_misfit(value, decoded)
            if misfit is not None:
                raise TypeError(f"expected {self.expected}, got {type(value).__qualname__}: {misfit}")
        elif type(decoded) is not type(value) and (isinstance(decoded, msgspec.Struct) or dataclasses.is_dataclass(decoded)):
            # A subclass would come back without its own fields.
            raise TypeError(
                f"expected {self.expected}, got {type(value).__qualname__}: it would be read back as {type(decoded).__qualname__}"
            )
        return data


def find_misfit(value: Any, decoded: Any) -> str | None:
    """Where an immutable value is of another class than what it would be read back as, in words.

    A list given where a tuple is declared would be stored as a copy, and a later change of it lost: nobody watches the
    values of immutable types.
    """
    if type(value) is not type(decoded):
        if isinstance(decoded, int | float | str) and isinstance(value, int | float | str):
            return None  # an int for a float; members of IntEnum and StrEnum
        return f"{value!r:.80} would be read back as {type(decoded).__qualname__}"
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, tuple):
        parts = zip(value, decoded, strict=True)
    elif isinstance(value, msgspec.Struct):
        parts = ((getattr(value, name), getattr(decoded, name)) for name in value.__struct_fields__)
    elif dataclasses.is_dataclass(value):
        parts = ((getattr(value, field.name), getattr(decoded, field.name)) for field in dataclasses.fields(value))
    for part, decoded_part in parts:
        misfit = find_misfit(part, decoded_part)
        if misfit is not None:
            return misfit
    return None
