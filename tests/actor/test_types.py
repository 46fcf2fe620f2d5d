import dataclasses
import datetime
import decimal
import enum
import typing
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, NewType

import msgspec
import pytest

from actorgrid.actor.types import accepted_classes, find_unstorable, is_immutable


class Colour(enum.Enum):
    RED = "red"


class Plain:
    pass


@dataclasses.dataclass
class Open:
    x: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int
    y: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FrozenAroundList:
    x: list[int]


@dataclasses.dataclass(frozen=True)
class FrozenChain:
    next: "FrozenChain | None" = None


@dataclasses.dataclass
class HoldsPlain:
    name: str
    plain: dict[str, list[Plain]]


class OpenStruct(msgspec.Struct):
    x: int


class FrozenStruct(msgspec.Struct, frozen=True):
    x: Frozen


class Pair(NamedTuple):
    x: int
    y: str


class PairOfLists(NamedTuple):
    x: list[int]


class Tree(msgspec.Struct):
    children: "list[Tree]"


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        bool,
        int,
        float,
        str,
        bytes,
        datetime.datetime,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
        Colour,
        Literal["a", 1],
        int | None,
        tuple[int, str],
        tuple[frozenset[str], ...],
        Frozen,
        FrozenStruct,
        FrozenChain,
        Pair,
        NewType("N", int),
        Annotated[int, msgspec.Meta(ge=0, title="n")],
    ],
    ids=str,
)
def test_what_cannot_change_in_place_is_immutable(annotation):
    assert is_immutable(annotation)


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        list[int],
        dict[str, int],
        set[int],
        bytearray,
        Open,
        OpenStruct,
        FrozenAroundList,
        PairOfLists,
        tuple[list[int], int],
        tuple[Open, ...],
        int | list[int],
        NewType("N", list[int]),
        Annotated[dict[str, int], msgspec.Meta(title="d")],
    ],
    ids=str,
)
def test_what_can_change_in_place_or_might_is_not_immutable(annotation):
    assert not is_immutable(annotation)


@pytest.mark.parametrize("annotation", [Any, int, list[Any], Open, Tree, FrozenChain, dict[tuple[int, str], Open | None], Pair], ids=str)
def test_storable_types_are_found_storable(annotation):
    assert find_unstorable(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Plain, "Plain"),
        (complex, "complex"),
        (list[Plain], "Plain, in the items of the list"),
        (tuple[int, complex], "complex, in part 1 of the tuple"),
        (dict[str, complex], "complex, in the values of the dict"),
        (HoldsPlain, "Plain, in the items of the list, in the values of the dict, in HoldsPlain.plain"),
        (int | Plain, "Plain"),
        (list[int] | tuple[int, ...], "more than one array-like"),
        (Open | Frozen, "more than one"),
        ("Unknown", "Unknown"),
    ],
    ids=str,
)
def test_the_first_part_that_cannot_be_stored_is_named(annotation, words):
    assert words in (find_unstorable(annotation) or "")


def test_classes_are_told_where_the_annotation_is_concrete():
    assert accepted_classes(int | None) == (int, type(None))
    assert accepted_classes(list[int]) == (list,)
    assert accepted_classes(Annotated[tuple[int, ...], msgspec.Meta(title="t")]) == (tuple,)
    assert accepted_classes(Frozen) == (Frozen,)
    assert accepted_classes(Any) is None
    assert accepted_classes(Sequence[int]) is None
    assert accepted_classes(typing.Optional[Any]) is None  # noqa: UP045
