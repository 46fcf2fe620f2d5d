"""What the store needs of a database: two ordered families of keys, batches that are written as one, cursors, syncs.

`Database` says it, `RocksDatabase` is RocksDB with the log of `actorgrid.storage.wal`, and nothing else imports rocksdict. The simulation
has another one. The protocols are cut so that rocksdict's own iterators fulfil them as they are, and a read costs no call more than
without this file.

The families are "state", everything that is not log, and "log". Errors are the database's own; the store tells them apart by their words.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict, ReadOptions, WriteOptions
from rocksdict import WriteBatch as RocksBatch

from actorgrid import ambient
from actorgrid.errors import CorruptLogError
from actorgrid.storage import keys
from actorgrid.storage.files import refuse_what_hangs
from actorgrid.storage.wal import WriteAheadLog

logger = logging.getLogger(__name__)

MIB: Final = 1 << 20
#: Two changes of thread, the wait for the interpreter lock and two wake-ups of a sleeping loop take about as long.
QUICK_NS: Final = 500_000
#: The average counts, in which each sync has this part: after one of 20 ms about 14 must be quick.
SYNCS_REMEMBERED: Final = 8
#: Before anything was measured.
UNMEASURED_NS: Final = 5_000_000
#: Of RocksDB's own threads, which flush and compact. All hosts of a grid fill their buffers at about the same time, and where they share a
#: machine these threads took both processors from those that answer. So much nicer than those they still have about a tenth where there is
#: enough to do.
BACKGROUND_NICENESS: Final = 10
#: They begin with their first work, so they are looked for again after so many syncs.
SYNCS_BETWEEN_LOOKS: Final = 128
#: To learn what is in tables by now: after so many batches.
WRITES_BETWEEN_LOOKS: Final = 64
#: Much that nobody syncs, as a copy that comes in, is synced beside the loop from here on: it is in memory until then.
SYNCED_EARLY_BYTES: Final = MIB
#: And from here on before anything else: the disk is slower than what comes.
UNSYNCED_BYTES_MAX: Final = 16 * MIB
CLOSE_WITHIN_S: Final = 30
#: What waits for RocksDB goes in when it is so much: little enough to be no pause.
LATE_BYTES_MAX: Final = 256 * 1024
LOG_FAMILY: Final = "log"
#: The write-ahead log, in the directory of the database.
WAL_DIRECTORY: Final = "wal"
THREADS: Final = Path("/proc/self/task")


class WriteBatch(Protocol):
    """Changes to both families, made together. `family`: nothing for the state, `Database.log_handle` for the log.

    `put_mark` is a `put` that nobody reads before the next start, and whose place among the other changes does not matter.
    """

    def put(self, key: bytes, value: bytes, family: Any = None, /) -> None: ...
    def put_mark(self, key: bytes, value: bytes, family: Any = None, /) -> None: ...
    def delete(self, key: bytes, family: Any = None, /) -> None: ...
    def delete_range(self, start: bytes, stop: bytes, family: Any = None, /) -> None: ...
    def size_in_bytes(self) -> int: ...


class Cursor(Protocol):
    """A place in one family, as that was when the cursor was made. Only one that is `valid` may be asked for a pair or moved on.

    One that is not valid has come to the end, or to an error, which `status` raises.
    """

    def seek(self, key: bytes, /) -> None: ...
    def seek_for_prev(self, key: bytes, /) -> None: ...
    def valid(self) -> bool: ...
    def key(self) -> bytes: ...
    def value(self) -> bytes: ...
    def next(self) -> None: ...
    def prev(self) -> None: ...
    def status(self) -> None: ...


class Database(Protocol):
    """An open database. Methods are called from one thread; `sync_now` also from where `sync_soon` calls back.

    :ivar log_handle: names the log family in batches. Nobody else keeps it: it would keep the whole database open
    :ivar is_quick: a sync of little takes no longer, as things are, than handing it to a thread and hearing of it costs
    """

    log_handle: Any

    @property
    def is_quick(self) -> bool: ...

    def get(self, key: bytes, /) -> bytes | None: ...
    def get_log(self, key: bytes, /) -> bytes | None: ...
    def cursor(self) -> Cursor: ...
    def log_cursor(self) -> Cursor: ...
    def new_batch(self) -> WriteBatch: ...

    def write(self, batch: Any) -> None:
        """Make `batch`, one of `new_batch`, visible; it is durable after the next sync. A batch is written once."""

    def sync_now(self) -> None:
        """Make everything written so far durable, and wait for it."""

    def write_tables(self) -> None:
        """Bring everything written so far into tables: whoever knows nothing of the write-ahead log finds it too. Takes long."""

    def sync_soon(self, work: Callable[[], None]) -> None:
        """Let `work`, which calls `sync_now`, run where the loop does not wait for it: one after the other, in the order of the calls."""

    def state_bytes_estimate(self) -> int: ...

    def close(self) -> None:
        """Wait for syncs under way, then close. What was not synced may be lost, as with a crash."""


class OpenDatabase(Protocol):
    """Opens the database at a path, makes it if there is none.

    `salvage`: take what is before the first damage in the write-ahead log, instead of refusing it.
    """

    def __call__(self, path: Path, /, *, salvage: bool) -> Database: ...


#: What a change does: the families in turn, and to which.
_PUT, _PUT_LOG, _DELETE, _DELETE_LOG, _DELETE_RANGE, _DELETE_RANGE_LOG = range(6)
#: (what, key, value or end of the range)
_Change = tuple[int, bytes, bytes]
#: About what a change takes beside its key and value.
CHANGE_BYTES: Final = 8

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Change]).decode


class LoggedBatch:
    """See `WriteBatch`.

    :ivar changes: in order; :ivar marks: what `put_mark` was given
    :ivar changes_state: not all of `changes` are to the log; :ivar has_ranges: some concern more than one key
    """

    __slots__ = ("_size", "changes", "changes_state", "has_ranges", "marks")

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.marks: list[_Change] = []
        self.changes_state = False
        self.has_ranges = False
        self._size = 0

    def put(self, key: bytes, value: bytes, family: Any = None, /) -> None:
        self._add((_PUT if family is None else _PUT_LOG, key, value))

    def put_mark(self, key: bytes, value: bytes, family: Any = None, /) -> None:
        self.marks.append((_PUT if family is None else _PUT_LOG, key, value))
        self._size += len(key) + len(value) + CHANGE_BYTES

    def delete(self, key: bytes, family: Any = None, /) -> None:
        self._add((_DELETE if family is None else _DELETE_LOG, key, b""))

    def delete_range(self, start: bytes, stop: bytes, family: Any = None, /) -> None:
        self.has_ranges = True
        self._add((_DELETE_RANGE if family is None else _DELETE_RANGE_LOG, start, stop))

    def _add(self, change: _Change) -> None:
        what, key, value = change
        self.changes.append(change)
        self._size += len(key) + len(value) + CHANGE_BYTES
        if not what & 1:
            self.changes_state = True

    def size_in_bytes(self) -> int:
        return self._size


def _key(change: _Change) -> bytes:
    return change[1]


class _Tables:
    """How far the tables of a family are: each batch puts something into both.

    :ivar number: of the last batch that is known to be in them
    """

    def __init__(self, family: Rdict, number: int) -> None:
        self._family = family
        self.number = number
        self._full_number = number  # of the last batch in a buffer that takes no more
        self._seen_number = number  # at the last look
        self._seen_entries = 0

    def look(self, written_number: int) -> None:
        """Everything up to `written_number` is in the tables or in buffers."""
        entries = self._property("rocksdb.num-entries-active-mem-table")
        if entries < self._seen_entries:  # another buffer: what was there at the last look is in an older one
            self._full_number = self._seen_number
        self._seen_entries, self._seen_number = entries, written_number
        if self._full_number > self.number and self._property("rocksdb.num-immutable-mem-table") == 0:
            self.number = self._full_number

    def write(self, written_number: int) -> None:
        """Bring everything up to `written_number` into tables now."""
        if written_number > self.number:
            self._family.flush()
            self.number = self._full_number = written_number

    def _property(self, name: str) -> int:
        value = self._family.property_int_value(name)
        assert value is not None, f"RocksDB has no property {name}"
        return int(value)


class _Late:
    """Batches that RocksDB does not have yet: changes to the log family, and marks.

    They go into its buffers together, in the order of their keys, and of each mark only the last: a batch of one record costs a third then,
    one of 40 records two thirds.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._changes: list[_Change] = []
        self._marks: dict[tuple[int, bytes], _Change] = {}
        self._is_sortable = True

    def add(self, batch: LoggedBatch) -> None:
        self._changes += batch.changes
        for change in batch.marks:
            self._marks[change[0], change[1]] = change
        self._is_sortable = self._is_sortable and not batch.has_ranges
        self.size_bytes += batch.size_in_bytes()

    def changes(self) -> list[_Change]:
        """All of it, in an order that comes to the same."""
        if self._is_sortable:  # what concerns the same key stays in its order
            self._changes.sort(key=_key)
        return [*self._changes, *self._marks.values()]

    def clear(self) -> None:
        """RocksDB has it."""
        self._changes, self._marks, self._is_sortable, self.size_bytes = [], {}, True, 0


class RocksDatabase:
    """RocksDB, with a write-ahead log of our own.

    A batch goes into RocksDB's buffers, and as a record into the log, where a sync makes it durable. After a crash, what the tables lack
    is in the log; each family's tables say how far they go (`keys.BATCH_KEY`).

    Batches that change nothing but the log family wait for one that does, or for somebody who reads the log. So what RocksDB has are always
    whole batches, up to one of them.
    """

    def __init__(self, path: Path, /, *, salvage: bool) -> None:
        path.mkdir(parents=True, exist_ok=True)
        refuse_what_hangs(path)
        self.state_family: Any = Rdict(str(path), _options(salvage=salvage), column_families={LOG_FAMILY: _log_options()})
        self.log_family: Any = self.state_family.get_column_family(LOG_FAMILY)
        self.log_handle: Any = self.state_family.get_column_family_handle(LOG_FAMILY)
        self._at_exit = functools.partial(_write_both, self.state_family)
        atexit.register(self._at_exit)  # who ends without `close` does it too
        # Reads go to rocksdict without a detour.
        self.get: Callable[[bytes], bytes | None] = self.state_family.get
        to_buffers: Any = WriteOptions()
        to_buffers.disable_wal = True
        self._to_buffers = to_buffers
        self._late = _Late()
        try:
            self._wal = WriteAheadLog(path / WAL_DIRECTORY, salvage=salvage)  # nobody else has it: RocksDB has locked the directory
            try:
                self._tables = [_Tables(self.state_family, _number(self.get)), _Tables(self.log_family, _number(self.log_family.get))]
                self._number = self._buffered_number = self._recover(salvage=salvage)
                self.write_tables()
                self._wal.begin(self._number + 1)
            except BaseException:
                self._wal.close()
                raise
        except BaseException:
            self._close_families()
            raise
        self._looked_number = self._number
        self._is_synced_early = False  # or is about to be
        self._syncs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._sync_thread = threading.Thread(target=self._sync_loop, name=f"sync {path.name}", daemon=True)
        self._sync_thread.start()
        self._sync_ns = UNMEASURED_NS
        self._syncs_total = 0
        self._background_niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + BACKGROUND_NICENESS, 19)

    # Bounds of scans are compared by the store and not given to RocksDB: rocksdict does not keep the memory of iterate bounds alive with
    # the iterator.

    def cursor(self) -> Cursor:
        cursor: Cursor = self.state_family.iter(ReadOptions())
        return cursor

    def get_log(self, key: bytes, /) -> bytes | None:
        self._buffer_late()
        value: bytes | None = self.log_family.get(key)
        return value

    def log_cursor(self) -> Cursor:
        self._buffer_late()
        cursor: Cursor = self.log_family.iter(ReadOptions())
        return cursor

    def new_batch(self) -> WriteBatch:
        return LoggedBatch()

    def write(self, batch: Any) -> None:
        number = self._number = self._number + 1
        late, wal = self._late, self._wal
        # First: whatever becomes of the rest, a number that RocksDB's tables may tell of is in the log.
        wal.append(number, _encode(batch.changes + batch.marks))
        late.add(batch)
        if batch.changes_state or late.size_bytes > LATE_BYTES_MAX:
            self._buffer_late()
        unsynced_bytes = wal.waiting_bytes
        if number - self._looked_number >= WRITES_BETWEEN_LOOKS or unsynced_bytes > SYNCED_EARLY_BYTES:
            self._looked_number = number
            self._buffer_late()
            for tables in self._tables:
                tables.look(number)
            wal.release(min(tables.number for tables in self._tables))
            if unsynced_bytes > UNSYNCED_BYTES_MAX:
                wal.sync()
            elif unsynced_bytes > SYNCED_EARLY_BYTES and not self._is_synced_early:
                self._is_synced_early = True
                self._syncs.put(self._sync_early)

    def _sync_early(self) -> None:
        """In the sync thread."""
        self._is_synced_early = False
        try:
            self._wal.sync()
        except Exception:
            # The next sync, which somebody waits for, will fail for the same reason.
            logger.exception("what was written cannot be made durable")

    def _buffer_late(self) -> None:
        """Let RocksDB have everything that was written."""
        if self._buffered_number < self._number:
            self._buffer(self._late.changes(), self._number, state=True, log=True)
            self._late.clear()  # and not before: what did not get there is tried again by whoever comes next
            self._buffered_number = self._number

    def _buffer(self, changes: list[_Change], number: int, *, state: bool, log: bool) -> None:
        """Put the changes of batch `number` to these families into RocksDB's buffers."""
        buffered = RocksBatch(raw_mode=True)
        put = buffered.put
        for what, key, value in changes:
            if what & 1:
                if not log:
                    continue
                if what == _PUT_LOG:
                    put(key, value, self.log_handle)  # no local name: an error keeps those, and that one would keep the database open
                elif what == _DELETE_LOG:
                    buffered.delete(key, self.log_handle)
                else:
                    buffered.delete_range(key, value, self.log_handle)
            elif state:
                if what == _PUT:
                    put(key, value)
                elif what == _DELETE:
                    buffered.delete(key)
                else:
                    buffered.delete_range(key, value)
        stamp = number.to_bytes(8, "big")
        if state:
            put(keys.BATCH_KEY, stamp)
        if log:
            put(keys.BATCH_KEY, stamp, self.log_handle)
        self.state_family.write(buffered, self._to_buffers)

    def _recover(self, *, salvage: bool) -> int:
        """Bring what the tables lack from the log into the buffers; the number of the last batch there is."""
        in_state, in_log = self._tables[0].number, self._tables[1].number
        last = first = min(in_state, in_log)
        if max(in_state, in_log) and self._wal.is_new and not salvage:
            raise CorruptLogError(f"the write-ahead log is gone: nothing is in {WAL_DIRECTORY}/, and there was something")
        for number, payload in self._wal.recover(first, salvage=salvage):
            try:
                changes = _decode(payload)
            except msgspec.MsgspecError as error:
                raise CorruptLogError(f"record {number} of the write-ahead log cannot be read: {error}") from None
            self._buffer(changes, number, state=number > in_state, log=number > in_log)
            last = number
        # A store that failed may have tables that go further than what was synced: those of both families, or it is a mixture, of which
        # positions tell nothing.
        if last < max(in_state, in_log) and in_state != in_log:
            raise CorruptLogError(f"the write-ahead log ends with record {last}, and one family's tables with {max(in_state, in_log)}")
        return max(last, in_state, in_log)

    def write_tables(self) -> None:
        self._buffer_late()
        self._wal.sync()  # one family's tables are there before the other's: what they have, the log must have
        for tables in self._tables:
            tables.write(self._number)
        self._wal.release(self._number)

    def sync_now(self) -> None:
        began_ns = ambient.monotonic_ns()
        if self._wal.sync():
            self._sync_ns += (ambient.monotonic_ns() - began_ns - self._sync_ns) // SYNCS_REMEMBERED
        self._syncs_total += 1
        if self._syncs_total % SYNCS_BETWEEN_LOOKS == 0:
            self._calm_background()

    def _calm_background(self) -> None:
        """Let RocksDB's threads give way to the others of this process, where the system has a niceness for each thread (Linux)."""
        with contextlib.suppress(OSError):  # no such directory, or no descriptor left: then they are looked for again
            for thread in os.listdir(THREADS):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if (THREADS / thread / "comm").read_bytes().startswith(b"rocksdb:"):
                        os.setpriority(os.PRIO_PROCESS, int(thread), self._background_niceness)

    @property
    def is_quick(self) -> bool:
        return self._sync_ns < QUICK_NS

    def sync_soon(self, work: Callable[[], None]) -> None:
        self._syncs.put(work)

    def _sync_loop(self) -> None:
        while (work := self._syncs.get()) is not None:
            work()

    def state_bytes_estimate(self) -> int:
        names = ("rocksdb.estimate-live-data-size", "rocksdb.cur-size-all-mem-tables")
        return int(sum(self.state_family.property_int_value(name) or 0 for name in names))

    def close(self) -> None:
        self._syncs.put(None)
        self._sync_thread.join(timeout=CLOSE_WITHIN_S)
        try:
            if not self._sync_thread.is_alive():  # else the disk hangs, and the log with it
                self._wal.close()
        except OSError as error:
            logger.warning("what was written last is not durable error=%s", error)
        finally:
            self._close_families()

    def _close_families(self) -> None:
        atexit.unregister(self._at_exit)
        self._at_exit()
        self.log_handle = None
        with contextlib.suppress(Exception):  # there is nothing left to write, which they call an error
            self.log_family.close()
        with contextlib.suppress(Exception):
            self.state_family.close()


def _write_both(database: Any) -> None:
    """End RocksDB's work; it writes the tables of both families then, or of none.

    Their own `close`, and their end without one, write one family each: where the log had failed before, the other one's tables might never
    be written, and nothing would have what they lack.
    """
    with contextlib.suppress(Exception):  # a handle that has failed cannot write; what was synced is safe
        database.cancel_all_background(True)


def _number(get: Callable[[bytes], bytes | None]) -> int:
    stored = get(keys.BATCH_KEY)
    return int.from_bytes(stored, "big") if stored is not None else 0


def _options(*, salvage: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # RocksDB's own write-ahead log is empty, but in a store of format 2 that was not closed. The default mode drops synced data behind a
    # flipped byte without a word; this one accepts a torn tail and nothing else.
    mode = DBRecoveryMode.point_in_time() if salvage else DBRecoveryMode.tolerate_corrupted_tail_records()
    options.set_wal_recovery_mode(mode)
    options.set_paranoid_checks(True)
    # Both families go into tables together, so that what tables have is one moment: then a store whose write-ahead log is lost is an older
    # store, and no mixture.
    options.set_atomic_flush(True)
    options.set_write_buffer_size(64 * MIB)
    options.set_max_write_buffer_number(4)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(8 * MIB)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(128 * MIB))
    options.set_block_based_table_factory(table)
    return options


def _log_options() -> Options:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(32 * MIB)
    options.set_max_write_buffer_number(4)
    return options
