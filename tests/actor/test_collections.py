import collections
import dataclasses
import datetime
import enum
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actorgrid.actor import entries
from actorgrid.actor.collections import HANDED_OUT_MAX, List, ListShape, Map, MapShape
from actorgrid.actor.view import MemorySource, StateView


@dataclasses.dataclass
class Player:
    name: str
    scores: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Captain(Player):
    team: str = ""


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    tags: tuple[str, ...] = ()


class Colour(enum.Enum):
    RED = "red"


class Host:
    """Does with one collection what a host does: turns, log, apply, restart."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        self.source = MemorySource()
        self.lsn = 0
        self.restart()

    def restart(self) -> None:
        self.view = StateView(self.source, writable=True)
        self.it = self.shape.bind(self.view)
        self.it.forget()  # takes up a smaller HANDED_OUT_MAX

    def commit(self, *, settle: bool = True) -> list[tuple[bytes, bytes | None]]:
        self.it.flush()
        changes = self.view.take_changes()
        self.lsn += 1
        self.view.logged(self.lsn)
        self.it.forget()
        self.source.apply(changes)
        if settle:
            self.view.settle(self.lsn)
        return changes

    def rollback(self) -> None:
        self.view.rollback()
        self.it.forget()

    def read_turn(self) -> Any:
        self.view.writable = False
        return self.it


def map_of(key_type: Any, value_type: Any, entries: dict[Any, Any] | None = None) -> Host:
    host = Host(MapShape("field", key_type, value_type))
    host.it.update(entries or {})
    host.commit()
    return host


def list_of(value_type: Any, entries: list[Any] | None = None) -> Host:
    host = Host(ListShape("field", value_type))
    host.it.extend(entries or [])
    host.commit()
    return host


# Map as a dict


def test_a_map_is_stored_entry_by_entry_in_the_documented_layout():
    host = map_of(str, int, {"b": 2, "a": 1})
    assert host.source.entries == {b"field": b"\x02", b"field\0a\0": b"\x01", b"field\0b\0": b"\x02"}
    host.it["b"] = 3
    assert host.commit() == [(b"field\0b\0", b"\x03")]
    host.it.clear()
    host.commit()
    assert host.source.entries == {}


def test_a_map_does_what_a_dict_does_in_the_order_of_its_keys():
    m = map_of(str, int, {"b": 2, "a": 1, "c": 3}).it
    assert list(m) == ["a", "b", "c"]
    assert list(reversed(m)) == ["c", "b", "a"]
    assert list(m.items()) == [("a", 1), ("b", 2), ("c", 3)]
    assert list(m.values()) == [1, 2, 3]
    assert m.keys() & {"a", "x"} == {"a"}
    assert ("a", 1) in m.items()
    assert 3 in m.values()
    assert m == {"a": 1, "b": 2, "c": 3}
    assert m != {"a": 1, "b": 2, "c": 4}
    assert m != {"a": 1}
    assert m.get("x") is None
    assert m.get("x", 5) == 5
    assert m.pop("b") == 2
    assert m.pop("b", None) is None
    assert m.setdefault("d", 4) == 4
    assert m.popitem() == ("a", 1)
    m |= {"e": 5}
    assert dict(m) == {"c": 3, "d": 4, "e": 5}
    with pytest.raises(KeyError, match="x"):
        m["x"]
    with pytest.raises(KeyError, match="x"):
        del m["x"]
    assert "entries" in repr(m)


def test_a_map_gives_ranges_of_its_keys():
    m = map_of(int, str, {n: str(n) for n in range(-3, 4)}).it
    assert [k for k, _ in m.scan(-1, 2)] == [-1, 0, 1]
    assert [k for k, _ in m.scan(start=2)] == [2, 3]
    assert [k for k, _ in m.scan(stop=-1, reverse=True, limit=1)] == [-2]
    assert list(m.scan(2, -1)) == []
    assert m.first() == (-3, "-3")
    assert m.last() == (3, "3")
    with pytest.raises(TypeError, match="field: key: expected int, got str"):
        m.scan("a")
    with pytest.raises(ValueError, match="limit"):
        m.scan(limit=-1)


def test_a_shorter_tuple_bounds_a_range_of_tuple_keys():
    m = map_of(tuple[str, int], int, {("a", 1): 1, ("a", 2): 2, ("b", 1): 3}).it
    assert [v for _, v in m.scan(("a",), ("b",))] == [1, 2]
    assert [v for _, v in m.scan(("a", 2), ("c",))] == [2, 3]


def test_the_ends_of_an_empty_map_are_none():
    m = map_of(str, int).it
    assert (m.first(), m.last(), len(m)) == (None, None, 0)
    with pytest.raises(KeyError):
        m.popitem()


def test_a_map_may_be_changed_while_it_is_iterated():
    m = map_of(int, int, {n: n for n in range(10)}).it
    for key, value in m.items():
        del m[key]
        m[key + 100] = value
    assert list(m) == list(range(100, 110))
    assert len(m) == 10


def test_iteration_over_mutable_values_leaves_out_what_was_deleted_and_gives_what_was_replaced():
    m = map_of(str, list[int], {"a": [1], "b": [2], "c": [3]}).it
    found = []
    for key, value in m.items():
        found.append((key, list(value)))
        if key == "a":
            del m["b"]
            m["c"] = [4]
            m["d"] = [5]
    assert found == [("a", [1]), ("c", [4])]


def test_clear_with_a_limit_takes_several_turns():
    host = map_of(int, int, {n: n for n in range(10)})
    host.it.clear(limit=4)
    assert len(host.commit()) == 5  # four entries and the header
    assert list(host.it) == [4, 5, 6, 7, 8, 9]


def test_the_fields_of_an_actor_do_not_mix():
    view = StateView(MemorySource(), writable=True)
    a, ab, b = Map.bound("a", view, str, int), Map.bound("ab", view, str, int), List.bound("b", view, int)
    a["b"] = 1
    ab[""] = 2
    b.append(3)
    for bound in (a, ab, b):
        bound.flush()
        bound.forget()
    assert (dict(a), dict(ab), list(b)) == ({"b": 1}, {"": 2}, [3])
    a.clear()
    assert (len(a), len(ab), len(b)) == (0, 1, 1)


# What is refused


@pytest.mark.parametrize(
    ("value_type", "value", "words"),
    [
        (int, "x", "field['k']: expected int, got str: 'x'"),
        (int, True, "expected int, got bool"),
        (int, 2**70, "got int"),
        (float, True, "expected float, got bool"),
        (str, "\ud800", "expected str, got str"),
        (list[int], [1, "x"], "expected list[int], got list"),
        (list[int], (1,), "expected list[int], got tuple"),
        (tuple[int, ...], [1], "expected tuple[int, ...], got list"),
        (tuple[tuple[int, ...], ...], ([1],), "[1] would be read back as tuple"),
        (frozenset[int], {1}, "got set"),
        (datetime.date, "2024-01-01", "expected date, got str"),
        (Colour, "red", "expected Colour, got str"),
        (Player, {"name": "x"}, "expected Player, got dict"),
        (Player, Captain("x"), "it would be read back as Player"),
        (Player, Player("x", ["y"]), "expected Player, got Player"),  # type: ignore[list-item]
        (Point, Point(1, ["x"]), "['x'] would be read back as tuple"),  # type: ignore[arg-type]
        (int | None, "x", "int | None, got str"),
        (Any, object(), "expected Any, got object"),
    ],
)
def test_a_value_that_could_not_be_read_back_is_refused(value_type, value, words):
    host = map_of(str, value_type)
    with pytest.raises(TypeError) as caught:
        host.it["k"] = value
    assert words in str(caught.value)
    assert host.commit() == []
    other = list_of(value_type)
    with pytest.raises(TypeError, match=r"field\[0\]: expected"):
        other.it.append(value)
    assert other.commit() == []


@pytest.mark.parametrize(
    ("value_type", "value"), [(float, 3), (int | None, None), (Point, Point(1, ("a",))), (Any, {"a": [1]}), (dict[str, int], {})]
)
def test_a_value_that_fits_is_taken(value_type, value):
    host = map_of(str, value_type, {"k": value})
    assert host.it["k"] == value


def test_a_wrong_key_is_refused_with_the_name_of_the_field():
    m = map_of(str, int).it
    for use in (lambda: m[1], lambda: m.get(1), lambda: 1 in m, lambda: m.__setitem__(1, 1), lambda: m.pop(1)):
        with pytest.raises(TypeError, match="field: key: expected str, got int: 1"):
            use()


def test_types_that_cannot_be_stored_are_refused_when_the_class_is_read():
    with pytest.raises(TypeError, match=r"seen: .*list\[int\].* cannot be a key"):
        MapShape("seen", list[int], int)
    with pytest.raises(TypeError, match=r"seen: values of type .*complex.* cannot be stored: complex, in the items of the list"):
        MapShape("seen", str, list[complex])
    with pytest.raises(TypeError, match="log: values of type complex cannot be stored"):
        ListShape("log", complex)


# In-place changes


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["a"].scores.append(1),
        lambda m: m.get("a").scores.append(1),
        lambda m: next(iter(m.values())).scores.append(1),
        lambda m: next(iter(m.items()))[1].scores.append(1),
        lambda m: m.first()[1].scores.append(1),
        lambda m: next(m.scan(reverse=True))[1].scores.append(1),
        lambda m: m.setdefault("a", Player("z")).scores.append(1),
    ],
)
def test_a_change_in_place_is_written_at_the_end_of_the_turn(change):
    host = map_of(str, Player, {"a": Player("x")})
    change(host.it)
    assert len(host.commit()) == 1
    host.restart()
    assert host.it["a"] == Player("x", [1])


def test_a_change_of_an_object_after_it_was_set_is_written_too():
    host = map_of(str, list[int])
    value = [1]
    host.it["a"] = host.it["b"] = value
    value.append(2)
    host.commit()
    host.restart()
    assert dict(host.it) == {"a": [1, 2], "b": [1, 2]}


def test_within_a_turn_a_key_gives_the_same_object_each_time():
    m = map_of(str, list[int], {"a": [1]}).it
    assert m["a"] is m["a"] is m.get("a") is next(iter(m.values())) is m.first()[1]


def test_a_value_that_was_replaced_or_removed_is_nobodys_entry_any_more():
    host = map_of(str, list[int], {"a": [1], "b": [2]})
    replaced, removed = host.it["a"], host.it.pop("b")
    host.it["a"] = [3]
    replaced.append(9)
    removed.append(9)
    host.commit()
    assert dict(host.it) == {"a": [3]}


def test_looking_without_changing_writes_nothing():
    host = map_of(str, set[str], {"a": {"x", "y", "z"}})
    assert host.it["a"] == {"x", "y", "z"}
    assert host.commit() == []


def test_a_value_stored_by_an_older_class_is_no_change_when_it_is_only_looked_at():
    host = map_of(str, Player)
    host.source.entries = {b"field": b"\x01", b"field\0a\0": msgspec.msgpack.encode({"name": "x", "gone": 1})}
    host.restart()
    assert host.it["a"] == Player("x")
    assert host.it.changed_in_place() is None
    assert host.commit() == []


def test_a_value_changed_in_place_so_that_it_no_longer_fits_is_refused_at_the_end_of_the_turn():
    host = map_of(str, list[int], {"a": [1]})
    host.it["a"].append("x")
    with pytest.raises(TypeError, match=r"field\['a'\] was changed in place: expected list\[int\], got list"):
        host.it.flush()
    host.rollback()
    assert host.it["a"] == [1]


def test_a_rollback_undoes_changes_in_place():
    host = map_of(str, list[int], {"a": [1]})
    host.it["a"].append(2)
    host.it["b"] = []
    host.rollback()
    assert dict(host.it) == {"a": [1]}
    assert len(host.it) == 1


def test_a_read_turn_that_changed_a_value_in_place_is_found_out():
    host = map_of(str, list[Any], {"a": [1]})
    m = host.read_turn()
    assert m["a"] == [1]
    assert m.changed_in_place() is None
    m["a"].append(2)
    assert m.changed_in_place() == "field['a']"
    m["a"].append(object())
    assert m.changed_in_place() == "field['a']"
    m.forget()
    assert m["a"] == [1]


@pytest.mark.parametrize(
    "write", [lambda m: m.__setitem__("b", 1), lambda m: m.pop("a"), lambda m: m.clear(), lambda m: m.setdefault("c", 1)]
)
def test_a_read_turn_may_not_write(write):
    host = map_of(str, int, {"a": 1})
    with pytest.raises(TypeError, match="field 'field'"):
        write(host.read_turn())
    assert dict(host.it) == {"a": 1}


def test_values_of_immutable_types_are_not_remembered():
    m = map_of(int, Point, {n: Point(n) for n in range(5)}).it
    assert len(list(m.values())) == 5
    assert not m.has_handed_out


# Bounded memory


MANY = 4 * HANDED_OUT_MAX


def test_a_large_iteration_over_mutable_values_keeps_a_bounded_number_of_them():
    m = map_of(int, Player, {n: Player(str(n), [n]) for n in range(MANY)}).it
    for _, player in m.items():
        assert player.scores
        assert len(m._handed_out) <= HANDED_OUT_MAX
    for n in range(MANY):
        assert m[n].scores == [n]
        assert len(m._handed_out) <= HANDED_OUT_MAX


def test_changes_made_in_a_large_iteration_are_all_written():
    host = map_of(int, Player, {n: Player(str(n)) for n in range(MANY)})
    for n, player in host.it.items():
        player.scores.append(n)
    host.commit()
    host.restart()
    assert all(player.scores == [n] for n, player in host.it.items())


@pytest.mark.parametrize(
    "hold",
    [
        lambda player: player.scores.append,
        lambda player: lambda n: vars(player)["scores"].append(n),
        lambda player: (lambda own: lambda n: own["scores"].append(n))(vars(player)),
        lambda player: (lambda scores: lambda n: scores.append(n))(player.scores),
        lambda player: lambda n: player.scores.append(n),
    ],
    ids=["bound method", "value by a closure", "its dict", "a part", "value"],
)
def test_a_value_held_whole_or_in_part_is_written_however_late_it_changes(hold):
    host = map_of(int, Player, {n: Player(str(n)) for n in range(MANY)})
    held = {n: hold(player) for n, player in host.it.items() if n % 100 == 0}
    for n, append in held.items():
        append(n)
    host.commit()
    host.restart()
    assert all(player.scores == ([n] if n in held else []) for n, player in host.it.items())


def test_the_same_object_is_given_again_as_long_as_it_is_held():
    m = map_of(int, list[int], {n: [n] for n in range(MANY)}).it
    held = m[0]
    assert sum(map(len, m.values())) == MANY
    assert m[0] is held


def test_a_large_read_turn_that_changes_values_in_place_is_stopped():
    host = map_of(int, list[int], {n: [n] for n in range(MANY)})
    values = host.read_turn().values()
    with pytest.raises(TypeError, match=r"@grid\.read method may change nothing"):
        collections.deque((value.append(1) for value in values), maxlen=0)


def test_a_replaced_value_is_not_written_over_the_new_one_in_a_sweep(monkeypatch):
    monkeypatch.setattr(entries, "HANDED_OUT_MAX", 2)
    host = map_of(int, list[int], {n: [n] for n in range(8)})
    old, other = host.it[0], host.it[1]
    old.append(99)
    assert other == [1]
    for n in range(8):  # the first of these puts finds the window full, and sweeps
        host.it[n] = [n + 100]
    host.commit()
    assert dict(host.it) == {n: [n + 100] for n in range(8)}


def test_a_value_of_a_class_whose_inside_is_unknown_counts_as_held():
    class Strange(list):  # type: ignore[type-arg]
        pass

    assert not entries._held_elsewhere([[1, {"a": [tuple([1, 2])]}], b""])  # a literal tuple is held by the code  # noqa: C409
    assert entries._held_elsewhere([[object()], b""])
    assert not entries._held_elsewhere([Strange([1]), b""])
    part: list[int] = []
    assert entries._held_elsewhere([{"a": (part,)}, b""])
    shared: list[Any] = [[]]
    shared.append(shared[0])
    assert entries._held_elsewhere([shared, b""])
    assert not entries._held_elsewhere([(lambda inner: [inner, inner])([]), b""])


# List


def test_a_list_is_stored_entry_by_entry_in_the_documented_layout():
    host = list_of(str, ["a", "b"])
    host.it.appendleft("z")
    host.commit()
    middle = 2**63
    assert host.source.entries == {
        b"field": msgspec.msgpack.encode((-1, 2)),
        b"field\0" + (middle - 1).to_bytes(8): b"\xa1z",
        b"field\0" + middle.to_bytes(8): b"\xa1a",
        b"field\0" + (middle + 1).to_bytes(8): b"\xa1b",
    }


def test_a_list_reads_as_a_list():
    l = list_of(int, list(range(10))).it  # noqa: E741
    plain = list(range(10))
    assert l == plain
    assert l != plain[1:]
    assert l != (1,)
    for index in (0, 9, -1, -10):
        assert l[index] == plain[index]
    for part in (slice(2, 5), slice(None, None, -1), slice(-3, None), slice(None, None, 3), slice(8, 2, -2), slice(5, 2), slice(20, 30)):
        assert l[part] == plain[part]
    assert list(reversed(l)) == plain[::-1]
    assert 3 in l
    assert 11 not in l
    assert (l.index(4), l.count(4)) == (4, 1)
    for index in (10, -11):
        with pytest.raises(IndexError, match="it has 10 entries"):
            l[index]


def test_a_list_refuses_what_it_does_not_offer():
    l = list_of(int, [1, 2]).it  # noqa: E741
    for name in ("insert", "remove", "__delitem__"):
        assert not hasattr(l, name)
    for use in (lambda: l.__setitem__(slice(0, 1), [1]), lambda: l["a"], lambda: l.pop(0)):
        with pytest.raises(TypeError):
            use()
    l.clear()
    for use in (l.pop, l.popleft):
        with pytest.raises(IndexError, match="pop from an empty"):
            use()


def test_a_list_may_be_changed_while_it_is_iterated():
    l = list_of(int, [1, 2, 3]).it  # noqa: E741
    for value in l:
        l.append(value * 10)
        l.popleft()
    assert list(l) == [10, 20, 30]
    l.extend(l)
    assert list(l) == [10, 20, 30] * 2


def test_a_value_of_a_list_that_changes_in_place_is_written():
    host = list_of(Player, [Player("x"), Player("y")])
    host.it[-1].scores.append(1)
    for player in host.it:
        player.scores.append(2)
    host.it[:1][0].scores.append(3)
    host.commit()
    host.restart()
    assert list(host.it) == [Player("x", [2, 3]), Player("y", [1, 2])]
    host.it[0].scores.append("no")
    host.it.appendleft(Player("z"))
    with pytest.raises(TypeError, match=r"field\[1\] was changed in place"):
        host.it.flush()


# Without a grid


def test_an_unbound_map_works_in_memory():
    m: Map[str, Any] = Map()
    assert (len(m), list(m), m.get("x")) == (0, [], None)
    m["b"] = Player("x")
    m["a"] = {"k": [1]}
    m["a"]["k"].append(2)
    assert list(m.items()) == [("a", {"k": [1, 2]}), ("b", Player("x"))]
    assert len(m) == 2
    with pytest.raises(TypeError, match="expected str, got int"):
        m[1] = 1  # type: ignore[index]
    assert Map() == {}


def test_an_unbound_map_with_types_checks_them():
    m = Map[tuple[str, int], int]()
    assert list(m.scan(("a",))) == []
    m["a", 1] = 1
    with pytest.raises(TypeError, match="expected int, got str"):
        m["a", 2] = "x"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="cannot be a key"):
        Map[list[int], int]()[[1]] = 1


def test_an_unbound_list_works_in_memory():
    l: List[Any] = List()  # noqa: E741
    l.extend([Player("x"), [1]])
    l[1].append(2)
    l.appendleft(0)
    assert list(l) == [0, Player("x"), [1, 2]]
    with pytest.raises(TypeError, match="expected int, got str"):
        List[int]().append("x")  # type: ignore[arg-type]


def test_a_shape_gives_collections_in_memory_with_the_declared_types():
    shape = MapShape[str, Player]("seen", str, Player)
    a, b = shape.bind_in_memory(), shape.bind_in_memory()
    for n in range(MANY):
        a[str(n)] = Player("x")
    assert a["0"] is a["0"]
    assert len(b) == 0
    with pytest.raises(TypeError, match=r"seen\['k'\]: expected Player, got int"):
        b["k"] = 1  # type: ignore[assignment]
    l = ListShape[int]("log", int).bind_in_memory()  # noqa: E741
    l.append(1)
    assert l == [1]


# Against a dict and a deque, through turns


KEYS = st.sampled_from(["", "a", "a\0", "b", "é"])
ITEMS = st.lists(st.integers(0, 3), max_size=2)


class TurnMachine(RuleBasedStateMachine):
    """What both machines share: the ends of turns, and a small window, so that sweeps happen."""

    shape: Any
    empty: Any

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(entries, "HANDED_OUT_MAX", 2)
        self.host = Host(self.shape)
        self.model = self.empty()
        self.before = self.copied()
        self.held: list[tuple[list[int], list[int]]] = []  # ours and the model's

    def copied(self) -> Any:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(list(self.model.items() if isinstance(self.model, dict) else self.model)))

    def end_turn(self) -> None:
        self.held.clear()
        self.before = self.copied()
        # Each entry is an object of its own from here on, as it is after a load.
        self.model = self.empty(self.copied())

    @rule(settle=st.booleans())
    def commit(self, settle):
        self.host.commit(settle=settle)
        self.end_turn()

    @rule()
    def rollback(self):
        self.host.rollback()
        self.model = self.empty(self.before)
        self.end_turn()

    @rule()
    def restart(self):
        self.commit(settle=False)
        self.host.restart()

    @rule(n=st.integers(0, 9))
    def change_what_is_held(self, n):
        for ours, models in self.held:
            ours.append(n)
            models.append(n)

    @invariant()
    def the_length_is_that_of_the_model(self):
        assert len(self.host.it) == len(self.model)

    def teardown(self):
        self.patch.undo()


class MapMachine(TurnMachine):
    shape = MapShape("m", str, list[int])
    empty = dict

    @rule(key=KEYS, value=ITEMS)
    def put(self, key, value):
        self.host.it[key] = value
        self.model[key] = list(value)

    @rule(key=KEYS)
    def pop(self, key):
        assert self.host.it.pop(key, None) == self.model.pop(key, None)

    @rule(key=KEYS, n=st.integers(0, 9))
    def change_in_place(self, key, n):
        if key in self.model:
            self.host.it[key].append(n)
            self.model[key].append(n)
        assert (key in self.host.it) == (key in self.model)

    @rule(key=KEYS)
    def hold(self, key):
        if key in self.model:
            self.held.append((self.host.it[key], self.model[key]))

    @rule(n=st.integers(0, 9))
    def change_all(self, n):
        for _, value in self.host.it.items():
            value.append(n)
        for value in self.model.values():
            value.append(n)

    @rule(start=KEYS, stop=KEYS, reverse=st.booleans())
    def scan(self, start, stop, reverse):
        expected = sorted(((k, v) for k, v in self.model.items() if start <= k < stop), reverse=reverse)
        assert list(self.host.it.scan(start, stop, reverse=reverse)) == expected

    @rule(limit=st.none() | st.integers(0, 3))
    def clear(self, limit):
        self.host.it.clear(limit=limit)
        for key in sorted(self.model)[:limit]:
            del self.model[key]

    @rule()
    def compare(self):
        assert list(self.host.it.items()) == sorted(self.model.items())


class ListMachine(TurnMachine):
    shape = ListShape("l", list[int])
    empty = collections.deque

    @rule(value=ITEMS, left=st.booleans())
    def append(self, value, left):
        if left:
            self.host.it.appendleft(value)
            self.model.appendleft(list(value))
        else:
            self.host.it.append(value)
            self.model.append(list(value))

    @rule(left=st.booleans())
    def pop(self, left):
        if self.model:
            assert (self.host.it.popleft() if left else self.host.it.pop()) == (self.model.popleft() if left else self.model.pop())

    @rule(index=st.integers(-3, 3), value=ITEMS)
    def set(self, index, value):
        try:
            self.model[index] = list(value)
        except IndexError:
            with pytest.raises(IndexError):
                self.host.it[index] = value
        else:
            self.host.it[index] = value

    @rule(index=st.integers(-3, 3), n=st.integers(0, 9), keep=st.booleans())
    def change_in_place(self, index, n, keep):
        if -len(self.model) <= index < len(self.model):
            self.host.it[index].append(n)
            self.model[index].append(n)
            if keep:
                self.held.append((self.host.it[index], self.model[index]))

    @rule(limit=st.none() | st.integers(0, 3))
    def clear(self, limit):
        self.host.it.clear(limit=limit)
        for _ in range(len(self.model) if limit is None else min(limit, len(self.model))):
            self.model.popleft()

    @rule(part=st.builds(slice, *(3 * [st.none() | st.integers(-3, 3).filter(bool)])))
    def compare(self, part):
        assert list(self.host.it) == list(self.model)
        assert list(reversed(self.host.it)) == list(reversed(self.model))
        assert self.host.it[part] == list(self.model)[part]


STEPS = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestMapMachine = MapMachine.TestCase
TestMapMachine.settings = STEPS
TestListMachine = ListMachine.TestCase
TestListMachine.settings = STEPS
