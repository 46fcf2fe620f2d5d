"""One database per host, RocksDB but for simulations, behind the small interface that the host needs.

All partitions share it, so that one sync makes the changes of every partition durable. A batch is written without sync on the loop, then
`Store.sync` lets the database sync in a thread of its own.

Errors follow I12: after the first failed write or sync nothing more is written through this handle, every later call raises the same
`StorageError`, and what the failed write did is unknown until the store is opened again.

A disk can also go back in time without an error: emptied, put back from an old copy, its write-ahead log deleted or cut. The store
cannot see that, its peers can (I6): it has a name of its own (`Store.store_id`) and counts the batches that hold promises
(`Store.position`); peers remember the highest count they heard (`PeerMark`), and a store that has less is not the one it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from actorgrid import ambient
from actorgrid.errors import CorruptLogError, DiskFullError, SettingsError, StorageError
from actorgrid.storage import keys
from actorgrid.storage.database import Cursor, OpenDatabase, RocksDatabase

logger = logging.getLogger(__name__)

#: 3: with a write-ahead log of our own; without it (2) RocksDB had the log, which an opening takes into tables.
FORMAT_VERSION: Final = 3
FORMAT_WITHOUT_WAL: Final = 2

#: A replica's pointer says that it has its rights and its data; that it is being built; or that it has lost its right to vote (its disk
#: went back in time, its log is corrupt): then its data lies unused until a successor's copy is installed.
ACTIVE: Final = "active"
BUILDING: Final = "building"
RETIRED: Final = "retired"
STATES: Final = (ACTIVE, BUILDING, RETIRED)
#: A disk that is quick with less may not be with more.
QUICK_SYNC_BYTES: Final = 16 * 1024


class StoreIdentity(Struct, frozen=True):
    """Whose data a store holds; written when it is created, compared when it is opened."""

    cluster_id: str
    host: str
    partition_count: int
    format_version: int = FORMAT_VERSION


class PeerMark(Struct, array_like=True, frozen=True):
    """How far the store of another host was when it was last heard of: its life, its count of promises, and which store it was."""

    incarnation: int
    position: int
    store_id: str


class ReplicaPointer(Struct, array_like=True, frozen=True):
    """The replica of `partition` on this host.

    :ivar incarnation: which of this host's replicas of the partition it is; of a retired one: the highest that ever was here
    :ivar generation: where its data lies, see `keys.replica_prefix`; new with each copy that is installed
    :ivar state: `ACTIVE`, `BUILDING` or `RETIRED`
    """

    partition: int
    incarnation: int
    generation: int
    state: str


_encode = msgspec.msgpack.Encoder().encode
_decode_mark = msgspec.msgpack.Decoder(PeerMark).decode
_decode_pointer = msgspec.msgpack.Decoder(ReplicaPointer).decode


class Batch:
    """Changes that become visible and durable together.

    :ivar number: no other batch of the store has it
    """

    # The database's handle of the log family is not kept here: it would keep the whole database open.
    __slots__ = ("_batch", "_store", "number")

    def __init__(self, store: Store, number: int) -> None:
        self._batch = store._db.new_batch()
        self._store = store
        self.number = number

    def put(self, key: bytes, value: bytes) -> None:
        self._batch.put(key, value)

    def put_mark(self, key: bytes, value: bytes) -> None:
        """Put what nobody reads before the next start."""
        self._batch.put_mark(key, value)

    def delete(self, key: bytes) -> None:
        self._batch.delete(key)

    def delete_range(self, start: bytes, stop: bytes) -> None:
        """Drop everything that is not log with ``start <= key < stop``."""
        self._batch.delete_range(start, stop)

    def append_log(self, key: bytes, record: bytes) -> None:
        self._batch.put(key, record, self._store._db.log_handle)

    def put_log_mark(self, key: bytes, value: bytes) -> None:
        """As `put_mark`, in the log's family."""
        self._batch.put_mark(key, value, self._store._db.log_handle)

    def delete_log(self, key: bytes) -> None:
        """Drop one log record."""
        self._batch.delete(key, self._store._db.log_handle)

    def truncate_log(self, start: bytes, stop: bytes) -> None:
        """Drop log records with ``start <= key < stop``."""
        self._batch.delete_range(start, stop, self._store._db.log_handle)

    def size_bytes(self) -> int:
        return self._batch.size_in_bytes()


class View:
    """Everything that is not log, as it was when the view was made, whatever is written meanwhile. Close it: it holds on to old files.

    This is an iterator that stays open, and not a RocksDB snapshot: in rocksdict 0.3.29 an iterator made from a `Snapshot` shows what is
    there *now* (`Snapshot.iter` sets the snapshot in read options that the iterator then does not use). The view is one iterator: `get`
    must not be called between two steps of a `scan`.
    """

    def __init__(self, store: Store, iterator: Cursor) -> None:
        self._store = store
        self._iterator: Cursor | None = iterator

    def get(self, key: bytes) -> bytes | None:
        iterator = self._opened()
        iterator.seek(key)
        if iterator.valid():
            return iterator.value() if iterator.key() == key else None
        failure = self._store._failure_of(iterator)
        del iterator
        if failure is not None:
            raise failure
        return None

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < stop``, in order of the keys."""
        iterator = self._opened()
        iterator.seek(start)
        while iterator.valid():
            pair = iterator.key(), iterator.value()
            if pair[0] >= stop:
                return
            del iterator  # whoever does not go on must not keep it, see `Store._failure_of`
            yield pair
            iterator = self._opened()
            iterator.next()
        failure = self._store._failure_of(iterator)
        del iterator
        if failure is not None:
            raise failure

    def _opened(self) -> Cursor:
        self._store._refuse_if_failed()
        if self._iterator is None:
            raise StorageError(f"a view of {self._store.path} was used after it had been closed")
        return self._iterator

    def close(self) -> None:
        """Let go of the old files; once more does no harm."""
        self._iterator = None
        self._store._views.pop(self, None)


class Store:
    """An open store. Methods are called from one thread, the loop's; `sync` reports from another.

    :param salvage: take what is before the first damage in the write-ahead log, instead of refusing it. That may lack what was synced: only
        for who compares `position` with what others remember (I6)
    :param open_database: what opens the database at `path`; its errors are told apart by the words that RocksDB uses
    :ivar store_id: 32 hex digits, drawn when the store was made
    :ivar is_new: it was made by this very opening
    :ivar position: how many batches were advanced (see `advance`), as far as both families have them
    :raises SettingsError: the directory is in use by another process, or belongs to another grid, host or partition count
    :raises CorruptLogError: synced bytes were changed on disk
    :raises DiskFullError: there is no space
    :raises StorageError: anything else the disk says
    """

    def __init__(self, path: Path, identity: StoreIdentity, *, salvage: bool = False, open_database: OpenDatabase = RocksDatabase) -> None:
        self.path = path
        self.store_id = ""
        self.is_new = False
        self.position = 0
        self._failed: StorageError | None = None
        self._unsynced_bytes = 0
        self._batches = 0
        self._views: dict[View, None] = {}
        self._generations: dict[int, int] = {}  # partition -> the highest that was given out since the opening
        try:
            self._db = open_database(path, salvage=salvage)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise _open_error(path, error) from None
        try:
            self._check_identity(identity)
            self._discard_half_built()
        except BaseException:
            self.close()
            raise

    # -- whose it is, and how far

    def _check_identity(self, identity: StoreIdentity) -> None:
        stored = self.get(keys.IDENTITY_KEY)
        if stored is None:
            self._create(identity)
            return
        found = self._decode(msgspec.json.Decoder(StoreIdentity).decode, keys.IDENTITY_KEY, stored)
        is_older = found.format_version == FORMAT_WITHOUT_WAL
        if is_older:
            found = msgspec.structs.replace(found, format_version=FORMAT_VERSION)
        problems = [
            f"{self.path} holds {what} {getattr(found, name)!r}, this host was started for {getattr(identity, name)!r}"
            for name, what in (
                ("format_version", "storage format"),
                ("cluster_id", "data of grid"),
                ("host", "data of host"),
                ("partition_count", "a grid with the partition count"),
            )
            if getattr(found, name) != getattr(identity, name)
        ]
        if problems:
            raise SettingsError(*problems)
        if is_older:
            logger.info("the store of an earlier release is taken over, which that release cannot open any more path=%s", self.path)
            batch = self.batch()
            batch.put(keys.IDENTITY_KEY, msgspec.json.encode(found))
            self.write(batch)
            self._db.write_tables()
        self.store_id = (self.get(keys.STORE_ID_KEY) or b"").decode()
        self.position = min(_number(self.get(keys.POSITION_KEY)), _number(self._get(self._db.get_log, keys.POSITION_KEY)))

    def _create(self, identity: StoreIdentity) -> None:
        self.is_new = True
        self.store_id = ambient.random_hex(16)
        batch = self.batch()
        batch.put(keys.IDENTITY_KEY, msgspec.json.encode(identity))
        batch.put(keys.STORE_ID_KEY, self.store_id.encode())
        self.write(batch)
        self.sync_now()

    def next_incarnation(self) -> int:
        """1 in the first life of this store, one more in each; durable with the next sync."""
        incarnation = _number(self.get(keys.INCARNATION_KEY)) + 1
        batch = self.batch()
        batch.put(keys.INCARNATION_KEY, incarnation.to_bytes(8, "big"))
        self.write(batch)
        return incarnation

    def raise_incarnation(self, batch: Batch, incarnation: int) -> None:
        """Peers know a higher life of this host than this store does: go on with `incarnation`."""
        known = _number(self.get(keys.INCARNATION_KEY))
        assert incarnation > known, f"incarnation {incarnation} is not higher than {known}"
        batch.put(keys.INCARNATION_KEY, incarnation.to_bytes(8, "big"))

    def reborn(self, batch: Batch, incarnation: int) -> None:
        """This store went back in time: let it be another store from now on, in lives above `incarnation` (I6)."""
        self.store_id = ambient.random_hex(16)
        batch.put(keys.STORE_ID_KEY, self.store_id.encode())
        batch.put(keys.INCARNATION_KEY, incarnation.to_bytes(8, "big"))

    def advance(self, batch: Batch) -> int:
        """Count `batch` as one that holds promises; the new position. What peers are told must be durable before (I6)."""
        self.position += 1
        value = self.position.to_bytes(8, "big")
        batch.put_mark(keys.POSITION_KEY, value)
        batch.put_log_mark(keys.POSITION_KEY, value)
        return self.position

    def peer_marks(self) -> dict[str, PeerMark]:
        """What is remembered of the stores of other hosts, by host."""
        cut = len(keys.PEER_PREFIX)
        pairs = self.scan(keys.PEER_PREFIX, keys.after(keys.PEER_PREFIX))
        return {key[cut:].decode(): self._decode(_decode_mark, key, value) for key, value in pairs}

    def put_peer_mark(self, batch: Batch, host: str, mark: PeerMark) -> None:
        batch.put_mark(keys.PEER_PREFIX + host.encode(), _encode(mark))

    def bootstrap_plan(self) -> bytes | None:
        """What `put_bootstrap_plan` was given last."""
        return self.get(keys.BOOTSTRAP_KEY)

    def put_bootstrap_plan(self, batch: Batch, plan: bytes) -> None:
        batch.put(keys.BOOTSTRAP_KEY, plan)

    def roster(self) -> bytes | None:
        """What `put_roster` was given last."""
        return self.get(keys.ROSTER_KEY)

    def put_roster(self, batch: Batch, roster: bytes) -> None:
        batch.put(keys.ROSTER_KEY, roster)

    # -- which replicas are here

    def replica_pointers(self) -> list[ReplicaPointer]:
        """The replicas of this host, by partition."""
        pairs = self.scan(keys.POINTER_PREFIX, keys.after(keys.POINTER_PREFIX))
        return [self._decode(_decode_pointer, key, value) for key, value in pairs]

    def replica_pointer(self, partition: int) -> ReplicaPointer | None:
        """The replica of `partition`, as far as it is written."""
        key = keys.pointer_key(partition)
        stored = self.get(key)
        return self._decode(_decode_pointer, key, stored) if stored is not None else None

    def put_pointer(self, batch: Batch, pointer: ReplicaPointer) -> None:
        """Note `pointer` in place of the partition's last one."""
        assert pointer.state in STATES, f"{pointer.state!r} is no state of a replica"
        batch.put(keys.pointer_key(pointer.partition), _encode(pointer))

    def new_generation(self, partition: int) -> int:
        """A generation of `partition` that no data is under, nor was in this life of the store."""
        pointer = self.replica_pointer(partition)
        used = [generation for of, generation in self._half_built() if of == partition]
        used += [self._generations.get(partition, 0), pointer.generation if pointer is not None else 0]
        self._generations[partition] = max(used) + 1
        return self._generations[partition]

    def drop_generation(self, batch: Batch, partition: int, generation: int) -> None:
        """Drop one body of data of `partition`, all of it, in both families."""
        prefix = keys.replica_prefix(partition, generation)
        batch.delete_range(prefix, keys.after(prefix))
        batch.truncate_log(prefix, keys.after(prefix))

    def put_half_built(self, batch: Batch, partition: int, generation: int) -> None:
        """Note that `generation` is a copy that does not count yet: the next opening drops it (I13)."""
        batch.put(keys.copying_key(partition, generation), b"")

    def forget_half_built(self, batch: Batch, partition: int, generation: int) -> None:
        """The copy counts now, or `batch` drops it."""
        batch.delete(keys.copying_key(partition, generation))

    def _half_built(self) -> list[tuple[int, int]]:
        cut = len(keys.COPYING_PREFIX)
        pairs = self.scan(keys.COPYING_PREFIX, keys.after(keys.COPYING_PREFIX))
        return [(_number(key[cut : cut + 4]), _number(key[cut + 4 :])) for key, _ in pairs]

    def _discard_half_built(self) -> None:
        batch = self.batch()
        found = self._half_built()
        for partition, generation in found:
            self.drop_generation(batch, partition, generation)
            self.forget_half_built(batch, partition, generation)
            logger.info("half-built copy discarded partition=%d generation=%d", partition, generation)
        if found:
            self.write(batch)

    def state_bytes_estimate(self) -> int:
        """About how large the state of all replicas here is."""
        return self._db.state_bytes_estimate()

    # -- reading

    def get(self, key: bytes) -> bytes | None:
        return self._get(self._db.get, key)

    def _get(self, get: Callable[[bytes], bytes | None], key: bytes) -> bytes | None:
        self._refuse_if_failed()
        try:
            return get(key)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("read", error) from None

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < stop`` as they are now, in order of the keys."""
        return self._scan(self._db.cursor, start, stop, reverse)

    def scan_log(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Log records with ``start <= key < stop``, in order."""
        return self._scan(self._db.log_cursor, start, stop, reverse=False)

    def _scan(self, cursor: Callable[[], Cursor], start: bytes, stop: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        self._refuse_if_failed()
        try:
            iterator = cursor()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("scan", error) from None
        if reverse:
            iterator.seek_for_prev(stop)
            if iterator.valid() and iterator.key() == stop:
                iterator.prev()
            return self._walk(iterator, iterator.prev, lambda key: key >= start)
        iterator.seek(start)
        return self._walk(iterator, iterator.next, lambda key: key < stop)

    def _walk(self, iterator: Cursor, step: Callable[[], None], inside: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
        while iterator.valid():
            key = iterator.key()
            if not inside(key):
                return
            yield key, iterator.value()
            step()
        failure = self._failure_of(iterator)
        del iterator, step
        if failure is not None:
            raise failure

    def view(self) -> View:
        """Everything that is not log, as it is now; to be closed."""
        self._refuse_if_failed()
        view = View(self, self._db.cursor())
        self._views[view] = None
        return view

    def _failure_of(self, iterator: Cursor) -> StorageError | None:
        """An iterator that is at no pair has come to the end, or to an error.

        The error is raised by the caller, once it holds the iterator no more: the error is kept, with it the frames it was raised in,
        and an iterator keeps the database open.
        """
        try:
            iterator.status()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            return self._fail("scan", error)
        return None

    def _decode(self, decode: Callable[[bytes], Any], key: bytes, value: bytes) -> Any:
        try:
            return decode(value)
        except msgspec.MsgspecError as error:
            name = key.removeprefix(keys.HOST)
            raise CorruptLogError(f"{self.path} holds something else than was written under {name!r}: {error}") from None

    # -- writing

    def batch(self) -> Batch:
        self._batches += 1
        return Batch(self, self._batches)

    def write(self, batch: Batch) -> None:
        """Make `batch` visible; it is durable after the next `sync`.

        :raises StorageError: its outcome is unknown, and the store is of no further use
        """
        self._refuse_if_failed()
        try:
            self._unsynced_bytes += batch._batch.size_in_bytes()
            self._db.write(batch._batch)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("write", error) from None

    def sync(self, done: Callable[[StorageError | None], None]) -> None:
        """Make everything written so far durable, then call ``done(error)`` from the sync thread."""
        self._unsynced_bytes = 0
        self._db.sync_soon(lambda: self._sync_and_tell(done))

    @property
    def sync_is_quick(self) -> bool:
        """Whether to wait for a sync on the spot costs less than to have it made elsewhere: little was written, and the disk is quick."""
        return self._unsynced_bytes <= QUICK_SYNC_BYTES and self._db.is_quick

    def _sync_and_tell(self, done: Callable[[StorageError | None], None]) -> None:
        try:
            self.sync_now()
        except StorageError as error:
            done(error)
        else:
            done(None)

    def sync_now(self) -> None:
        """Make everything written so far durable, and wait for it.

        :raises StorageError: the outcome is unknown
        """
        self._refuse_if_failed()
        self._unsynced_bytes = 0
        try:
            self._db.sync_now()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception for everything
            raise self._fail("sync", error) from None

    @property
    def has_failed(self) -> bool:
        return self._failed is not None

    def _refuse_if_failed(self) -> None:
        if self._failed is not None:
            raise self._failed.with_traceback(None)

    def _fail(self, what: str, error: Exception) -> StorageError:
        if self._failed is None:
            self._failed = _classify(f"{what} in {self.path}: {error}")
            logger.error("storage failed op=%s path=%s error=%s", what, self.path, str(error))
        return self._failed

    def close(self) -> None:
        """Wait for syncs under way, then close. What was not synced may be lost, as with a crash."""
        for view in list(self._views):
            view.close()
        self._db.close()


def _number(stored: bytes | None) -> int:
    return int.from_bytes(stored, "big") if stored is not None else 0


def _classify(message: str) -> StorageError:
    if "No space left" in message or "Disk quota" in message:
        return DiskFullError(message)
    # RocksDB looks for no file that it has not written itself.
    if "Corruption" in message or "checksum" in message.lower() or "No such file" in message:
        return CorruptLogError(message)
    return StorageError(message)


def _open_error(path: Path, error: Exception) -> Exception:
    message = str(error)
    if "lock" in message.lower() and ("hold" in message or "temporarily unavailable" in message or "No locks" in message):
        return SettingsError(f"data directory {path} is in use by another process ({message})")
    if isinstance(error, StorageError):
        return error
    if isinstance(error, NotADirectoryError | FileExistsError | PermissionError):
        return SettingsError(f"data directory {path} cannot be used: {message}")
    return _classify(f"cannot open {path}: {message}")
