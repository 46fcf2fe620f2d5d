"""A field takes only what would be read back as it is: anything else fails the turn, and names the field."""

import dataclasses
import datetime
import enum
import uuid

import pytest

from actorgrid import grid
from actorgrid.actor.definition import actor_type_of
from actorgrid.actor.fields import ActorState
from actorgrid.actor.view import MemorySource


class Kind(enum.Enum):
    A = "a"
    B = "b"


@dataclasses.dataclass
class Base:
    x: int = 0


@dataclasses.dataclass
class Derived(Base):
    y: int = 0


@dataclasses.dataclass(frozen=True)
class Fixed:
    x: int = 0
    pair: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class FixedMore(Fixed):
    y: int = 0


@grid.actor
class Shelf:
    n: int = 0
    kind: Kind = Kind.A
    when: datetime.datetime = datetime.datetime(2020, 1, 1)
    name: uuid.UUID = uuid.UUID(int=1)
    maybe: datetime.date | None = None
    pair: tuple[int, ...] = ()
    fixed: Fixed = Fixed()
    ratio: float = 0.5
    base: Base = Base()
    bases: list[Base] = []
    by_name: dict[str, Base] = {}


def shelf():
    return ActorState(actor_type_of(Shelf).shape, MemorySource())


@pytest.mark.parametrize(("field", "value"), [
    ("kind", "b"),
    ("when", "2024-01-01T00:00:00"),
    ("maybe", "2024-01-01"),
    ("name", str(uuid.UUID(int=2))),
    ("pair", [1, 2]),
    ("fixed", FixedMore(1, (), 2)),
    ("fixed", Fixed(1, [1, 2])),
    ("base", Derived(1, 2)),
    ("bases", [Derived(1, 2)]),
    ("bases", (Base(1),)),
    ("by_name", {"a": Derived(1, 2)}),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_value_that_would_come_back_different_is_refused(field, value):
    state = shelf()
    state.instance.n = 7
    before = getattr(state.instance, field)
    setattr(state.instance, field, value)
    with pytest.raises(TypeError, match=rf"^Shelf: field {field}\b"):
        state.changes()
    state.rollback()
    assert (state.instance.n, getattr(state.instance, field)) == (0, before)
    assert state.changes() is None


@pytest.mark.parametrize(("field", "value", "comes_back"), [
    ("ratio", 3, 3.0),
    ("kind", Kind.B, Kind.B),
    ("when", datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1)),
    ("maybe", datetime.date(2024, 1, 1), datetime.date(2024, 1, 1)),
    ("name", uuid.UUID(int=2), uuid.UUID(int=2)),
    ("pair", (1, 2), (1, 2)),
    ("fixed", Fixed(1, (1, 2)), Fixed(1, (1, 2))),
    ("base", Base(4), Base(4)),
    ("bases", [Base(4)], [Base(4)]),
    ("by_name", {"a": Base(4)}, {"a": Base(4)}),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_value_of_the_declared_type_is_taken_and_comes_back(field, value, comes_back):
    source = MemorySource()
    state = ActorState(actor_type_of(Shelf).shape, source)
    setattr(state.instance, field, value)
    source.apply(state.changes())
    again = ActorState(actor_type_of(Shelf).shape, source)
    found = getattr(again.instance, field)
    assert (found, type(found)) == (comes_back, type(comes_back))
