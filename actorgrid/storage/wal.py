"""The write-ahead log: the batches that the database's tables do not have yet, in files that are as large as they get before they are used.

A sync is one write to bytes that the file system has given out long before: no journal of the file system takes part in it, and nothing
but those bytes goes to the disk. (Where a file grows, every sync writes its size and the map of its blocks as well.) Why it is not
RocksDB's own, `docs/decisions/0020-a-write-ahead-log-of-our-own.md` says.

A *segment* is a file of `SEGMENT_BYTES`, filled with zeros when it is made, and used again and again: first a block with two copies of its
header, then frames. What is left from an earlier use has another salt, so nothing of it counts. A *frame* is what one sync made durable:
records, one for each batch, numbered without a gap. Integers are little endian.

=======  =====================================================================================================
header   magic (8 bytes), sequence (8), salt (8), size of the file (8), number of the first record (8), xxh3 of these (8)
frame    low half of the salt (4), size of the records (4), number of the first record (8), checksum (8), records
record   size (4), payload
=======  =====================================================================================================

The checksum of a frame is xxh3 of its records with ``salt + number`` as the seed; a frame begins at a multiple of 8.

Each write is durable before the next one begins. So behind a frame that is not whole there is nothing that is whole, unless bytes that
were synced have changed since: then the log is damaged, and says so. What a crash leaves of its last write is no damage.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from actorgrid import ambient
from actorgrid.errors import CorruptLogError
from actorgrid.storage.files import sync_directory

logger = logging.getLogger(__name__)

#: About two seconds of a loaded host: small enough to be made in a few milliseconds, large enough that a new one is a rare event.
SEGMENT_BYTES: Final = 4 << 20
#: What direct writes are made of: that many bytes, and at multiples of it.
BLOCK_BYTES: Final = 4096
#: Segments that are kept for their next use. The database's tables are written when some 64 MiB are in memory, which frees so many at once.
FREE_MAX: Final = 24

_MAGIC: Final = b"AGWAL\x00\x00\x01"
_HEADER: Final = struct.Struct("<8sQQQQ")  # and the checksum
#: Where in the first block the copies of the header are: in sectors of their own, so that a write that is cut off leaves one whole.
_HEADER_COPIES: Final = (0, 2048)
_FRAME: Final = struct.Struct("<IIQQ")
_RECORD: Final = struct.Struct("<I")
_FRAME_ALIGNMENT: Final = 8
_BUFFER_BYTES: Final = 256 * 1024
#: The name of a file that does not have its size yet ends so.
_UNFINISHED: Final = ".new"
_CHECKSUM_BYTES: Final = 8
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1
_DIRECT: Final = getattr(os, "O_DIRECT", 0)  # not everywhere; without it the kernel keeps a copy of what it writes


class _Segment(NamedTuple):
    """A file in use: ``sequence`` says which came later, ``size`` how large it was made."""

    sequence: int
    first_number: int
    salt: int
    size: int
    path: Path


class _Frame(NamedTuple):
    """A whole frame in the bytes of a segment: its records are at ``begin .. end``."""

    first_number: int
    begin: int
    end: int


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class WriteAheadLog:
    """The log in `directory`, which is made if it is not there.

    First `recover` everything, then `begin`; then `append` from one thread and `sync` from any.

    :ivar is_new: there was no segment in use
    :raises OSError: what the system says
    :raises CorruptLogError: of a segment nothing is known any more
    """

    def __init__(self, directory: Path, *, salvage: bool = False) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # of everything below but the counts
        self._free: deque[Path] = deque()
        self._used: list[_Segment] = []
        self._is_direct = bool(_DIRECT)  # as long as the file system takes it
        self._file = -1  # the last of `_used`, to write to
        self._offset = 0  # in it, of the buffer's first byte
        self._filled = 0  # bytes of the buffer that are written already and share a block with what comes next
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._preparing: threading.Thread | None = None
        self._next_file = 1
        self._released_number = 0
        self._failure: BaseException | None = None
        self._appended_bytes = self._taken_bytes = 0
        directory.mkdir(parents=True, exist_ok=True)
        # Also what is there already: the process before may have ended before it had synced these names.
        sync_directory(directory.parent)
        sync_directory(directory)
        for path in sorted(directory.iterdir()):
            self._look_at(path, salvage=salvage)
        self._used.sort()
        self.is_new = not self._used

    def _look_at(self, path: Path, *, salvage: bool) -> None:
        if path.name.endswith(_UNFINISHED):
            path.unlink()
            return
        if not path.name.isdigit():
            return
        self._next_file = max(self._next_file, int(path.name) + 1)
        with path.open("rb") as file:
            block = file.read(BLOCK_BYTES)
        copies = [block[at : at + _HEADER.size + _CHECKSUM_BYTES] for at in _HEADER_COPIES]
        found = []
        for copy in copies:
            segment = _segment_of(copy, path)
            if segment is not None:
                found.append(segment)
        if found:
            self._used.append(max(found))  # a new one whose second copy was not written any more still has an older one there
        elif _was_never_used(path):
            path.unlink()  # perhaps it was not even synced
        elif salvage:
            logger.warning("a segment of the write-ahead log has no header, it is dropped path=%s", path)
            path.unlink()
        else:
            raise CorruptLogError(f"{path}: the header of the segment does not match its checksum")

    # -- after a start

    def recover(self, durable_number: int, *, salvage: bool) -> Iterator[tuple[int, memoryview]]:
        """(number, payload) of every record behind `durable_number`, oldest first.

        :param salvage: end at the first damage, and drop what is behind it
        :raises CorruptLogError: a record that was synced is not there any more, or not as it was
        """
        number = durable_number + 1
        for index, segment in enumerate(self._used):
            following = self._used[index + 1] if index + 1 < len(self._used) else None
            if following is not None and following.first_number <= durable_number + 1:
                continue  # all of it is in tables
            damage = ""
            if segment.first_number > number:
                damage = f"begins with record {segment.first_number}, where {number} was expected"
            else:
                at = segment.first_number
                data = segment.path.read_bytes()
                offset = BLOCK_BYTES
                while (frame := _frame_at(data, offset, segment.salt)) is not None and frame.first_number == at:
                    for payload in _records(data, frame):
                        if at > durable_number:
                            yield at, payload
                        at += 1
                    offset = _round_up(frame.end, _FRAME_ALIGNMENT)
                number = max(number, at)
                if following is not None and at == following.first_number:
                    continue
                if len(data) < segment.size:
                    damage = f"is cut: {len(data)} bytes of {segment.size}"
                elif following is not None:
                    damage = f"ends before record {at}, and the next one begins with {following.first_number}"
                elif (later := _whole_frame_behind(data, offset, segment.salt)) >= 0:
                    damage = f"has no whole frame at byte {offset}, where record {at} was expected, and one at byte {later}"
            if damage:
                if not salvage:
                    raise CorruptLogError(f"the write-ahead log is damaged: segment {segment.path} {damage}")
                logger.warning("the write-ahead log ends at a damage number=%s path=%s damage=%s", number, segment.path, damage)
                self._drop_from(index if segment.first_number > number else index + 1)
                return

    def _drop_from(self, index: int) -> None:
        """These segments continue nothing any more, and must not be taken for what does."""
        for segment in self._used[index:]:
            segment.path.unlink()
        del self._used[index:]
        sync_directory(self._directory)

    def begin(self, number: int) -> None:
        """Go on with record `number`, in a segment of its own.

        :raises OSError: what the system says
        """
        with self._lock:
            self._begin_segment(number, SEGMENT_BYTES)

    # -- writing

    @property
    def waiting_bytes(self) -> int:
        """About how much the next sync has to write."""
        return self._appended_bytes - self._taken_bytes

    def append(self, number: int, payload: bytes) -> None:
        """Put a record at the end: the next sync writes it. Until then it is nowhere but in memory."""
        self._waiting.append((number, payload))
        self._appended_bytes += len(payload)

    def sync(self) -> bool:
        """Make durable what was appended before, and wait for it; whether there was anything.

        :raises OSError: what the system says. What is on the disk is not known then: nothing is written any more, and each later call fails
        """
        with self._lock:
            if self._failure is not None:
                raise OSError(errno.EIO, f"an earlier sync of the write-ahead log failed: {self._failure}")
            waiting = self._waiting
            count = len(waiting)
            if not count:
                return False
            first_number = waiting[0][0]
            payloads = [waiting.popleft()[1] for _ in range(count)]
            parts = []
            for payload in payloads:
                parts.append(_RECORD.pack(len(payload)))
                parts.append(payload)
            self._taken_bytes += sum(map(len, payloads))
            try:
                self._write_frame(first_number, parts)
            except BaseException as error:
                self._failure = error.with_traceback(None)
                raise
            return True

    def release(self, number: int) -> None:
        """Records up to `number` are in tables: their segments may be used anew."""
        self._released_number = number

    def _write_frame(self, first_number: int, parts: list[bytes]) -> None:
        records = b"".join(parts)
        size = _FRAME.size + len(records)
        if self._offset + self._filled + size > self._used[-1].size:
            self._begin_segment(first_number, max(SEGMENT_BYTES, _round_up(BLOCK_BYTES + size, BLOCK_BYTES)))
        salt = self._used[-1].salt
        checksum = xxh3_64_intdigest(records, seed=(salt + first_number) & _U64)
        begin = self._filled
        end = begin + size
        padded = _round_up(end, BLOCK_BYTES)
        buffer = self._buffer
        if padded > len(buffer):
            buffer = mmap.mmap(-1, padded)
            buffer[:begin] = self._buffer[:begin]
        _FRAME.pack_into(buffer, begin, salt & _U32, len(records), first_number, checksum)
        buffer[begin + _FRAME.size : end] = records
        buffer[end:padded] = bytes(padded - end)
        self._write(buffer, padded)
        # What comes next begins in the last block, which is written once more then.
        kept = _round_up(end, _FRAME_ALIGNMENT)
        block = kept // BLOCK_BYTES * BLOCK_BYTES
        self._offset += block
        self._filled = kept - block
        self._buffer[: self._filled] = buffer[block:kept]

    def _write(self, buffer: mmap.mmap, size: int) -> None:
        """The buffer's first `size` bytes, durable when this returns."""
        with memoryview(buffer) as view:
            written = 0
            while written < size:
                with view[written:size] as rest:
                    written += os.pwritev(self._file, [rest], self._offset + written)

    # -- segments

    def _begin_segment(self, number: int, size: int) -> None:
        self._give_back()
        path = self._take_file(size)
        sequence = self._used[-1].sequence + 1 if self._used else 1
        segment = _Segment(sequence, number, int.from_bytes(ambient.random_bytes(8), "little"), size, path)
        header = _header_of(segment)
        buffer = self._buffer
        buffer[:BLOCK_BYTES] = bytes(BLOCK_BYTES)
        for at in _HEADER_COPIES:
            buffer[at : at + len(header)] = header
        self._offset = self._filled = 0
        self._open(path)
        try:
            self._write(buffer, BLOCK_BYTES)
        except OSError as error:
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
            self._is_direct = False  # a file system may open a file so and then not write it
            self._open(path)
            self._write(buffer, BLOCK_BYTES)
        self._offset = BLOCK_BYTES
        self._used.append(segment)
        if not self._free:
            self._preparing = threading.Thread(target=self._prepare, name=f"wal {self._directory.parent.name}", daemon=True)
            self._preparing.start()

    def _open(self, path: Path) -> None:
        self._close_file()
        flags = os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC
        if self._is_direct:
            try:
                self._file = os.open(path, flags | _DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False
        if self._file < 0:
            self._file = os.open(path, flags)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _take_file(self, size: int) -> Path:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        return self._free.popleft() if self._free and size == SEGMENT_BYTES else self._make_file(size)

    def _prepare(self) -> None:
        """In a thread of its own: make the next file before it is needed."""
        try:
            self._free.append(self._make_file(SEGMENT_BYTES))
        except OSError as error:
            # Who needs it tries again, and fails if it still cannot be.
            logger.warning("the next segment of the write-ahead log could not be made path=%s error=%s", self._directory, error)

    def _make_file(self, size: int) -> Path:
        path = self._directory / f"{self._next_file:08}"
        unfinished = path.with_name(path.name + _UNFINISHED)
        self._next_file += 1
        try:
            file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                _fill_with_zeros(file, size)
            finally:
                os.close(file)
            unfinished.rename(path)
            sync_directory(self._directory)
        except OSError:
            unfinished.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise
        return path

    def _give_back(self) -> None:
        """Segments that only have what is in tables are free."""
        used = self._used
        while len(used) > 1 and used[1].first_number <= self._released_number + 1:
            self._put_away(used.pop(0).path)

    def _put_away(self, path: Path) -> None:
        if path.stat().st_size == SEGMENT_BYTES and len(self._free) < FREE_MAX:
            self._free.append(path)
        else:
            path.unlink()

    def close(self) -> None:
        """Sync, unless a sync has failed, then write nothing more.

        :raises OSError: as `sync`
        """
        try:
            if self._failure is None:
                self.sync()
        finally:
            with self._lock:
                if self._preparing is not None:
                    self._preparing.join()
                self._close_file()


def _was_never_used(path: Path) -> bool:
    """Whether a crash has left the file without a header: before the first write to it, or in its middle."""
    data = path.read_bytes()
    return len(data) >= SEGMENT_BYTES and not data[BLOCK_BYTES:].strip(b"\0")


def _header_of(segment: _Segment) -> bytes:
    head = _HEADER.pack(_MAGIC, segment.sequence, segment.salt, segment.size, segment.first_number)
    return head + xxh3_64_intdigest(head).to_bytes(_CHECKSUM_BYTES, "little")


def _segment_of(header: bytes, path: Path) -> _Segment | None:
    """What a copy of a header says; None: it is none, or not whole."""
    head, checksum = header[: _HEADER.size], header[_HEADER.size :]
    if len(checksum) < _CHECKSUM_BYTES or head[: len(_MAGIC)] != _MAGIC or int.from_bytes(checksum, "little") != xxh3_64_intdigest(head):
        return None
    _, sequence, salt, size, first_number = _HEADER.unpack(head)
    return _Segment(sequence, first_number, salt, size, path)


def _frame_at(data: bytes, offset: int, salt: int) -> _Frame | None:
    """The frame at `offset`; None: there is none, or it is not whole."""
    begin = offset + _FRAME.size
    if begin > len(data):
        return None
    marker, size, first_number, checksum = _FRAME.unpack_from(data, offset)
    end = begin + size
    if marker != salt & _U32 or end > len(data):
        return None
    with memoryview(data) as view, view[begin:end] as records:
        if checksum != xxh3_64_intdigest(records, seed=(salt + first_number) & _U64):
            return None
    return _Frame(first_number, begin, end)


def _records(data: bytes, frame: _Frame) -> Iterator[memoryview]:
    """The payloads in a whole frame."""
    view = memoryview(data)
    at = frame.begin
    while at < frame.end:
        (size,) = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        yield view[at : at + size]
        at += size


def _whole_frame_behind(data: bytes, offset: int, salt: int) -> int:
    """Where the first whole frame at `offset` or behind begins; -1: nowhere."""
    marker = (salt & _U32).to_bytes(4, "little")
    while (offset := data.find(marker, offset)) >= 0:
        if offset % _FRAME_ALIGNMENT == 0 and _frame_at(data, offset, salt) is not None:
            return offset
        offset += 1
    return -1


def _fill_with_zeros(file: int, size: int) -> None:
    """Written and not only reserved: the first write to bytes that are reserved has to note that they are written."""
    zeros = memoryview(bytes(min(size, 1 << 20)))
    written = 0
    while written < size:
        written += os.write(file, zeros[: size - written])
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):  # nobody reads them
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
