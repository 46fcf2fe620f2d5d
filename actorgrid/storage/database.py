"""What the store needs of a database: two ordered families of keys, batches that are written as one, cursors, syncs.

`Database` says it, `RocksDatabase` is RocksDB, and nothing else imports rocksdict. The simulation has another one. The protocols are cut
so that rocksdict's own batches and iterators fulfil them as they are, and a read costs no call more than without this file.

The families are "state", everything that is not log, and "log". Errors are the database's own; the store tells them apart by their words.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict, ReadOptions, WriteOptions
from rocksdict import WriteBatch as RocksBatch

from actorgrid import ambient
from actorgrid.storage.files import refuse_what_hangs

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
LOG_FAMILY: Final = "log"
THREADS: Final = Path("/proc/self/task")


class WriteBatch(Protocol):
    """Changes to both families, made together. `family`: nothing for the state, `Database.log_handle` for the log."""

    def put(self, key: bytes, value: bytes, family: Any = None, /) -> None: ...
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


class RocksDatabase:
    """RocksDB.

    A batch is written without sync on the loop (rocksdict holds the interpreter lock while it writes, and a synced write would hold it
    while the disk works), then ``flush_wal(True)`` syncs in a thread of its own, which releases the lock.
    """

    def __init__(self, path: Path, /, *, salvage: bool) -> None:
        path.mkdir(parents=True, exist_ok=True)
        refuse_what_hangs(path)
        self.state_family = Rdict(str(path), _options(salvage=salvage), column_families={LOG_FAMILY: _log_options()})
        self.log_family = self.state_family.get_column_family(LOG_FAMILY)
        self.log_handle = self.state_family.get_column_family_handle(LOG_FAMILY)
        # Reads go to rocksdict without a detour.
        self.get: Callable[[bytes], bytes | None] = self.state_family.get
        self.get_log: Callable[[bytes], bytes | None] = self.log_family.get
        self._unsynced_write = WriteOptions()
        self._unsynced_write.sync = False
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

    def log_cursor(self) -> Cursor:
        cursor: Cursor = self.log_family.iter(ReadOptions())
        return cursor

    def new_batch(self) -> WriteBatch:
        batch: WriteBatch = RocksBatch(raw_mode=True)
        return batch

    def write(self, batch: Any) -> None:
        self.state_family.write(batch, self._unsynced_write)

    def sync_now(self) -> None:
        began_ns = ambient.monotonic_ns()
        self.state_family.flush_wal(True)
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
        self._sync_thread.join(timeout=30)
        del self.log_handle
        with contextlib.suppress(Exception):  # a handle that has failed cannot flush; what was synced is safe
            self.log_family.close()
        with contextlib.suppress(Exception):
            self.state_family.close()


def _options(*, salvage: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # The default mode drops synced data behind a flipped byte without a word (tests/storage shows it);
    # this one accepts a torn tail and nothing else.
    mode = DBRecoveryMode.point_in_time() if salvage else DBRecoveryMode.tolerate_corrupted_tail_records()
    options.set_wal_recovery_mode(mode)
    options.set_paranoid_checks(True)
    # Both families go into tables together, so that what tables have is one moment, and one write-ahead log has what came after. Else
    # several are needed at a time, and an older one that is lost or cut leaves a gap in the middle that no position tells.
    options.set_atomic_flush(True)
    options.set_write_buffer_size(64 * MIB)
    options.set_max_write_buffer_number(4)
    options.set_max_total_wal_size(512 * MIB)
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
