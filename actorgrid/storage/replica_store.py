"""What one replica has on disk: its epoch and vote, its log, the state applied from it, and the checkpoints of its sessions.

Only what is committed goes into the state. `committed` collects it, the next batch takes it into the state (`apply`), together with
`applied_lsn`; a restart finds in the log what the state lacks. The sessions' durable form is a checkpoint plus the log behind it, so
the log is kept at least back to the checkpoint (I9).

A restarted replica does not know what of its log behind `applied_lsn` is committed: state and sessions are as of `applied_lsn` until the
core says more, and what contradicts a later primary's log is truncated (I3).
"""

from __future__ import annotations

import heapq
import itertools
import operator
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
from xxhash import xxh3_128

from actorgrid.errors import CorruptLogError
from actorgrid.replication.configuration import Configuration, decode_configuration
from actorgrid.replication.entry import STATUS_CONFIGURATION, LogRecord
from actorgrid.replication.session_record import SessionRecord
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage import keys
from actorgrid.storage.log import LogItem, ReplicaLog
from actorgrid.storage.size import SizeCount, StateSize
from actorgrid.storage.store import ACTIVE, Batch, ReplicaPointer, Store

#: Expired idempotency records dropped for each one written: more than one, so that they cannot pile up.
EXPIRED_PER_ENTRY_MAX: Final = 4

_encode = msgspec.msgpack.Encoder().encode
_decode_key_record = msgspec.msgpack.Decoder(SessionRecord).decode
_decode_epoch = msgspec.msgpack.Decoder(tuple[int, str]).decode
_decode_sessions = msgspec.msgpack.Decoder(tuple[int, int]).decode
_decode_configuration = msgspec.msgpack.Decoder(tuple[int, Configuration]).decode
_APPLIED: Final = struct.Struct(">QQ")
_SIZES: Final = struct.Struct(">II")


class Recovered(NamedTuple):
    """What was found.

    :ivar epochs: (first lsn, epoch) of each run of equal epochs in the log; if the log does not begin at 1, the first of them is that of
        the position before it, ``(log_start_lsn - 1, its epoch)``, and a run that goes on behind it is not named again
    :ivar configurations: (lsn, configuration), the first one in force at `applied_lsn`, then those behind it; the first one ever has lsn 0
    """

    epoch: int
    voted_for: str
    log_start_lsn: int
    last_lsn: int
    applied_lsn: int
    epochs: list[tuple[int, int]]
    configurations: list[tuple[int, Configuration]]


class StoredEntries:
    """One actor's part of the store, as its fields and collections see it: suffixes in, applied values out."""

    __slots__ = ("_prefix", "_store")

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store = store
        self._prefix = prefix

    def get(self, suffix: bytes) -> bytes | None:
        return self._store.get(self._prefix + suffix)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        prefix = self._prefix
        return _without_prefix(self._store.scan(prefix + start, prefix + stop, reverse=reverse), len(prefix))


def _without_prefix(pairs: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[tuple[bytes, bytes]]:
    for key, value in pairs:
        yield key[size:], value


class ReplicaStore:
    """The durable side of one replica. `recover` it before anything else.

    :param pointer: of an active replica
    :param sessions: an empty table; `recover` brings it to `applied_lsn`, then the caller applies each committed record to it, before
        giving the record to `committed`
    :ivar append: see `ReplicaLog.append`
    :ivar read_log: see `ReplicaLog.read`
    :ivar applied_lsn: the state has everything up to here
    :ivar size: of that, about
    :ivar collects_changes: whether `committed` keeps addresses for `take_changed_addresses`
    """

    def __init__(self, pointer: ReplicaPointer, store: Store, sessions: SessionTable, settings: HostSettings) -> None:
        assert pointer.state == ACTIVE, f"{pointer} is not active"
        self.pointer = pointer
        self.partition = pointer.partition
        self.prefix = keys.replica_prefix(pointer.partition, pointer.generation)
        self._state_prefix = self.prefix + keys.STATE
        self.store = store
        self.log = ReplicaLog(pointer.partition, self.prefix, store, settings.log_retention_bytes)
        self.applied_lsn = 0
        self.size = StateSize(store, self.prefix)
        self.collects_changes = False
        self.append = self.log.append
        self.read_log = self.log.read
        self._sessions = sessions
        self._checkpoint_entries = settings.session_checkpoint_entries
        self._idempotency_retention_ms = int(settings.idempotency_retention_s * 1000)
        self._unapplied: dict[bytes, bytes | None] = {}
        self._new_expiries: list[bytes] = []  # of idempotency records in `_unapplied`
        self._changed: dict[str, None] = {}
        self._committed_lsn = 0  # `committed` has had everything up to here ...
        self._committed_time_ms = 0  # ... and this is the time of its last record
        self._checkpoint_lsn = 0
        self.configuration_lsn = 0
        self._configuration: Configuration | None = None
        self._configuration_is_stored = True

    @staticmethod
    def create(batch: Batch, store: Store, pointer: ReplicaPointer, configuration: Configuration) -> None:
        """A new, empty replica of a partition that is being bootstrapped."""
        assert pointer.state == ACTIVE, f"{pointer} is not active"
        store.put_pointer(batch, pointer)
        prefix = keys.replica_prefix(pointer.partition, pointer.generation)
        batch.put(prefix + keys.META_CONFIGURATION, _encode((0, configuration)))
        SizeCount(prefix).put(batch)

    # -- start

    def recover(self) -> Recovered:
        """Read what is there, and bring the sessions to `applied_lsn`.

        Only what is behind the sessions' checkpoint is decoded; of what is before, checksums and order are verified.

        :raises CorruptLogError: the log has a hole, a record does not match its checksum, or the log lacks what the state has
        """
        epoch, voted_for = self._meta(keys.META_EPOCH, _decode_epoch) or (0, "")
        self.applied_lsn, self._committed_time_ms = self._meta(keys.META_APPLIED, _APPLIED.unpack) or (0, 0)
        self._committed_lsn = self.applied_lsn
        self.size.load(is_empty=not self.applied_lsn)
        self.log.time_lsn, self.log.time_ms = self._committed_lsn, self._committed_time_ms
        stored = self._meta(keys.META_CONFIGURATION, _decode_configuration)
        if stored is None:
            raise self._corrupt("it has no configuration")
        self.configuration_lsn, self._configuration = stored
        configurations = [stored]
        self._load_sessions()
        for item in self.log.recover():
            if item.head.last_lsn > self._checkpoint_lsn:
                self._replay(item, configurations)
        if self.log.last_lsn < self.applied_lsn:
            raise self._corrupt(f"state is applied up to {self.applied_lsn}, the log ends at {self.log.last_lsn}")
        if self._checkpoint_lsn < self.log.start_lsn - 1:
            raise self._corrupt(f"sessions are known up to {self._checkpoint_lsn}, the log goes on at {self.log.start_lsn}")
        if self.log.epochs and epoch < self.log.epochs[-1][1]:
            raise self._corrupt(f"epoch {epoch} was promised, the log has records of epoch {self.log.epochs[-1][1]}")
        return Recovered(
            epoch, voted_for, self.log.start_lsn, self.log.last_lsn, self.applied_lsn, list(self.log.epochs), configurations
        )  # fmt: skip

    def _meta(self, name: bytes, decode: Any) -> Any:
        stored = self.store.get(self.prefix + name)
        try:
            return decode(stored) if stored is not None else None
        except (msgspec.MsgspecError, struct.error) as error:
            raise self._corrupt(f"what is stored under {name!r} has the wrong form: {error}") from None

    def _load_sessions(self) -> None:
        self._checkpoint_lsn, evicted_lsn = self._meta(keys.META_SESSIONS, _decode_sessions) or (0, 0)
        if self._checkpoint_lsn > self.applied_lsn:
            raise self._corrupt(f"sessions are of position {self._checkpoint_lsn}, the state is of {self.applied_lsn}")
        start = self.prefix + keys.SESSION
        for key, image in self.store.scan(start, keys.after(start)):
            try:
                self._sessions.load_image(key[len(start) :], image)
            except msgspec.MsgspecError as error:
                raise self._corrupt(f"the session of client {key[len(start) :].hex()} has the wrong form: {error}") from None
        self._sessions.loaded(evicted_lsn)

    def _replay(self, item: LogItem, configurations: list[tuple[int, Configuration]]) -> None:
        """Take a record behind the checkpoint: into the sessions as far as it is applied, else only what counts uncommitted."""
        head = item.head
        for what, lsn in (("sessions are", self._checkpoint_lsn), ("state is", self.applied_lsn)):
            if head.first_lsn <= lsn < head.last_lsn:
                raise self._corrupt(f"{what} of position {lsn}, which is inside of the record {head.first_lsn}..{head.last_lsn}")
        record = self.log.decode(item)
        if head.last_lsn <= self.applied_lsn:
            self._sessions.apply(record)
            return
        self.log.time_lsn, self.log.time_ms = head.last_lsn, record.time_ms
        for lsn, entry in enumerate(record.entries, record.first_lsn):
            if entry.status == STATUS_CONFIGURATION:
                configurations.append((lsn, self._configuration_in(lsn, entry.result)))

    def _configuration_in(self, lsn: int, result: bytes) -> Configuration:
        try:
            return decode_configuration(result)
        except CorruptLogError as error:
            raise self._corrupt(f"log entry {lsn}: {error}") from None

    def _corrupt(self, what: str) -> CorruptLogError:
        return self.log.corrupt(what)

    # -- the log; `append` and `read_log` are those of `ReplicaLog`

    @property
    def last_lsn(self) -> int:
        """The log's last position."""
        return self.log.last_lsn

    @property
    def log_start_lsn(self) -> int:
        """The first position that is still in the log; ``last_lsn + 1`` if it is empty."""
        return self.log.start_lsn

    @property
    def log_bytes(self) -> int:
        """Size of the log records kept."""
        return self.log.size_bytes

    def save_epoch(self, batch: Batch, epoch: int, voted_for: str) -> None:
        """Note a promise: nothing is said in an older epoch, and nobody else gets the vote of this one (I1)."""
        batch.put(self.prefix + keys.META_EPOCH, _encode((epoch, voted_for)))

    def truncate_suffix(self, batch: Batch, from_lsn: int) -> None:
        """Drop the records from the one that begins at `from_lsn` on. Reads them: they are few, nobody has applied them (I3)."""
        assert from_lsn > self._committed_lsn, f"I3: {from_lsn} is committed, as is everything up to {self._committed_lsn}"
        self.log.truncate_suffix(batch, from_lsn)

    def epoch_at(self, lsn: int) -> int:
        """The epoch of a position in ``log_start_lsn - 1 .. last_lsn``."""
        return self.log.epoch_at(lsn)

    @property
    def last_time_ms(self) -> int:
        """The time of the last record; 0 if there never was one. Decodes that record if it was appended without its time."""
        log = self.log
        if log.time_lsn != log.last_lsn:
            is_committed = log.last_lsn == self._committed_lsn
            log.time_ms = self._committed_time_ms if is_committed else log.decode(log.read(log.last_lsn, 1)[-1]).time_ms
            log.time_lsn = log.last_lsn
        return log.time_ms

    # -- what is committed

    def take_committed(self, lsn: int) -> Iterator[LogRecord]:
        """The records behind what `committed` has had that end at or before `lsn`, decoded, in order; from memory or from disk.

        Give each to the sessions and to `committed` before asking for the next. Who has them decoded already gives them to `committed`
        itself, and needs no `take_committed`.
        """
        for item in self.log.items(self._committed_lsn + 1):
            if item.head.last_lsn > lsn:
                return
            yield self.log.decode(item)

    def committed(self, record: LogRecord) -> None:
        """`record` is committed: collect what it puts into the state, the last value of each key (I11: from state and entries alone)."""
        assert record.first_lsn == self._committed_lsn + 1, f"{record.first_lsn} is committed after {self._committed_lsn}"
        unapplied, prefix, entries = self._unapplied, self._state_prefix, record.entries
        for entry in entries:
            if entry.changes:
                start = prefix + entry.address.encode() + b"\0"  # as `keys.state_key` has it, without a call for each entry
                for suffix, value in entry.changes:
                    unapplied[start + suffix] = value
            elif entry.status == STATUS_CONFIGURATION:
                self._collect_configurations(record)
            if entry.key is not None:
                self._collect_key(record, entry.address, entry.key, SessionRecord(entry.digest, entry.status, entry.result, 0))
        if self.collects_changes:
            self._changed.update((entry.address, None) for entry in entries if entry.changes)
        self._committed_lsn += len(entries)
        self._committed_time_ms = record.time_ms

    def _collect_configurations(self, record: LogRecord) -> None:
        for lsn, entry in enumerate(record.entries, record.first_lsn):
            if entry.status == STATUS_CONFIGURATION:
                self.configuration_lsn, self._configuration = lsn, self._configuration_in(lsn, entry.result)
                self._configuration_is_stored = False

    def _collect_key(self, record: LogRecord, address: str, key: str, remembered: SessionRecord) -> None:
        """Keep the answer under its idempotency key, and let a few expired ones go, by the record's own time."""
        prefix, unapplied = self.prefix, self._unapplied
        record_key = keys.idempotency_key(address, key)
        unapplied[prefix + record_key] = _encode(remembered)
        expiry_ms = record.time_ms + self._idempotency_retention_ms
        start = prefix + keys.EXPIRY
        expired = list(itertools.islice(self._expired(start, start + record.time_ms.to_bytes(8, "big")), EXPIRED_PER_ENTRY_MAX))
        expiry = prefix + keys.expiry_key(expiry_ms, record_key)
        unapplied[expiry] = b""
        self._new_expiries.append(expiry)
        for gone in expired:
            unapplied[gone] = None
            unapplied[prefix + gone[len(start) + 8 :]] = None

    def _expired(self, start: bytes, stop: bytes) -> Iterator[bytes]:
        """Expiry keys in the range, oldest first: what is applied and what is not yet, so that it does not matter what is."""
        unapplied = self._unapplied
        applied = itertools.filterfalse(unapplied.__contains__, map(operator.itemgetter(0), self.store.scan(start, stop)))
        waiting = [key for key in sorted(self._new_expiries) if key < stop and unapplied.get(key) is not None]
        return heapq.merge(applied, waiting)

    def take_changed_addresses(self) -> list[str]:
        """The actors whose state was changed by what `committed` had since this was asked last; nothing unless `collects_changes`."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    @property
    def configuration(self) -> Configuration:
        """The newest configuration that is committed; its entry is at `configuration_lsn`, 0 for the first."""
        assert self._configuration is not None, "not recovered"
        return self._configuration

    # -- the state

    def apply(self, batch: Batch, committed_lsn: int) -> bool:
        """Put what was collected into the state, and say up to where; now and then also a checkpoint of the sessions.

        :param committed_lsn: what is known to be committed; what `committed` has not had of that waits
        :return: whether there was anything
        """
        lsn = self._committed_lsn
        assert lsn <= committed_lsn, f"{lsn} is to be applied, and only {committed_lsn} is committed"
        if lsn == self.applied_lsn:
            return False
        self.size.apply(batch, self._unapplied)
        for key, value in self._unapplied.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._unapplied.clear()
        self._new_expiries.clear()
        if not self._configuration_is_stored:
            batch.put(self.prefix + keys.META_CONFIGURATION, _encode((self.configuration_lsn, self._configuration)))
            self._configuration_is_stored = True
        self.applied_lsn = lsn
        batch.put(self.prefix + keys.META_APPLIED, _APPLIED.pack(lsn, self._committed_time_ms))
        if lsn - self._checkpoint_lsn >= self._checkpoint_entries:
            self._checkpoint(batch)
        return True

    def checkpoint_now(self, batch: Batch) -> None:
        """Write a checkpoint of the sessions at `applied_lsn`, which has everything that is committed."""
        assert self.applied_lsn == self._committed_lsn, f"{self._committed_lsn} is committed, {self.applied_lsn} is applied"
        batch.put(self.prefix + keys.META_APPLIED, _APPLIED.pack(self.applied_lsn, self._committed_time_ms))
        self._checkpoint(batch)

    def _checkpoint(self, batch: Batch) -> None:
        """Write the sessions as they are at `applied_lsn`, and drop old log records that nothing needs any more."""
        prefix = self.prefix
        images, forgotten = self._sessions.take_checkpoint()
        for client_id, image in images:
            batch.put(prefix + keys.SESSION + client_id, image)
        for client_id in forgotten:
            batch.delete(prefix + keys.SESSION + client_id)
        batch.put(prefix + keys.META_SESSIONS, _encode((self.applied_lsn, self._sessions.evicted_lsn)))
        self.size.put(batch)
        self._checkpoint_lsn = self.applied_lsn
        self.log.truncate_prefix(batch, self.applied_lsn)

    def begin_anew(self, batch: Batch, pointer: ReplicaPointer, configuration: Configuration, lsn: int, epoch: int) -> None:
        """Let `batch` make this data the whole of the replica of `pointer`, without any log, as of position `lsn` in `epoch`.

        Everything in the log is taken for committed and must be applied with this very batch; the old object must not be used any more.
        """
        assert self.applied_lsn == self.last_lsn < lsn, f"{self.applied_lsn} is applied of {self.last_lsn}, to begin at {lsn}"
        assert pointer.generation == self.pointer.generation, f"{pointer} has other data than {self.pointer}"
        prefix = self.prefix
        self._checkpoint(batch)
        self.store.put_pointer(batch, pointer)
        batch.put(prefix + keys.META_APPLIED, _APPLIED.pack(lsn, self._committed_time_ms))
        batch.put(prefix + keys.META_SESSIONS, _encode((lsn, self._sessions.evicted_lsn)))
        batch.put(prefix + keys.META_CONFIGURATION, _encode((lsn, configuration)))
        batch.put(prefix + keys.META_LOG_START, _encode((lsn, epoch)))
        batch.put(prefix + keys.META_EPOCH, _encode((epoch, "")))
        batch.truncate_log(prefix, keys.after(prefix))

    # -- reading

    def entries_of(self, address: str) -> StoredEntries:
        """The applied state of one actor."""
        return StoredEntries(self.store, self.prefix + keys.state_key(address))

    def key_record(self, address: str, key: str) -> SessionRecord | None:
        """The answer kept under an idempotency key, committed or applied; None if there is none."""
        storage_key = self.prefix + keys.idempotency_key(address, key)
        stored = self._unapplied[storage_key] if storage_key in self._unapplied else self.store.get(storage_key)
        return _decode_key_record(stored) if stored is not None else None

    def digest(self) -> tuple[int, str]:
        """(applied_lsn, hex digits) of the state, the idempotency records, the sessions and the configuration at that position.

        A function of the applied entries alone: checkpoints, generations and incarnations do not matter, and of the sessions only what
        is replicated counts. Everything committed must be applied. Reads the whole state: for checks, not for the hot path.
        """
        assert self.applied_lsn == self._committed_lsn, f"{self._committed_lsn} is committed, {self.applied_lsn} is applied"
        sessions = self._sessions
        head = (self.applied_lsn, self._committed_time_ms, self.configuration_lsn, self.configuration, sessions.evicted_lsn)
        hashed = xxh3_128(_encode(head))
        for client_id, session in sessions:
            marks = (session.floor_lsn, session.lowest, session.lowest_anywhere, session.last_lsn)
            hashed.update(_encode((client_id, marks, list(session.records.items()), list(session.nested.items()))))
        cut = len(self.prefix)
        for family in (keys.STATE, keys.IDEMPOTENCY, keys.EXPIRY):
            for key, value in self.store.scan(self.prefix + family, keys.after(self.prefix + family)):
                hashed.update(_SIZES.pack(len(key) - cut, len(value)) + key[cut:] + value)
        return self.applied_lsn, hashed.hexdigest()
