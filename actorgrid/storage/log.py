"""The log of one replica: records at the end, old ones dropped at the front, uncommitted ones at the back.

A record is kept under the position of its last entry. What is known of the log in memory is small: its bounds, where epochs begin, how
many bytes lie in stretches of it, and a *tail* with the bytes of the newest records, so that what was just appended can be sent and
applied without reading it back. Records are whole everywhere: the same (epoch, lsn) is the same record on every replica (I3).

An appended record is on disk only once its batch is written; until then the tail has it, whatever the size.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from actorgrid.errors import CorruptLogError
from actorgrid.replication.entry import LogRecord, RecordHead, decode_record, head_of, read_head
from actorgrid.storage import keys
from actorgrid.storage.store import Batch, Store

#: Newest records kept in memory, per replica: a secondary that follows is sent the last few; one that does not is read from disk.
LOG_TAIL_BYTES_MAX: Final = 256 * 1024
#: The log's size is known in stretches of this part of what is retained, which is how finely its front is dropped.
STRETCHES: Final = 16

_encode = msgspec.msgpack.Encoder().encode
_decode_start = msgspec.msgpack.Decoder(tuple[int, int]).decode


class LogItem(NamedTuple):
    """One record: what its head says, and its bytes, head and all."""

    head: RecordHead
    data: bytes


class ReplicaLog:
    """The records of one replica, first_lsn by first_lsn.

    :param retention_bytes: what is kept even though nothing here needs it, so that others can catch up
    :ivar start_lsn: the first position in the log; ``last_lsn + 1`` if it is empty
    :ivar last_lsn: the last position; of an empty log: the one before the first that can be appended
    :ivar time_ms: the time of the record that ends at `time_lsn`; -1 there: it is not known
    :ivar epochs: (first lsn, epoch) of each run of equal epochs; if the log does not begin at 1, the first is (start_lsn - 1, its epoch)
    """

    def __init__(self, partition: int, prefix: bytes, store: Store, retention_bytes: int) -> None:
        self._partition = partition
        self._prefix = prefix
        self._store = store
        self._retention_bytes = retention_bytes
        self._stretch_bytes = retention_bytes // STRETCHES
        self._stretches: deque[tuple[int, int]] = deque()  # (last lsn, bytes), oldest first
        self._stretched_bytes = 0  # of all of them
        self._open_bytes = 0  # of the records behind the last stretch
        # By first lsn, without a hole, up to last_lsn. Bytes and nothing else: of objects that Python's garbage collector looks at a loaded
        # host had 200,000 here. As many went as came, so it had long not run, and then one collection of the *young* took 0.2 s.
        self._tail: dict[int, bytes] = {}
        self._tail_start_lsn = 1
        self._tail_bytes = 0
        self._tail_batch = 0  # what was appended with this one may not be on disk yet
        self.start_lsn = 1
        self.last_lsn = 0
        self.time_ms = 0
        self.time_lsn = 0
        self.epochs: list[tuple[int, int]] = []
        self._last_epoch = 0

    # -- start

    def recover(self) -> Iterator[LogItem]:
        """Every record there is, oldest first, checked to be whole and to follow the one before it. Exhaust it before anything else.

        :raises CorruptLogError: the log has a hole, or a record does not match its checksum
        """
        stored = self._store.get(self._prefix + keys.META_LOG_START)
        if stored is not None:
            try:
                self.last_lsn, epoch = _decode_start(stored)
            except msgspec.MsgspecError as error:
                raise self.corrupt(f"where the log begins is not known: {error}") from None
            self.epochs = [(self.last_lsn, epoch)]
            self._last_epoch = epoch
            self.start_lsn = self._tail_start_lsn = self.last_lsn + 1
        for item in self._stored(self.start_lsn, None):
            head = item.head
            if head.first_lsn != self.last_lsn + 1:
                raise self.corrupt(f"the log continues at {head.first_lsn} where {self.last_lsn + 1} was expected")
            if head.epoch < self._last_epoch:
                raise self.corrupt(f"epoch {head.epoch} follows epoch {self._last_epoch} at {head.first_lsn}")
            self._take(head, item.data)
            self._shorten_tail()
            yield item

    def corrupt(self, what: str) -> CorruptLogError:
        return CorruptLogError(f"partition {self._partition}: {what}")

    # -- writing

    def append(self, batch: Batch, data: bytes, head: RecordHead, time_ms: int | None = None) -> None:
        """Put an encoded record at the end.

        :param time_ms: the record's time, if it is known without decoding it
        """
        last_lsn = head.last_lsn
        assert head.first_lsn == self.last_lsn + 1, f"{head} does not follow {self.last_lsn}"
        batch.append_log(self._prefix + last_lsn.to_bytes(8, "big"), data)
        if batch.number != self._tail_batch:  # what came with another batch is written
            self._tail_batch = batch.number
            if self._tail_bytes > LOG_TAIL_BYTES_MAX:
                self._shorten_tail()
        self._take(head, data)
        if time_ms is not None:
            self.time_ms, self.time_lsn = time_ms, last_lsn

    def _take(self, head: RecordHead, data: bytes) -> None:
        epoch, first_lsn, last_lsn = head
        size = len(data)
        self._tail[first_lsn] = data
        self._tail_bytes += size
        self._open_bytes += size
        if self._open_bytes >= self._stretch_bytes:
            self._stretches.append((last_lsn, self._open_bytes))
            self._stretched_bytes += self._open_bytes
            self._open_bytes = 0
        if epoch != self._last_epoch:
            assert epoch > self._last_epoch, f"epoch {epoch} follows epoch {self._last_epoch}"
            self.epochs.append((first_lsn, epoch))
            self._last_epoch = epoch
        self.last_lsn = last_lsn

    @property
    def size_bytes(self) -> int:
        """Size of the records."""
        return self._stretched_bytes + self._open_bytes

    def _shorten_tail(self) -> None:
        """Let the oldest records go that are too much."""
        while self._tail_bytes > LOG_TAIL_BYTES_MAX:
            data = self._tail.pop(self._tail_start_lsn)
            self._tail_bytes -= len(data)
            self._tail_start_lsn = head_of(data).last_lsn + 1

    def truncate_suffix(self, batch: Batch, from_lsn: int) -> None:
        """Drop every record from the one that begins at `from_lsn` on."""
        assert self.start_lsn <= from_lsn <= self.last_lsn, f"{from_lsn} is not in the log {self.start_lsn}..{self.last_lsn}"
        size = 0
        for head, data in list(self.items(from_lsn)):
            assert head.first_lsn >= from_lsn, f"{from_lsn} is inside of {head}"
            batch.delete_log(self._prefix + keys.lsn_key(head.last_lsn))
            size += len(data)
            if self._tail.pop(head.first_lsn, None) is not None:
                self._tail_bytes -= len(data)
        self._open_bytes -= size
        while self._open_bytes < 0:
            _, reopened = self._stretches.pop()
            self._stretched_bytes -= reopened
            self._open_bytes += reopened
        self.last_lsn = from_lsn - 1
        self.time_lsn = -1
        if not self._tail:
            self._tail_start_lsn = from_lsn
        while self.epochs and self.epochs[-1][0] >= from_lsn:
            self.epochs.pop()
        self._last_epoch = self.epochs[-1][1] if self.epochs else 0

    def truncate_prefix(self, batch: Batch, up_to_lsn: int) -> None:
        """Drop the oldest records that are more than what is to be retained, none of them behind `up_to_lsn`."""
        stretches, dropped_lsn = self._stretches, 0
        while self.size_bytes > self._retention_bytes and stretches and stretches[0][0] <= up_to_lsn and stretches[0][0] < self.last_lsn:
            dropped_lsn, size = stretches.popleft()
            self._stretched_bytes -= size
        if not dropped_lsn:
            return
        epoch = self.epoch_at(dropped_lsn)
        batch.put(self._prefix + keys.META_LOG_START, _encode((dropped_lsn, epoch)))
        batch.truncate_log(self._prefix + keys.lsn_key(self.start_lsn), self._prefix + keys.lsn_key(dropped_lsn + 1))
        self.start_lsn = dropped_lsn + 1
        self.epochs[: bisect.bisect_right(self.epochs, dropped_lsn, key=_first)] = [(dropped_lsn, epoch)]

    # -- reading

    def epoch_at(self, lsn: int) -> int:
        """The epoch of a position in ``start_lsn - 1 .. last_lsn``; 0 at position 0."""
        assert self.start_lsn - 1 <= lsn <= self.last_lsn, f"{lsn} is not in the log {self.start_lsn}..{self.last_lsn}"
        return self.epochs[bisect.bisect_right(self.epochs, lsn, key=_first) - 1][1] if lsn else 0

    def read(self, from_lsn: int, bytes_max: int) -> list[LogItem]:
        """Records from the one that begins at `from_lsn` on, until they are `bytes_max`, at least one; none behind the end.

        A `from_lsn` inside of a record gives that record too: who asks for it can only have another log, and will find that out.

        :raises CorruptLogError: a record on disk does not match its checksum, or is not there
        """
        data = self._tail.get(from_lsn)
        if data is not None and (head := head_of(data)).last_lsn == self.last_lsn:
            return [LogItem(head, data)]
        assert from_lsn >= self.start_lsn, f"{from_lsn} is before the log's start {self.start_lsn}"
        found: list[LogItem] = []
        size = 0
        for item in self.items(from_lsn):
            size += len(item.data)
            if found and size > bytes_max:
                break
            found.append(item)
        return found

    def items(self, from_lsn: int) -> Iterator[LogItem]:
        """Records from the one with `from_lsn` on, to the end, from disk as far as the tail does not have them."""
        lsn = from_lsn
        while lsn <= self.last_lsn:
            if lsn >= self._tail_start_lsn:
                data = self._tail.get(lsn) or self._tail_with(lsn)
                head = head_of(data)
                lsn = head.last_lsn + 1
                yield LogItem(head, data)
                continue
            stop_lsn = self._tail_start_lsn
            for item in self._stored(lsn, stop_lsn):
                if item.head.first_lsn > lsn:
                    break
                lsn = item.head.last_lsn + 1
                yield item
            if lsn < stop_lsn:
                raise self.corrupt(f"the log has no record at {lsn}, and should have all from {self.start_lsn} to {self.last_lsn}")

    def _tail_with(self, lsn: int) -> bytes:
        return next(data for data in reversed(self._tail.values()) if head_of(data).first_lsn <= lsn)

    def _stored(self, from_lsn: int, stop_lsn: int | None) -> Iterator[LogItem]:
        """Records on disk that end at `from_lsn` or behind, and before `stop_lsn`, their checksums verified."""
        prefix = self._prefix
        stop = prefix + keys.lsn_key(stop_lsn) if stop_lsn is not None else keys.after(prefix)
        for key, data in self._store.scan_log(prefix + keys.lsn_key(from_lsn), stop):
            last_lsn = int.from_bytes(key[len(prefix) :], "big")
            try:
                head = read_head(data)
            except CorruptLogError as error:
                raise self.corrupt(f"log record that ends at {last_lsn}: {error}") from None
            if head.last_lsn != last_lsn:
                raise self.corrupt(f"log record that ends at {last_lsn}: its head says {head.first_lsn}..{head.last_lsn}")
            yield LogItem(head, data)

    def decode(self, item: LogItem) -> LogRecord:
        """The record in `item`.

        :raises CorruptLogError: it is none
        """
        try:
            return decode_record(item.data, item.head)
        except CorruptLogError as error:
            raise self.corrupt(f"log record that ends at {item.head.last_lsn}: {error}") from None


def _first(run: tuple[int, int]) -> int:
    return run[0]
