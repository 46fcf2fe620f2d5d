"""Arguments and results: typed on both ends, named when wrong."""

import dataclasses
import datetime
import decimal
import enum
import uuid

import msgspec
import pytest

from actorgrid import grid
from actorgrid.actor.definition import method_of
from actorgrid.errors import InvalidArgumentError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Item:
    name: str
    tags: list[str] = dataclasses.field(default_factory=list)


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@dataclasses.dataclass
class Fussy:
    n: int

    def __post_init__(self) -> None:
        if self.n < 0:
            raise KeyError("negative")


@grid.actor
class Sample:
    async def plain(self, a: int, b: str = "x", *, c: float = 1.5, d: bool = False) -> str:
        return f"{a} {b} {c} {d}"

    async def required_last(self, a: int, b: int = 2, *, c: int) -> int:
        return a + b + c

    async def only(self, /, a: int) -> int:
        return a

    async def fussy(self, x: Fussy) -> Fussy:
        return x

    async def types(
        self, item: Item, point: Point, when: datetime.datetime, day: datetime.date, span: datetime.timedelta,
        price: decimal.Decimal,
        name: uuid.UUID, colour: Colour, data: bytes, numbers: dict[int, list[str]], pair: tuple[int, str],
        some: set[int],
        maybe: int | None,
    ) -> tuple[Item, Point]:  # fmt: skip
        return item, point

    async def echo(self, n: int) -> int:
        return n

    async def nothing(self) -> None: ...

    async def untyped(self, a, b=1):
        return a


def method(name):
    return method_of(getattr(Sample, name))[1]


def there(name, *args, **kwargs):
    m = method(name)
    return m.decode_args(m.encode_args(args, kwargs))


def test_arguments_are_bound_to_positions_and_defaults_filled():
    assert there("plain", 1) == (1, "x", 1.5, False)
    assert there("plain", 1, "y", d=True) == (1, "y", 1.5, True)
    assert there("plain", a=1, c=2.5) == (1, "x", 2.5, False)
    assert there("required_last", 1, c=3) == (1, 2, 3)
    assert there("only", 5) == (5,)
    assert there("untyped", {"a": 1}) == ({"a": 1},)


def test_every_kind_of_value_arrives_as_it_was_sent():
    values = (
        Item("n", ["a"]), Point(1, 2.5), datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        datetime.timedelta(seconds=1.5), decimal.Decimal("1.10"), uuid.UUID(int=7), Colour.BLUE, b"\x00\xff", {1: ["a"], -2: []},
        (1, "b"), {1, 2}, None,
    )  # fmt: skip
    assert there("types", *values) == values
    m = method("types")
    assert m.decode_result(m.encode_result(values[:2])) == values[:2]


@pytest.mark.parametrize(("args", "kwargs", "words"), [
    ((), {}, ["missing", "'a'"]),
    ((1, "x", 3), {}, ["too many"]),
    ((1,), {"e": 1}, ["unexpected", "'e'"]),
    ((1,), {"a": 1}, ["multiple values", "'a'"]),
    ((object(),), {}, ["parameter a", "object"]),
    ((1 << 64,), {}, ["parameter a", "64 bits"]),
    ((1, "\ud800"), {}, ["parameter b"]),
])  # fmt: skip
def test_a_wrong_call_is_refused_at_the_caller_and_says_where(args, kwargs, words):
    with pytest.raises(InvalidArgumentError) as refused:
        method("plain").encode_args(args, kwargs)
    for word in ["Sample.plain", *words]:
        assert word in str(refused.value)


def test_a_value_that_holds_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="parameter a"):
        method("untyped").encode_args((loop,), {})


@pytest.mark.parametrize(("name", "given", "words"), [
    ("plain", ["one"], ["parameter a", "expected int", "got str"]),
    ("plain", [1, 2], ["parameter b", "expected str", "got int"]),
    ("plain", [True], ["parameter a", "expected int", "got bool"]),
    ("plain", [1, "x", "y"], ["parameter c", "float"]),
    ("plain", [], ["1 to 4 arguments", "got 0"]),
    ("plain", [1, "x", 1.0, True, 5], ["1 to 4 arguments", "got 5"]),
    ("required_last", [1, 2], ["expected 3 arguments", "got 2"]),
    ("only", [1, 2], ["expected 1 arguments", "got 2"]),
    ("fussy", [{"n": -1}], ["negative"]),
    ("fussy", [{}], ["parameter x", "n"]),
    ("nothing", [1], ["expected 0 arguments", "got 1"]),
])  # fmt: skip
def test_a_wrong_argument_is_refused_at_the_host_with_method_parameter_expected_and_given(name, given, words):
    with pytest.raises(InvalidArgumentError) as refused:
        method(name).decode_args(msgspec.msgpack.encode(given))
    for word in [f"Sample.{name}", *words]:
        assert word in str(refused.value)


@pytest.mark.parametrize("raw", [b"", b"\x81\x01\x02", b"\xc0", b"\xff", b"\x92\x01", b"\x91" * 5000 + b"\x90", b"\x91\xa1\xff"])
def test_arguments_that_are_no_array_are_refused(raw):
    with pytest.raises(InvalidArgumentError, match=r"Sample\.plain"):
        method("plain").decode_args(raw)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("echo", "x", ["expected int", "got str"]),
    ("echo", None, ["expected int"]),
    ("echo", 1 << 70, ["64 bits"]),
    ("echo", object(), ["object"]),
    ("nothing", 1, ["null"]),
])  # fmt: skip
def test_a_wrong_result_is_the_actors_mistake_and_named(name, value, words):
    with pytest.raises(TypeError) as refused:
        method(name).encode_result(value)
    for word in [f"result of Sample.{name}", *words]:
        assert word in str(refused.value)


def test_a_result_that_the_callers_class_does_not_know_is_said_so():
    with pytest.raises(InvalidArgumentError, match=r"Sample\.echo.*does not fit"):
        method("echo").decode_result(msgspec.msgpack.encode("x"))
