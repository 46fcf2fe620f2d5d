import datetime
import enum
import itertools
import struct
import uuid
from typing import Annotated, Any, NewType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.actor.keys import key_codec, key_codec_of


class Size(enum.Enum):
    LARGE = 3
    SMALL = -1
    MEDIUM = 2


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"
    NO_COLOUR = ""


class Mixed(enum.Enum):
    A = 1
    B = "b"


NaiveDatetime = Annotated[datetime.datetime, msgspec.Meta(tz=False)]
AwareDatetime = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
UserId = NewType("UserId", str)

offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)))
aware = st.datetimes(datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 29), timezones=offsets)
# Few letters, NUL and the escape among them, so that prefixes and escapes meet often.
tight_text = st.text(st.sampled_from("\0\1\2aé\U0001f600"), max_size=4)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8) | tight_text,
    bytes: st.binary(max_size=8) | st.lists(st.sampled_from([0, 1, 2, 255]), max_size=4).map(bytes),
    int: st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    uuid.UUID: st.uuids(),
    datetime.date: st.dates(),
    datetime.datetime: aware,
    AwareDatetime: aware,
    NaiveDatetime: st.datetimes(),
    Size: st.sampled_from(Size),
    Colour: st.sampled_from(Colour),
    UserId: tight_text,
}


@st.composite
def types_with_values(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    """A key type, tuples and tuples in tuples included, and some of its values."""
    annotation, values = draw(st.recursive(st.sampled_from(list(SCALARS.items())), _tuples_of, max_leaves=4))
    return annotation, draw(st.lists(values, min_size=2, max_size=6))


def _tuples_of(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def join(chosen: list[Any]) -> Any:
        return tuple[tuple(part for part, _ in chosen)], st.tuples(*(values for _, values in chosen))  # type: ignore[misc]

    return st.lists(parts, min_size=1, max_size=3).map(join)


def by_value(value: Any) -> Any:
    """What stands for the natural order: members of an Enum by their values."""
    if isinstance(value, tuple):
        return tuple(map(by_value, value))
    return value.value if isinstance(value, enum.Enum) else value


@given(types_with_values())
def test_a_key_comes_back_and_the_order_of_the_bytes_is_the_order_of_the_values(case):
    annotation, values = case
    codec = key_codec(annotation)
    encoded = [codec.encode(value) for value in values]
    assert [codec.decode(data) for data in encoded] == values
    for (a, a_bytes), (b, b_bytes) in itertools.combinations(zip(values, encoded, strict=True), 2):
        assert (a_bytes < b_bytes) == (by_value(a) < by_value(b))
        assert (a_bytes == b_bytes) == (a == b)
        assert a_bytes == b_bytes or not b_bytes.startswith(a_bytes)  # self-delimiting


@given(types_with_values(), st.binary(max_size=20))
def test_bytes_that_are_no_key_are_a_value_error_or_a_key_that_encodes_to_them(case, data):
    codec = key_codec(case[0])
    try:
        value = codec.decode(data)
    except ValueError:
        return
    # A non-canonical escape or float can be read, but is never written; nothing else may pass.
    assert codec.decode(codec.encode(value)) == value or value != value or "float" in codec.shown


@given(st.tuples(tight_text, st.integers(-3, 3)), tight_text)
def test_a_shorter_tuple_is_a_bound_before_all_keys_that_begin_with_it(key, prefix):
    codec = key_codec(tuple[str, int])
    bound = codec.encode_bound((prefix,))
    assert (bound <= codec.encode(key)) == ((prefix,) <= key)
    assert codec.encode_bound(()) == b""
    assert codec.encode_bound(key) == codec.encode(key)


def test_the_stored_format_is_the_documented_one():
    encode = lambda annotation, value: key_codec(annotation).encode(value)  # noqa: E731
    assert encode(str, "a\0b\1") == b"a\1\1b\1\2\0"
    assert encode(int, -1) == bytes.fromhex("7fffffffffffffff")
    assert encode(bool, True) == b"\1"
    assert encode(float, 1) == struct.pack(">Q", struct.unpack(">Q", struct.pack(">d", 1.0))[0] | 1 << 63)
    assert encode(datetime.date, datetime.date(1, 1, 1)) == bytes.fromhex("00000001")
    assert encode(NaiveDatetime, datetime.datetime(1, 1, 1, 0, 0, 1)) == (1_000_000).to_bytes(8)
    assert encode(tuple[str, bool], ("x", False)) == b"x\0\0"


def test_minus_zero_and_zero_are_one_key():
    assert key_codec(float).encode(-0.0) == key_codec(float).encode(0) == key_codec(float).encode(0.0)


def test_an_aware_datetime_comes_back_as_the_same_instant_in_utc():
    codec = key_codec(datetime.datetime)
    given_value = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    found = codec.decode(codec.encode(given_value))
    assert found == given_value
    assert found.tzinfo is datetime.UTC


@pytest.mark.parametrize(
    ("annotation", "value", "error", "words"),
    [
        (int, True, TypeError, "expected int, got bool: True"),
        (int, 1.0, TypeError, "expected int, got float"),
        (int, 2**63, ValueError, "64 bits"),
        (int, -(2**63) - 1, ValueError, "64 bits"),
        (bool, 1, TypeError, "expected bool, got int"),
        (str, b"a", TypeError, "expected str, got bytes: b'a'"),
        (str, Colour.RED, TypeError, "expected str, got Colour"),
        (str, "\ud800", ValueError, "surrogate"),
        (bytes, bytearray(b"a"), TypeError, "expected bytes, got bytearray"),
        (float, True, TypeError, "expected float, got bool"),
        (float, float("nan"), ValueError, "nan has no place"),
        (float, 2**53 + 1, ValueError, "no float is equal to the int 9007199254740993"),
        (float, 10**400, ValueError, "out of the range of float"),
        (uuid.UUID, "x", TypeError, "expected UUID, got str"),
        (datetime.date, datetime.datetime(2024, 1, 1), TypeError, "expected date, got datetime"),
        (datetime.datetime, datetime.date(2024, 1, 1), TypeError, "got date"),
        (datetime.datetime, datetime.datetime(2024, 1, 1), ValueError, "naive and aware ones have no order"),
        (NaiveDatetime, datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), ValueError, "a naive datetime"),
        (datetime.datetime, datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=1))), ValueError, "in UTC"),
        (Size, 3, TypeError, "expected Size, got int"),
        (tuple[str, int], ["a", 1], TypeError, "expected tuple[str, int], got list"),
        (tuple[str, int], ("a",), ValueError, "2 parts, got 1"),
        (tuple[str, int], ("a", "b"), TypeError, "expected int, got str"),
    ],
)
def test_a_wrong_key_is_refused_with_what_was_expected_and_what_was_given(annotation, value, error, words):
    with pytest.raises(error) as caught:
        key_codec(annotation).encode(value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (list[int], "list[int]"),
        (complex, "complex"),
        (Any, "Any cannot be a key"),
        (int | None, "int | None"),
        (tuple, "tuple"),
        (tuple[int, ...], "fixed number of parts"),
        (tuple[()], "tuple"),
        (tuple[str, list[int]], "list[int]"),
        (Mixed, "Mixed cannot be a key: the values of an Enum key are all str or all int, got int, str"),
        (enum.Enum("Empty", []), "no members"),
        (Annotated[int, msgspec.Meta(ge=0)], "only tz is checked"),
        (Annotated[str, msgspec.Meta(tz=True)], "tz is for datetime"),
    ],
)
def test_a_type_without_an_order_preserving_encoding_is_refused_by_name(annotation, words):
    with pytest.raises(TypeError) as caught:
        key_codec(annotation)
    assert words in str(caught.value)


def test_an_enum_value_of_more_than_64_bits_is_refused_when_the_class_is_read():
    with pytest.raises(ValueError, match="64 bits"):
        key_codec(enum.Enum("Huge", {"A": 2**64}))


@pytest.mark.parametrize("value", [("a", 1, (True, b"x")), 1.5, datetime.datetime(2024, 1, 1), Size.LARGE])
def test_the_codec_of_a_value_at_hand_encodes_it(value):
    codec = key_codec_of(value)
    assert codec.decode(codec.encode(value)) == value
