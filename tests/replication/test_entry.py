"""Log records: what goes in comes out, and a changed bit is never taken for data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.errors import CorruptLogError
from actorgrid.replication.entry import ClientMark, Entry, LogRecord, decode_record, encode_record

numbers = st.integers(0, 2**63 - 1)
digests = st.integers(0, 2**64 - 1)
changes = st.lists(st.tuples(st.binary(max_size=20), st.none() | st.binary(max_size=40)), max_size=4)
entries = st.builds(
    Entry,
    client=st.integers(-1, 3),
    number=numbers,
    path=st.lists(numbers, max_size=4).map(tuple),
    digest=digests,
    address=st.text(max_size=30),
    status=st.integers(0, 2),
    result=st.binary(max_size=60),
    changes=changes,
    key=st.none() | st.text(max_size=20),
)
marks = st.builds(ClientMark, client_id=st.binary(min_size=16, max_size=16), lowest=numbers, lowest_anywhere=numbers)
records = st.builds(
    LogRecord, epoch=numbers, first_lsn=numbers, time_ms=numbers, clients=st.lists(marks, max_size=4), entries=st.lists(entries, max_size=5)
)


@given(records)
def test_a_record_comes_back_as_it_was(record: LogRecord) -> None:
    assert decode_record(encode_record(record)) == record


@given(records, st.data())
def test_a_flipped_bit_anywhere_is_noticed(record: LogRecord, data: st.DataObject) -> None:
    encoded = bytearray(encode_record(record))
    position = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[position // 8] ^= 1 << position % 8
    with pytest.raises(CorruptLogError):
        decode_record(bytes(encoded))


@given(st.binary(max_size=200))
def test_anything_else_is_noticed_too(junk: bytes) -> None:
    with pytest.raises(CorruptLogError):
        decode_record(junk)


def test_the_last_position_of_a_record_is_that_of_its_last_entry() -> None:
    entry = Entry(-1, 0, (), 0, "", 2, b"", [])
    assert LogRecord(1, 10, 0, [], [entry, entry, entry]).last_lsn == 12
