"""Fields: every change is found, however deep; what raises changes nothing; what is stored comes back."""

import copy
import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorgrid import grid
from actorgrid.actor.definition import actor_type_of
from actorgrid.actor.fields import ActorState
from actorgrid.actor.view import MemorySource


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    name: str = ""
    tags: list[str] = dataclasses.field(default_factory=list)
    inner: dict[str, set[int]] = dataclasses.field(default_factory=dict)


class Point(msgspec.Struct, frozen=True):
    x: int = 0


@grid.actor
class Everything:
    number: int = 0
    text: str = ""
    ratio: float = 0.0
    data: bytes = b""
    when: datetime.datetime | None = None
    price: decimal.Decimal = decimal.Decimal("0")
    name: uuid.UUID = uuid.UUID(int=0)
    colour: Colour = Colour.RED
    point: Point = Point()
    pair: tuple[int, str] = (0, "")
    fixed: frozenset[int] = frozenset()
    items: list[int] = []
    nested: dict[str, list[dict[str, list[int]]]] = {}
    things: list[Item] = []
    thing: Item = Item()
    members: set[int] = set()
    by_number: dict[int, str] = {}
    entries: grid.Map[str, list[int]]
    _cache: dict[str, int] = {}


@grid.actor
class Small:
    n: int = 0
    s: str = "x"


class Disk:
    """Runs turns against a state as the host does, and applies their changes at once."""

    def __init__(self, cls):
        self.shape = actor_type_of(cls).shape
        self.source = MemorySource()
        self.lsn = 0
        self.state = ActorState(self.shape, self.source)

    @property
    def actor(self):
        return self.state.instance

    def turn(self, act):
        """One write turn; the changes it made."""
        if self.state.view is not None:
            self.state.begin(self.lsn, read=False)
        try:
            act(self.actor)
            changes = self.state.changes()
        except Exception:
            self.state.rollback()
            if self.state.view is not None:
                self.state.end()
            raise
        if changes:
            self.lsn += 1
            if self.state.view is not None:
                self.state.view.logged(self.lsn)
            self.source.apply(changes)
        if self.state.view is not None:
            self.state.end()
        return changes

    def read(self, act):
        if self.state.view is not None:
            self.state.begin(self.lsn, read=True)
        act(self.actor)
        changed = self.state.changed_by_read()
        if changed:
            self.state.rollback()
        if self.state.view is not None:
            self.state.end()
        return changed

    def reload(self, cls=None):
        if cls is not None:
            self.shape = actor_type_of(cls).shape
        self.state = ActorState(self.shape, self.source)
        return self.state.instance

    def seen(self):
        values = {
            name: copy.deepcopy(value) for name, value in self.state.values.items() if name not in ("entries",) and not name.startswith("_")
        }
        if "entries" in self.state.values:
            values["entries"] = {key: list(value) for key, value in self.actor.entries.items()}
        return values


def test_a_fresh_actor_has_its_defaults_and_a_turn_that_changes_nothing_logs_nothing():
    disk = Disk(Everything)
    assert disk.actor.items == []
    assert disk.turn(lambda a: None) is None
    assert disk.source.entries == {}
    other = Disk(Everything)
    disk.turn(lambda a: a.items.append(1))
    assert other.actor.items == []
    assert Everything.items == []


@pytest.mark.parametrize("act", [
    lambda a: setattr(a, "number", 5), lambda a: setattr(a, "text", "é\0"), lambda a: setattr(a, "ratio", 2.5),
    lambda a: setattr(a, "data", b"\xff"),
    lambda a: setattr(a, "when", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
    lambda a: setattr(a, "price", decimal.Decimal("1.10")),
    lambda a: setattr(a, "name", uuid.UUID(int=9)), lambda a: setattr(a, "colour", Colour.BLUE), lambda a: setattr(a, "point", Point(4)),
    lambda a: setattr(a, "pair", (1, "b")), lambda a: setattr(a, "fixed", frozenset({1, 2})), lambda a: a.items.append(1),
    lambda a: a.nested.setdefault("a", []).append({"b": [1]}), lambda a: a.things.append(Item("n", ["t"], {"k": {1}})),
    lambda a: a.thing.tags.append("t"), lambda a: a.thing.inner.setdefault("k", set()).add(3), lambda a: a.members.add(7),
    lambda a: a.by_number.update({1: "a", -5: "b"}), lambda a: a.entries.__setitem__("k", [1]), lambda a: setattr(a, "number", 2**64 - 1),
    lambda a: setattr(a, "number", -(2**63)),
])  # fmt: skip
def test_every_kind_of_change_is_found_kept_and_comes_back(act):
    disk = Disk(Everything)
    assert disk.turn(act)
    before = disk.seen()
    assert disk.turn(lambda a: None) is None
    disk.reload()
    assert disk.seen() == before
    assert disk.turn(lambda a: None) is None
    assert disk.read(lambda a: None) is None


def test_deep_changes_in_place_are_found_through_any_alias():
    disk = Disk(Everything)
    disk.turn(lambda a: (a.nested.update({"a": [{"b": [1]}]}), a.things.append(Item("x"))))
    alias = disk.actor.nested["a"][0]["b"]
    assert disk.turn(lambda a: alias.append(2))
    assert disk.turn(lambda a: a.things[0].inner.update({"k": {5}}))
    assert disk.turn(lambda a: a.things[0].inner["k"].discard(5))
    assert disk.turn(lambda a: setattr(a.things[0], "name", "y"))
    disk.reload()
    assert disk.actor.nested == {"a": [{"b": [1, 2]}]}
    assert disk.actor.things == [Item("y", [], {"k": set()})]


json_like = st.recursive(
    st.integers(-100, 100) | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@grid.actor
class Anything:
    root: dict[str, Any] = {}


def containers_in(value):
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers_in(part)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=2), json_like, max_size=4), st.data())
def test_random_changes_of_a_random_structure_are_found_and_a_raise_undoes_them(root, data):
    disk = Disk(Anything)
    disk.turn(lambda a: a.root.update(root))
    for _ in range(5):
        before = copy.deepcopy(disk.actor.root)
        target = data.draw(st.sampled_from(range(len(list(containers_in(disk.actor.root))))))
        new, fails = data.draw(json_like), data.draw(st.booleans())

        def act(actor, target=target, new=new, fails=fails):
            where = list(containers_in(actor.root))[target]
            match where:
                case dict():
                    if where and data.draw(st.booleans()):
                        del where[next(iter(where))]
                    else:
                        where[data.draw(st.text(max_size=2))] = new
                case list():
                    if where and data.draw(st.booleans()):
                        where.pop()
                    else:
                        where.insert(0, new)
            if fails:
                raise ValueError

        if fails:
            with pytest.raises(ValueError):
                disk.turn(act)
            assert disk.actor.root == before
            assert disk.read(lambda a: None) is None
        else:
            changes = disk.turn(act)
            assert bool(changes) == (list_of(before) != list_of(disk.actor.root))
        memory = copy.deepcopy(disk.actor.root)
        disk.reload()
        assert list_of(disk.actor.root) == list_of(memory)


def list_of(value):
    """With the order of dictionaries, which is kept too."""
    if isinstance(value, dict):
        return ("dict", [(key, list_of(part)) for key, part in value.items()])
    return [list_of(part) for part in value] if isinstance(value, list) else value


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "fail"]), st.integers(0, 200)), max_size=25))
def test_sets_are_equal_after_reload_and_never_seem_changed_by_a_read(steps):
    disk = Disk(Everything)
    for what, number in steps:

        def act(actor, what=what, number=number):
            actor.members.add(number) if what == "add" else actor.members.discard(number)
            actor.fixed = frozenset(actor.members)
            if what == "fail":
                raise ValueError

        before = set(disk.actor.members)
        try:
            disk.turn(act)
        except ValueError:
            assert disk.actor.members == before
        assert disk.read(lambda a: None) is None
    memory = disk.seen()
    disk.reload()
    assert disk.seen() == memory
    assert disk.read(lambda a: None) is None


def test_a_raise_puts_everything_back_in_memory():
    disk = Disk(Everything)
    disk.turn(lambda a: (a.items.append(1), a.entries.__setitem__("k", [1]), setattr(a, "number", 1), a._cache.update(a=1)))
    before = disk.seen()

    def act(actor):
        actor.items.clear()
        actor.entries["k"].append(2)
        actor.entries["new"] = [1]
        actor.number = 7
        del actor.text
        actor.members = {5}
        actor.thing.tags.append("x")
        actor.undeclared = 5
        actor.things = object()
        actor._cache["b"] = 2
        raise ValueError("no")

    with pytest.raises(ValueError):
        disk.turn(act)
    assert disk.seen() == before
    assert disk.actor._cache == {"a": 1, "b": 2}, "transient attributes stay"
    assert disk.turn(lambda a: None) is None
    disk.reload()
    assert disk.seen() == before
    assert disk.actor._cache == {}


@pytest.mark.parametrize(("cls", "act", "words"), [
    (Small, lambda a: setattr(a, "n", "five"), ["Small", "field n", "expected int", "str"]),
    (Small, lambda a: setattr(a, "n", 1 << 64), ["Small", "field n", "64 bits"]),
    (Small, lambda a: setattr(a, "n", None), ["field n"]),
    (Small, lambda a: setattr(a, "n", object()), ["field n", "object"]),
    (Small, lambda a: setattr(a, "m", 5), ["Small", "attribute m", "not declared"]),
    (Small, lambda a: delattr(a, "n"), ["field n", "deleted"]),
    (Small, lambda a: (delattr(a, "n"), setattr(a, "m", 5)), ["attribute m", "not declared"]),
    (Everything, lambda a: a.items.append("x"), ["field items", "int"]),
    (Everything, lambda a: a.items.append(1 << 64), ["field items", "64 bits"]),
    (Everything, lambda a: a.thing.tags.append(5), ["field thing", "str"]),
    (Everything, lambda a: a.things.append(object()), ["field things", "object"]),
    (Everything, lambda a: delattr(a, "items"), ["field items", "deleted"]),
    (Everything, lambda a: delattr(a, "number"), ["field number", "deleted"]),
    (Everything, lambda a: setattr(a, "other", 5), ["attribute other", "not declared"]),
    (Everything, lambda a: setattr(a, "entries", {}), ["field entries", "cannot be replaced"]),
    (Everything, lambda a: setattr(a, "nested", {"a": a.nested}) or a.nested["a"].update(x=a.nested), ["field nested"]),
])  # fmt: skip
def test_what_cannot_be_stored_is_refused_by_name_and_undone(cls, act, words):
    disk = Disk(cls)
    disk.turn(lambda a: None)
    before = disk.seen()
    with pytest.raises(TypeError) as refused:
        disk.turn(act)
    for word in words:
        assert word in str(refused.value)
    assert disk.seen() == before
    assert disk.turn(lambda a: None) is None


@pytest.mark.parametrize(("cls", "act", "name"), [
    (Small, lambda a: setattr(a, "n", 5), "n"),
    (Small, lambda a: setattr(a, "m", 5), "m"),
    (Small, lambda a: delattr(a, "n"), "n"),
    (Everything, lambda a: a.items.append(1), "items"),
    (Everything, lambda a: a.thing.tags.append("x"), "thing"),
    (Everything, lambda a: setattr(a, "other", 1), "other"),
    (Everything, lambda a: setattr(a, "entries", {}), "entries"),
])  # fmt: skip
def test_a_read_that_changes_something_is_caught_and_undone(cls, act, name):
    disk = Disk(cls)
    before = disk.seen()
    assert name in disk.read(act)
    assert disk.seen() == before
    assert disk.turn(lambda a: None) is None


# -- schema evolution


def test_fields_may_come_go_and_change_their_defaults():
    @grid.actor(name="V")
    class First:
        kept: int = 1
        dropped: str = "d"
        gone: list[int] = []

    @grid.actor(name="V")
    class Second:
        kept: int = 100
        new: str = "n"
        fresh: list[int] = [7]

    disk = Disk(First)
    disk.turn(lambda a: (setattr(a, "kept", 5), a.gone.append(1)))
    actor = disk.reload(Second)
    assert (actor.kept, actor.new, actor.fresh) == (5, "n", [7])
    assert disk.read(lambda a: None) is None
    assert disk.turn(lambda a: None) is None
    disk.turn(lambda a: a.fresh.append(8))
    actor = disk.reload(First)
    assert (actor.kept, actor.dropped, actor.gone) == (5, "d", [1])
    untouched = Disk(First)
    assert untouched.reload(Second).kept == 100


def test_a_stored_value_that_does_not_fit_any_more_is_an_error_and_not_a_default():
    @grid.actor(name="V")
    class First:
        n: str = "x"
        items: list[str] = []

    @grid.actor(name="V")
    class Second:
        n: int = 0
        items: list[int] = []

    disk = Disk(First)
    disk.turn(lambda a: a.items.append("x"))
    with pytest.raises(msgspec.ValidationError):
        disk.reload(Second)
    disk = Disk(First)
    disk.turn(lambda a: setattr(a, "n", "y"))
    with pytest.raises(msgspec.ValidationError):
        disk.reload(Second)


def test_a_field_may_become_mutable_without_losing_its_value():
    @grid.actor(name="V")
    class First:
        tags: tuple[str, ...] = ()
        n: int = 0

    @grid.actor(name="V")
    class Second:
        tags: list[str] = []
        n: int = 0

    disk = Disk(First)
    disk.turn(lambda a: setattr(a, "tags", ("a", "b")))
    assert disk.reload(Second).tags == ["a", "b"]
    disk.turn(lambda a: setattr(a, "n", 1))
    assert disk.reload(Second).tags == ["a", "b"]
    disk.turn(lambda a: a.tags.append("c"))
    assert disk.reload(Second).tags == ["a", "b", "c"]
