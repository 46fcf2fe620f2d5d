"""One RocksDB per host, behind the small interface that the host needs.

All partitions share it, so that one sync makes the changes of every partition durable. A batch is written without sync on the loop
(rocksdict holds the interpreter lock while it writes, and a synced write would hold it while the disk works), then `sync` runs
``flush_wal(True)`` in a thread of its own, which releases the lock.

Errors follow I12: after the first failed write or sync nothing more is written through this handle, every later call raises the same
`StorageError`, and what the failed write did is unknown until the store is opened again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict, RdictIter, ReadOptions, WriteBatch, WriteOptions

from actorgrid.errors import CorruptLogError, DiskFullError, SettingsError, StorageError
from actorgrid.storage import keys

logger = logging.getLogger(__name__)

MIB: Final = 1 << 20
LOG_FAMILY: Final = "log"
FORMAT_VERSION: Final = 1


class StoreIdentity(msgspec.Struct, frozen=True):
    """Whose data a store holds; written when it is created, compared when it is opened."""

    cluster_id: str
    host: str
    partition_count: int
    hosts: tuple[str, ...] = ()  #: of the grid, in order: they decide which partitions are here
    format_version: int = FORMAT_VERSION


class Batch:
    """Changes that become visible and durable together."""

    # The store's handle of the log family is not kept here: it would keep the whole database open.
    __slots__ = ("_batch", "_store")

    def __init__(self, store: Store) -> None:
        self._batch = WriteBatch(raw_mode=True)
        self._store = store

    def put(self, key: bytes, value: bytes) -> None:
        self._batch.put(key, value)

    def delete(self, key: bytes) -> None:
        self._batch.delete(key)

    def append_log(self, key: bytes, record: bytes) -> None:
        self._batch.put(key, record, self._store._log_handle)

    def truncate_log(self, start: bytes, stop: bytes) -> None:
        """Drop log records with ``start <= key < stop``."""
        self._batch.delete_range(start, stop, self._store._log_handle)

    def size_bytes(self) -> int:
        return int(self._batch.size_in_bytes())


class Store:
    """An open store. Methods are called from one thread, the loop's; `sync` reports from another.

    :raises SettingsError: the directory is in use by another process, or belongs to another grid, host or partition count
    :raises CorruptLogError: synced bytes were changed on disk
    :raises DiskFullError: there is no space
    :raises StorageError: anything else the disk says
    """

    def __init__(self, path: Path, identity: StoreIdentity) -> None:
        self.path = path
        self._failed: StorageError | None = None
        self._unsynced_write = WriteOptions()
        self._unsynced_write.sync = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(str(path), _options(), column_families={LOG_FAMILY: _log_options()})
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise _open_error(path, error) from None
        self._log_db = self._db.get_column_family(LOG_FAMILY)
        self._log_handle = self._db.get_column_family_handle(LOG_FAMILY)
        self._syncs: queue.SimpleQueue[Callable[[StorageError | None], None] | None] = queue.SimpleQueue()
        self._sync_thread = threading.Thread(target=self._sync_loop, name=f"sync {path.name}", daemon=True)
        self._sync_thread.start()
        try:
            self._check_identity(identity)
        except BaseException:
            self.close()
            raise

    def _check_identity(self, identity: StoreIdentity) -> None:
        stored = self.get(keys.IDENTITY_KEY)
        mark = self.path.with_name(self.path.name + ".created")
        if stored is None:
            if mark.exists():
                raise SettingsError(
                    f"{self.path} is empty, and {mark.name} beside it says that it once had data: put the data back, or remove that file "
                    "to begin anew and lose what was there"
                )
            batch = self.batch()
            batch.put(keys.IDENTITY_KEY, msgspec.json.encode(identity))
            self.write(batch)
            self.sync_now()
            _write_mark(mark)
            return
        if not mark.exists():
            _write_mark(mark)
        found = msgspec.json.decode(stored, type=StoreIdentity)
        problems = [
            f"{self.path} holds {what} {getattr(found, name)!r}, this host was started for {getattr(identity, name)!r}"
            for name, what in (
                ("format_version", "storage format"),
                ("cluster_id", "data of grid"),
                ("host", "data of host"),
                ("partition_count", "a grid with the partition count"),
                ("hosts", "a grid of the hosts"),
            )
            if getattr(found, name) != getattr(identity, name)
        ]
        if problems:
            raise SettingsError(*problems)

    def next_incarnation(self) -> int:
        """1 in the first life of this store, one more in each; durable with the next sync."""
        stored = self.get(keys.INCARNATION_KEY)
        incarnation = int.from_bytes(stored, "big") + 1 if stored is not None else 1
        batch = self.batch()
        batch.put(keys.INCARNATION_KEY, incarnation.to_bytes(8, "big"))
        self.write(batch)
        return incarnation

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        self._refuse_if_failed()
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("read", error) from None
        return value

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < stop`` as they are now, in order of the keys."""
        return self._scan(self._db, start, stop, reverse)

    def scan_log(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Log records with ``start <= key < stop``, in order."""
        return self._scan(self._log_db, start, stop, reverse=False)

    def _scan(self, family: Rdict, start: bytes, stop: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        self._refuse_if_failed()
        # Bounds are compared here and not given to RocksDB: rocksdict does not keep the memory of iterate bounds alive with the iterator.
        iterator = family.iter(ReadOptions())
        if reverse:
            iterator.seek_for_prev(stop)
            if iterator.valid() and iterator.key() == stop:
                iterator.prev()
            return self._walk(iterator, iterator.prev, lambda key: key >= start)
        iterator.seek(start)
        return self._walk(iterator, iterator.next, lambda key: key < stop)

    def _walk(self, iterator: RdictIter, step: Callable[[], None], inside: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
        while iterator.valid():
            key = iterator.key()
            if not inside(key):
                return
            yield key, iterator.value()
            step()
        try:
            iterator.status()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("scan", error) from None

    # -- writing

    def batch(self) -> Batch:
        return Batch(self)

    def write(self, batch: Batch) -> None:
        """Make `batch` visible; it is durable after the next `sync`.

        :raises StorageError: its outcome is unknown, and the store is of no further use
        """
        self._refuse_if_failed()
        try:
            self._db.write(batch._batch, self._unsynced_write)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("write", error) from None

    def sync(self, done: Callable[[StorageError | None], None]) -> None:
        """Make everything written so far durable, then call ``done(error)`` from the sync thread."""
        self._syncs.put(done)

    def sync_now(self) -> None:
        """Make everything written so far durable, and wait for it.

        :raises StorageError: the outcome is unknown
        """
        self._refuse_if_failed()
        try:
            self._db.flush_wal(True)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("sync", error) from None

    def _sync_loop(self) -> None:
        while (done := self._syncs.get()) is not None:
            try:
                self.sync_now()
            except StorageError as error:
                done(error)
            else:
                done(None)

    @property
    def has_failed(self) -> bool:
        return self._failed is not None

    def _refuse_if_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _fail(self, what: str, error: Exception) -> StorageError:
        if self._failed is None:
            self._failed = _classify(f"{what} in {self.path}: {error}")
            logger.error("storage failed op=%s path=%s error=%s", what, self.path, error)
        return self._failed

    def close(self) -> None:
        """Wait for syncs under way, then close. What was not synced may be lost, as with a crash."""
        self._syncs.put(None)
        self._sync_thread.join(timeout=30)
        del self._log_handle
        with contextlib.suppress(Exception):  # a handle that has failed cannot flush; what was synced is safe
            self._log_db.close()
        with contextlib.suppress(Exception):
            self._db.close()


def _write_mark(mark: Path) -> None:
    """A file outside the store by which an emptied store is told from a new one."""
    with mark.open("w") as file:
        file.write("The store beside this file has data. Without the store, this file keeps the host from starting with an empty one.\n")
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(mark.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _classify(message: str) -> StorageError:
    if "No space left" in message or "Disk quota" in message:
        return DiskFullError(message)
    if "Corruption" in message or "checksum" in message.lower():
        return CorruptLogError(message)
    return StorageError(message)


def _open_error(path: Path, error: Exception) -> Exception:
    message = str(error)
    if "lock" in message.lower() and ("hold" in message or "temporarily unavailable" in message or "No locks" in message):
        return SettingsError(f"data directory {path} is in use by another process ({message})")
    if isinstance(error, NotADirectoryError | FileExistsError | PermissionError):
        return SettingsError(f"data directory {path} cannot be used: {message}")
    return _classify(f"cannot open {path}: {message}")


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # The default mode drops synced data behind a flipped byte without a word (tests/storage shows it);
    # this one accepts a torn tail and nothing else.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_paranoid_checks(True)
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
