"""The disk of a simulated machine, with the database on it: what a process reads is not yet what a loss of power leaves.

It stands in the place of `RocksDatabase`, below the real `Store`, and misbehaves in the words of rocksdict, which the store tells apart.
What is written is visible at once. A batch is durable when a sync that began after it has ended; until then the disk remembers how to
take it back. The death of a process takes back what no sync had begun to write, a loss of power all but the beginning.

All of it happens in one thread: time comes from `SimDisk.schedule`, chance from the generators that are passed in.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from actorgrid.storage import keys
from actorgrid.storage.database import CHANGE_BYTES
from actorgrid.storage.home import QUARANTINE, StoreHome
from actorgrid.storage.store import Store, StoreIdentity

#: What a disk says that fails.
EIO: Final = "IO error: While fdatasync: a simulated disk: Input/output error"
ENOSPC: Final = "IO error: No space left on device: While appending to file: a simulated disk: No space left on device"
_DAMAGED_BLOCK: Final = "Corruption: block checksum mismatch in a simulated table"
_DAMAGED_LOG: Final = "Corruption: checksum mismatch in a simulated write-ahead log"
_IN_USE: Final = "IO error: lock hold by current process: a simulated LOCK: No locks available"
_CLOSED: Final = "DB instance already closed"

_ONE_OF: Final = 16  # so many pairs, one is looked at in estimates of size
#: (of the log?, key, stop of a range, value): a put has a value, a range a stop, a delete neither.
_Change = tuple[bool, bytes, bytes | None, bytes | None]
#: What one batch took the place of in one family, None where there was nothing.
_Undo = dict[bytes, bytes | None]


class SimulatedError(Exception):
    """What rocksdict raises is a bare `Exception`, and told apart by its words; so is this."""


class _Damaged(bytes):
    """A stored value whose checksum is wrong."""

    __slots__ = ()


class _Family:
    """The pairs of one family. It is copied before it changes while a cursor reads it.

    :ivar names: the keys, sorted
    :ivar readers: how many cursors see it
    """

    __slots__ = ("names", "pairs", "readers")

    def __init__(self, names: list[bytes], pairs: dict[bytes, bytes]) -> None:
        self.names = names
        self.pairs = pairs
        self.readers = 0

    def copy(self) -> _Family:
        return _Family(self.names.copy(), self.pairs.copy())

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.pairs:
            names = self.names
            if not names or key > names[-1]:
                names.append(key)
            else:
                insort(names, key)
        self.pairs[key] = value

    def delete(self, key: bytes) -> None:
        if self.pairs.pop(key, None) is not None:
            del self.names[bisect_left(self.names, key)]

    def delete_range(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """What was there."""
        names, pairs = self.names, self.pairs
        low, high = bisect_left(names, start), bisect_left(names, stop)
        dropped = [(key, pairs.pop(key)) for key in names[low:high]]
        del names[low:high]
        return dropped

    def take_back(self, undo: _Undo) -> None:
        for key, old in undo.items():
            if old is None:
                self.delete(key)
            else:
                self.put(key, old)


class SimBatch:
    """See `database.WriteBatch`.

    :ivar changes: in order
    """

    __slots__ = ("changes", "is_written")

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.is_written = False

    def put(self, key: bytes, value: bytes, family: Any = None, /) -> None:
        self.changes.append((family is not None, bytes(key), None, bytes(value)))

    put_mark = put

    def delete(self, key: bytes, family: Any = None, /) -> None:
        self.changes.append((family is not None, bytes(key), None, None))

    def delete_range(self, start: bytes, stop: bytes, family: Any = None, /) -> None:
        assert start <= stop, "RocksDB takes no write any more after such a batch"
        self.changes.append((family is not None, bytes(start), bytes(stop), None))

    def size_in_bytes(self) -> int:
        return sum(CHANGE_BYTES + sum(len(part) for part in parts if part is not None) for _, *parts in self.changes)


class SimCursor:
    """See `database.Cursor`. At a damaged pair it is not valid, and `status` says why."""

    __slots__ = ("_at", "_family", "_is_damaged", "_key", "_value")

    def __init__(self, family: _Family) -> None:
        self._family = family
        family.readers += 1
        self._at = -1
        self._key = self._value = b""
        self._is_damaged = False

    def __del__(self) -> None:
        self._family.readers -= 1

    def _go(self, at: int) -> None:
        names = self._family.names
        if not 0 <= at < len(names):
            self._at = -1
            return
        key = names[at]
        value = self._family.pairs[key]
        if value.__class__ is _Damaged:
            self._at = -1
            self._is_damaged = True
            return
        self._at, self._key, self._value = at, key, value

    def seek(self, key: bytes, /) -> None:
        self._is_damaged = False
        self._go(bisect_left(self._family.names, key))

    def seek_for_prev(self, key: bytes, /) -> None:
        self._is_damaged = False
        self._go(bisect_right(self._family.names, key) - 1)

    def valid(self) -> bool:
        return self._at >= 0

    def key(self) -> bytes:
        assert self._at >= 0, "the cursor is at no pair"
        return self._key

    def value(self) -> bytes:
        assert self._at >= 0, "the cursor is at no pair"
        return self._value

    def next(self) -> None:
        assert self._at >= 0, "the cursor is at no pair"  # rocksdict would crash
        self._go(self._at + 1)

    def prev(self) -> None:
        assert self._at >= 0, "the cursor is at no pair"
        self._go(self._at - 1)

    def status(self) -> None:
        if self._is_damaged:
            raise SimulatedError(_DAMAGED_BLOCK)


class SimDatabase:
    """See `database.Database`: the handle of one life of a process on the database of `disk`.

    :ivar is_over: it is closed, or its process is dead: nothing reaches the disk any more, and nobody is called back
    """

    log_handle: Any = "log"

    def __init__(self, disk: SimDisk) -> None:
        self.is_over = False
        self._disk = disk
        self._waiting: deque[Callable[[], None]] = deque()  # the first one's sync is under way
        self._failure: SimulatedError | None = None  # RocksDB writes and syncs nothing any more after the first error of a write or sync
        self._is_reporting = False
        self._reported: SimulatedError | None = None

    # -- reading

    def get(self, key: bytes, /) -> bytes | None:
        self._refuse_if_over()
        return _readable(self._disk._families[0].pairs.get(key))

    def get_log(self, key: bytes, /) -> bytes | None:
        self._refuse_if_over()
        return _readable(self._disk._families[1].pairs.get(key))

    def cursor(self) -> SimCursor:
        self._refuse_if_over()
        return SimCursor(self._disk._families[0])

    def log_cursor(self) -> SimCursor:
        self._refuse_if_over()
        return SimCursor(self._disk._families[1])

    def state_bytes_estimate(self) -> int:
        self._refuse_if_over()
        family = self._disk._families[0]
        return _ONE_OF * sum(len(key) + len(family.pairs[key]) for key in family.names[::_ONE_OF])

    def _refuse_if_over(self) -> None:
        if self.is_over:
            raise SimulatedError(_CLOSED)

    # -- writing

    def new_batch(self) -> SimBatch:
        return SimBatch()

    def write(self, batch: Any) -> None:
        assert not batch.is_written, "a batch is written once"
        batch.is_written = True
        if self.is_over:
            return
        if self._failure is None:
            self._failure = self._disk._write(batch)
        if self._failure is not None:
            raise self._failure

    def write_tables(self) -> None:
        self.sync_now()

    @property
    def is_quick(self) -> bool:
        # No sync would be under way when something else happens; tests let some be made so.
        return False

    def sync_now(self) -> None:
        """In what `sync_soon` calls back: how the sync went that is over. Elsewhere: a sync that takes no time, not even on a stalled disk.

        Virtual time does not pass in the middle of a step, so that the second kind cannot wait.
        """
        if self._is_reporting:
            if self._reported is not None:
                raise self._reported
            return
        if self.is_over:
            return
        if self._disk.is_stalled:
            self._disk.counts["syncs that did not wait for a stalled disk"] += 1
        error = self._sync(self._disk._written)
        if error is not None:
            raise error

    def _sync(self, written: int) -> SimulatedError | None:
        if self._failure is None:
            self._failure = self._disk._sync(written)
        return self._failure

    def sync_soon(self, work: Callable[[], None]) -> None:
        if self.is_over:
            return
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._begin_sync()

    def _begin_sync(self) -> None:
        disk = self._disk
        disk._syncing = disk._written
        disk.schedule(disk.sync_delay_s(), self._end_sync, disk._written)

    def _end_sync(self, written: int) -> None:
        if self.is_over:
            return
        disk = self._disk
        if disk.is_stalled:
            disk.counts["syncs stalled"] += 1
            disk._held = lambda: self._end_sync(written)
            return
        disk.schedule(disk.report_delay_s(), self._report, self._sync(written))

    def _report(self, error: SimulatedError | None) -> None:
        if self.is_over:
            return
        self._call_back(error)
        if self._waiting and not self.is_over:
            self._begin_sync()

    def _call_back(self, error: SimulatedError | None) -> None:
        work = self._waiting.popleft()
        self._is_reporting, self._reported = True, error
        try:
            work()
        finally:
            self._is_reporting, self._reported = False, None

    def close(self) -> None:
        """Syncs under way and waiting end at once, unless the disk stalls: then everything that is not durable stays so."""
        if self.is_over:
            return
        if not self._disk.is_stalled:
            while self._waiting:
                self._call_back(self._sync(self._disk._written))
            self._sync(self._disk._written)  # RocksDB writes its tables when it is closed
        self.is_over = True


class SimHome(StoreHome):
    """The home of a store on `disk`, for one life of a process."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__(disk.path)
        self._disk = disk
        self._life = disk._life

    def condemn(self, why: str) -> None:
        if self._life == self._disk._life:
            self._disk.condemned = why

    def _why_condemned(self) -> str | None:
        return self._disk.condemned

    def _open_store(self, identity: StoreIdentity, *, salvage: bool) -> Store:
        return Store(self.path, identity, salvage=salvage, open_database=self._open_database)

    def _open_database(self, _path: Path, /, *, salvage: bool) -> SimDatabase:
        if self._life != self._disk._life:
            raise SimulatedError(_CLOSED)
        return self._disk._open(salvage=salvage)

    def _free_name_aside(self) -> Path:
        return self.path.with_name(f"{QUARANTINE}.{len(self._disk.asides) + 1}")

    def _put_aside(self, aside: Path) -> None:
        self._disk._put_aside()

    def _sync_names(self) -> None:
        """Here a store's name is as durable as the store."""


class DiskImage:
    """Everything that was durable on a disk at one time; nothing changes it."""

    def __init__(self, families: tuple[_Family, _Family], *, is_torn: bool) -> None:
        self._families = families
        self.is_torn = is_torn

    def get(self, log: bool, key: bytes) -> bytes | None:
        """As `SimDisk.durable_get` was then."""
        return _whole(self._families[log].pairs.get(key))

    def families(self) -> list[_Family]:
        """A copy to go on from."""
        return [family.copy() for family in self._families]


class SimDisk:
    """One machine's disk; it outlives the processes.

    :param rng: for how long syncs take, as long as `sync_delay_s` and `report_delay_s` are not replaced
    :param schedule: ``schedule(delay_s, callback, *args)``
    :ivar schedule: may be replaced, and must be there before the first `sync_soon`
    :ivar sync_delay_s: how long the next sync takes
    :ivar report_delay_s: how long after its end the process hears of it
    :ivar path: what messages call the directory of the store's home
    :ivar condemned: why the store is to be put aside at the next opening, or None
    :ivar asides: the stores that were put aside, oldest first
    :ivar loses_syncs: a planted bug: syncs are said to have ended and make nothing durable
    :ivar counts: what happened here, by name
    """

    def __init__(self, rng: random.Random, schedule: Callable[..., object] | None = None, path: Path = Path("/simulated")) -> None:
        self._fault_rng = rng
        self.path = path
        self.schedule: Callable[..., object] = schedule or _nobody_schedules
        self.sync_delay_s: Callable[[], float] = lambda: 0.0003 + rng.random() ** 3 * 0.005
        self.report_delay_s: Callable[[], float] = lambda: 0.00002 + rng.random() ** 3 * 0.0002
        self.condemned: str | None = None
        self.asides: list[DiskImage] = []
        self.loses_syncs = False
        self.is_stalled = False
        self.counts: Counter[str] = Counter()
        self._families: list[_Family] = []
        self._unsynced: deque[tuple[_Undo, _Undo]] = deque()  # of each batch that is not durable, oldest first
        self._written = 0  # batches, since the beginning
        self._syncing = 0  # of these, what the last sync that was begun covers
        self._is_torn = False  # the write-ahead log is damaged behind what there is
        self._handle: SimDatabase | None = None
        self._life = 0
        self._held: Callable[[], None] | None = None
        self._fault = ""
        self._faults_left: int | None = None
        self._fails_writes = True
        self._format()

    def _format(self) -> None:
        self._families = [_Family([], {}), _Family([], {})]
        self._unsynced.clear()
        self._is_torn = False
        self.condemned = None

    # -- for processes

    def home(self) -> SimHome:
        """What a `Host` gets that begins its life now; of no use any more after `kill` or `lose_power`."""
        return SimHome(self)

    @property
    def is_in_use(self) -> bool:
        return self._handle is not None and not self._handle.is_over

    def _open(self, *, salvage: bool) -> SimDatabase:
        if self.is_in_use:
            raise SimulatedError(_IN_USE)
        if self._is_torn:
            if not salvage:
                self.counts["damaged log refused"] += 1
                raise SimulatedError(_DAMAGED_LOG)
            self.counts["damaged log salvaged"] += 1
            self._is_torn = False
        self.counts["opened"] += 1
        self._handle = SimDatabase(self)
        return self._handle

    def _put_aside(self) -> None:
        assert not self.is_in_use, "a store that is open is put aside"
        self.counts["store put aside"] += 1
        self.asides.append(DiskImage((self._families[0], self._families[1]), is_torn=self._is_torn))
        self._format()

    def _write(self, batch: SimBatch) -> SimulatedError | None:
        """Make `batch` visible, or say why not; both, now and then."""
        fault = self._take_fault() if self._fails_writes else None
        if fault is not None:
            self.counts["write failed"] += 1
            if self._fault_rng.random() < 0.5:
                return fault
            self.counts["write failed and took effect"] += 1
        undos: tuple[_Undo, _Undo] = ({}, {})
        for is_log, key, stop, value in batch.changes:
            family, undo = self._changeable(is_log), undos[is_log]
            if stop is not None:
                for dropped, old in family.delete_range(key, stop):
                    undo.setdefault(dropped, old)
                continue
            if key not in undo:
                undo[key] = family.pairs.get(key)
            if value is None:
                family.delete(key)
            else:
                family.put(key, value)
        self._unsynced.append(undos)
        self._written += 1
        return fault

    def _changeable(self, of: int) -> _Family:
        """The family, in a form that no cursor sees."""
        family = self._families[of]
        if family.readers:
            family = self._families[of] = family.copy()
        return family

    def _sync(self, written: int) -> SimulatedError | None:
        """Make durable what was written when `written` batches were, or say why not; both, now and then."""
        fault = self._take_fault()
        self.counts["syncs"] += 1
        if fault is not None:
            self.counts["sync failed"] += 1
            if self._fault_rng.random() < 0.5:
                return fault
            self.counts["sync failed and took effect"] += 1
        if not self.loses_syncs:
            unsynced = self._unsynced
            for _ in range(len(unsynced) - (self._written - written)):
                unsynced.popleft()
        return fault

    def _take_fault(self) -> SimulatedError | None:
        if not self._fault:
            return None
        fault = SimulatedError(self._fault)
        if self._faults_left is not None:
            self._faults_left -= 1
            if not self._faults_left:
                self.heal()
        return fault

    # -- deaths

    def kill(self) -> None:
        """SIGKILL: what no sync had begun to write was in the memory of the process."""
        unsynced = len(self._unsynced)
        kept = max(0, unsynced - (self._written - self._syncing))
        self._end_life()
        if unsynced:
            self.counts["killed with unsynced batches"] += 1
        self._take_back_behind(kept)  # the kernel goes on with that; nothing says when it is through

    def _end_life(self) -> None:
        """Whoever has the store open does nothing to it any more."""
        self._life += 1
        self._held = None
        if self._handle is not None:
            self._handle.is_over = True
            self._handle = None

    def _take_back_behind(self, kept: int) -> None:
        """Of what was not synced only the first so many batches are there."""
        while len(self._unsynced) > kept:
            for of, undo in enumerate(self._unsynced.pop()):
                self._changeable(of).take_back(undo)

    def lose_power(self, rng: random.Random, *, tear: bool = False) -> None:
        """The process dies, and of what was not synced only the beginning is left: often nothing, sometimes all.

        :param tear: the batch after that may be there in parts. At the very end of the write-ahead log that is dropped without a word;
            with anything behind it, the next opening finds damage (see `StoreHome._open_or_salvage`)
        """
        self._end_life()
        self.counts["power lost"] += 1
        count, lot = len(self._unsynced), rng.random()
        kept = 0 if lot < 0.5 else count if lot < 0.7 else rng.randint(0, count)
        if count > kept:
            self.counts["unsynced batches lost"] += count - kept
            if tear:
                self._is_torn = rng.random() < 0.5
                self.counts["torn, to be salvaged" if self._is_torn else "torn at the end"] += 1
        elif count:
            self.counts["unsynced batches all kept"] += 1
        self._take_back_behind(kept)
        self._unsynced.clear()
        if self.condemned is not None and rng.random() < 0.5:
            self.condemned = None  # that note is not synced

    # -- faults

    def fail_with(self, words: str, rng: random.Random, times: int | None = None, *, only_syncs: bool = False) -> None:
        """Let the next `times` writes and syncs fail, or all until `heal`. One that fails may have taken effect.

        :param words: what the disk says, `EIO` or `ENOSPC`
        :param only_syncs: writes go on: they reach the memory of the kernel
        """
        assert times is None or times > 0, f"{times} faults"
        self._fault, self._fault_rng, self._faults_left = words, rng, times
        self._fails_writes = not only_syncs

    def heal(self) -> None:
        """Nothing fails any more."""
        self._fault, self._faults_left = "", None

    def stall(self) -> None:
        """No sync that is under way or begins ends before `resume`."""
        self.is_stalled = True

    def resume(self) -> None:
        """Syncs end again."""
        self.is_stalled = False
        held, self._held = self._held, None
        if held is not None:
            self.schedule(self.sync_delay_s(), held)

    def flip(self, rng: random.Random, *, log: bool) -> bytes | None:
        """Damage one durable pair, so that who reads it is told of a wrong checksum. What is written in its place is whole again.

        :return: its key; None: there is none to damage
        """
        key = self._durable_key(rng, log, b"\xff" * (keys.PREFIX_BYTES + 1))
        if key is not None:
            pairs = self._changeable(log).pairs
            pairs[key] = _Damaged(pairs[key])
            self.counts["log record damaged" if log else "state damaged"] += 1
        return key

    def flip_undetected(self, rng: random.Random) -> bytes | None:
        """Flip one bit of one durable log record, behind the back of the database's checksums; as `flip`."""
        key = self._durable_key(rng, True, keys.HOST)
        if key is not None:
            pairs = self._changeable(True).pairs
            changed = bytearray(pairs[key])
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            pairs[key] = bytes(changed)
            self.counts["log record changed"] += 1
        return key

    def _durable_key(self, rng: random.Random, log: bool, stop: bytes) -> bytes | None:
        """Any key before `stop` with a value that is durable, whole and not empty."""
        family = self._families[log]
        count = bisect_left(family.names, stop)
        first = rng.randrange(count) if count else 0
        for index in range(count):
            key = family.names[(first + index) % count]
            value = family.pairs[key]
            if value and value.__class__ is not _Damaged and not any(key in undos[log] for undos in self._unsynced):
                return key
        return None

    # -- disks that are emptied, copied and put back

    def wipe(self) -> None:
        """Another disk is in its place, an empty one."""
        assert not self.is_in_use, "the disk of a running process is wiped"
        self.counts["wiped"] += 1
        self.asides.clear()
        self._format()

    def image(self) -> DiskImage:
        """What is durable now."""
        families = (self._families[0].copy(), self._families[1].copy())
        for undos in reversed(self._unsynced):
            for family, undo in zip(families, undos, strict=True):
                family.take_back(undo)
        return DiskImage(families, is_torn=self._is_torn)

    def put_back(self, image: DiskImage) -> None:
        """Everything is as it was when `image` was made, of this disk or of another one."""
        assert not self.is_in_use, "the disk of a running process is put back"
        self.counts["put back"] += 1
        self._format()
        self._families = image.families()
        self._is_torn = image.is_torn

    # -- for a judge

    def has_any(self, log: bool, prefix: bytes) -> bool:
        """Whether a process would find a key that begins with `prefix`."""
        names = self._families[log].names
        at = bisect_left(names, prefix)
        return at < len(names) and names[at].startswith(prefix)

    def visible_get(self, log: bool, key: bytes) -> bytes | None:
        """What a process would read; None also for what is damaged."""
        return _whole(self._families[log].pairs.get(key))

    def durable_get(self, log: bool, key: bytes) -> bytes | None:
        """What a loss of power could not take away; None also for what is damaged."""
        for undos in self._unsynced:
            if key in undos[log]:
                return _whole(undos[log][key])
        return self.visible_get(log, key)


def _readable(value: bytes | None) -> bytes | None:
    if value.__class__ is _Damaged:
        raise SimulatedError(_DAMAGED_BLOCK)
    return value


def _whole(value: bytes | None) -> bytes | None:
    return value if value.__class__ is not _Damaged else None


def _nobody_schedules(*_: Any) -> None:
    raise AssertionError("this disk has no clock: set `schedule`")
