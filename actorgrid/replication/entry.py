"""The log's unit of agreement, and its bytes.

An *entry* is one finished turn: who asked (request id and digest of the request), what the answer was, and which storage keys of
the actor got which values. Secondaries apply those values; they never run actor code (I11). A *record* holds the entries that one
partition appended in one tick: it is what is written, synced and (later) sent, so that the cost per tick is shared.

The session record of a call is its entry: what answers a retry and what the turn changed cannot be separated (I9).

A record's bytes begin with a head of fixed size, so that a secondary can check, order and store them without looking inside::

    checksum (8) | epoch (8) | first_lsn (8) | last_lsn (8) | the LogRecord as MessagePack

The checksum (XXH3-64) is over everything behind it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from actorgrid.errors import CorruptLogError

#: What an entry's ``status`` says about its ``result``: the method's result, an encoded `ErrorPayload`, that nobody asked, or that it is
#: an encoded `Configuration`.
STATUS_OK: Final = 0
STATUS_ERROR: Final = 1
STATUS_INTERNAL: Final = 2
STATUS_CONFIGURATION: Final = 3

NO_CLIENT: Final = -1
CHECKSUM_BYTES: Final = 8

Change = tuple[bytes, bytes | None]
NO_CHANGES: Final[list[Change]] = []


class Entry(Struct, array_like=True, gc=False):
    """One finished turn.

    ``client`` is an index into the record's ``clients``, or -1. ``changes`` are (suffix of the actor's storage key, value), None
    for a deletion. ``key`` is the idempotency key of the call, which then has its record under that key instead of the session.
    """

    client: int
    number: int
    path: tuple[int, ...]
    digest: int
    address: str
    status: int
    result: bytes
    changes: list[Change]
    key: str | None = None


class ClientMark(Struct, array_like=True, gc=False):
    """How far a client is: it has all answers from this partition below ``lowest``, from anywhere below ``lowest_anywhere``."""

    client_id: bytes
    lowest: int
    lowest_anywhere: int


class LogRecord(Struct, array_like=True, gc=False):
    """Entries ``first_lsn``, ``first_lsn + 1``, ... of one epoch. No entries but a non-zero epoch: the primary's first of its epoch (I4)
    is an entry of status internal without changes.

    ``time_ms`` is the primary's wall clock, never less than in the record before; it ages idempotency keys and decides nothing else (I15).
    """

    epoch: int
    first_lsn: int
    time_ms: int
    clients: list[ClientMark]
    entries: list[Entry]

    @property
    def last_lsn(self) -> int:
        return self.first_lsn + len(self.entries) - 1


class RecordHead(NamedTuple):
    """What the first bytes of a record say."""

    epoch: int
    first_lsn: int
    last_lsn: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LogRecord).decode
_HEAD = struct.Struct(">QQQ")
HEAD_BYTES: Final = CHECKSUM_BYTES + _HEAD.size


def encode_record(record: LogRecord) -> bytes:
    """The record's bytes."""
    summed = _HEAD.pack(record.epoch, record.first_lsn, record.last_lsn) + _encode(record)
    return xxh3_64_intdigest(summed).to_bytes(CHECKSUM_BYTES, "big") + summed


def read_head(data: bytes) -> RecordHead:
    """Check the record in `data` and tell what it is, without decoding it.

    :raises CorruptLogError: the checksum is wrong, or the head makes no sense
    """
    if len(data) <= HEAD_BYTES or int.from_bytes(data[:CHECKSUM_BYTES], "big") != xxh3_64_intdigest(memoryview(data)[CHECKSUM_BYTES:]):
        raise CorruptLogError(f"checksum of a log record of {len(data)} bytes is wrong")
    head = RecordHead(*_HEAD.unpack_from(data, CHECKSUM_BYTES))
    if not 1 <= head.first_lsn <= head.last_lsn:
        raise CorruptLogError(f"a log record says that it has entries {head.first_lsn}..{head.last_lsn}")
    return head


def head_of(data: bytes) -> RecordHead:
    """What the head of a record says that `read_head` has checked before."""
    return RecordHead(*_HEAD.unpack_from(data, CHECKSUM_BYTES))


def decode_record(data: bytes, head: RecordHead) -> LogRecord:
    """The record in `data`.

    :param head: what `read_head` found in it, so that its checksum is known to be right
    :raises CorruptLogError: the form is wrong
    """
    try:
        record = _decode(memoryview(data)[HEAD_BYTES:])
    except msgspec.MsgspecError as error:
        raise CorruptLogError(f"a log record has the right checksum and the wrong form: {error}") from None
    if record.epoch != head.epoch or record.first_lsn != head.first_lsn or record.last_lsn != head.last_lsn:
        raise CorruptLogError(f"head and body of a log record differ: {head}")
    return record
