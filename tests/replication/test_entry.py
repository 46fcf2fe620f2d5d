"""Log records: what goes in comes out, and a changed bit is never taken for data."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from actorgrid.errors import CorruptLogError
from actorgrid.replication.entry import HEAD_BYTES, ClientMark, Entry, LogRecord, RecordHead, decode_record, encode_record, read_head

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
    status=st.integers(0, 3),
    result=st.binary(max_size=60),
    changes=changes,
    key=st.none() | st.text(max_size=20),
)


def decode_whole(data: bytes) -> LogRecord:
    return decode_record(data, read_head(data))


marks = st.builds(ClientMark, client_id=st.binary(min_size=16, max_size=16), lowest=numbers, lowest_anywhere=numbers)
records = st.builds(
    LogRecord,
    epoch=numbers,
    first_lsn=st.integers(1, 2**63 - 1),
    time_ms=numbers,
    clients=st.lists(marks, max_size=4),
    entries=st.lists(entries, min_size=1, max_size=5),
)


@given(records)
def test_a_record_comes_back_as_it_was(record: LogRecord) -> None:
    assert decode_whole(encode_record(record)) == record


@given(records)
def test_its_head_tells_what_it_is_without_decoding_it(record: LogRecord) -> None:
    data = encode_record(record)
    assert read_head(data) == RecordHead(record.epoch, record.first_lsn, record.first_lsn + len(record.entries) - 1)
    assert read_head(data).last_lsn == record.last_lsn


@given(records, st.data())
def test_a_flipped_bit_anywhere_is_noticed(record: LogRecord, data: st.DataObject) -> None:
    encoded = bytearray(encode_record(record))
    position = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[position // 8] ^= 1 << position % 8
    for read in (read_head, decode_whole):
        with pytest.raises(CorruptLogError, match="checksum"):
            read(bytes(encoded))


@given(records, st.integers(0, 400))
def test_a_record_that_was_cut_is_noticed(record: LogRecord, size: int) -> None:
    data = encode_record(record)
    for read in (read_head, decode_whole):
        with pytest.raises(CorruptLogError, match="checksum"):
            read(data[: min(size, len(data) - 1)])


@given(st.binary(max_size=200))
def test_anything_else_is_noticed_too(junk: bytes) -> None:
    with pytest.raises(CorruptLogError):
        decode_whole(junk)


def test_the_last_position_of_a_record_is_that_of_its_last_entry() -> None:
    entry = Entry(-1, 0, (), 0, "", 2, b"", [])
    assert LogRecord(1, 10, 0, [], [entry, entry, entry]).last_lsn == 12


def _with_head(record: LogRecord, epoch: int, first_lsn: int, last_lsn: int) -> bytes:
    """The bytes of `record` under a head that says something else, with the right checksum."""
    summed = struct.pack(">QQQ", epoch, first_lsn, last_lsn) + encode_record(record)[HEAD_BYTES:]
    return xxh3_64_intdigest(summed).to_bytes(8, "big") + summed


def test_a_head_that_makes_no_sense_or_is_not_that_of_its_body_is_noticed() -> None:
    entry = Entry(-1, 0, (), 0, "", 2, b"", [])
    record = LogRecord(3, 10, 0, [], [entry, entry])
    assert decode_whole(_with_head(record, 3, 10, 11)) == record
    for first_lsn, last_lsn in ((0, 11), (11, 10)):
        with pytest.raises(CorruptLogError, match=f"says that it has entries {first_lsn}..{last_lsn}"):
            read_head(_with_head(record, 3, first_lsn, last_lsn))
    for head in ((2, 10, 11), (3, 9, 11), (3, 10, 12)):
        assert read_head(_with_head(record, *head)) == head
        with pytest.raises(CorruptLogError, match="head and body"):
            decode_whole(_with_head(record, *head))


def test_a_record_without_entries_is_none() -> None:
    with pytest.raises(CorruptLogError, match=r"says that it has entries 10\.\.9"):
        read_head(encode_record(LogRecord(1, 10, 0, [], [])))
