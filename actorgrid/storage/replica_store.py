"""What one replica has on disk: its epoch, its log, the state applied from it, and the checkpoints of its sessions.

Committed changes wait in memory until the next batch takes them into the state (`apply`), together with `applied_lsn`; a restart finds
in the log what the state lacks and applies it again (`recover`). The sessions' durable form is a checkpoint plus the log behind it, so
the log is kept at least back to the checkpoint (I9).
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from actorgrid.errors import CorruptLogError
from actorgrid.ids import PartitionId
from actorgrid.replication.entry import LogRecord, decode_record, encode_record
from actorgrid.replication.sessions import SessionRecord, SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage import keys
from actorgrid.storage.store import Batch, Store

#: Replicas are not rebuilt in place yet; the number is part of every key so that they can be.
FIRST_INCARNATION: Final = 1
#: Expired idempotency records dropped for each one written: more than one, so that they cannot pile up.
EXPIRED_PER_ENTRY_MAX: Final = 4

_encode = msgspec.msgpack.Encoder().encode
_decode_key_record = msgspec.msgpack.Decoder(SessionRecord).decode
_decode_session_meta = msgspec.msgpack.Decoder(tuple[int, int]).decode


class Recovered(NamedTuple):
    """What was found: the highest durable epoch, and the log's last position."""

    epoch: int
    last_lsn: int


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
        cut = len(prefix)
        pairs = self._store.scan(prefix + start, prefix + stop, reverse=reverse)
        return ((key[cut:], value) for key, value in pairs)


class ReplicaStore:
    """The durable side of one replica.

    :param sessions: brought up to date by `recover`; written by checkpoints
    :ivar applied_lsn: the state has everything up to here
    :ivar log_bytes: size of the log records kept
    """

    def __init__(self, partition: PartitionId, store: Store, sessions: SessionTable, settings: HostSettings) -> None:
        self._partition = partition
        self._store = store
        self._sessions = sessions
        self._settings = settings
        self._prefix = keys.replica_prefix(partition, FIRST_INCARNATION)
        self._unapplied: dict[bytes, bytes | None] = {}
        self._new_expiries: list[bytes] = []  # of idempotency records in `_unapplied`
        self._kept: deque[tuple[int, int]] = deque()  # (last lsn, bytes) of each log record
        self._checkpoint_lsn = 0
        self._time_ms = 0
        self.applied_lsn = 0
        self.log_bytes = 0

    # -- start

    def recover(self) -> Recovered:
        """Read what is there, and collect what the log has and the state lacks; `apply` writes that.

        A configuration of one member: its whole log is committed.

        :raises CorruptLogError: the log has a hole, or a record does not match its checksum
        """
        self.applied_lsn = self._number(keys.META_APPLIED)
        stored = self._store.get(self._prefix + keys.META_SESSIONS)
        self._checkpoint_lsn, evicted_lsn = _decode_session_meta(stored) if stored is not None else (0, 0)
        start = self._prefix + keys.SESSION
        for key, image in self._store.scan(start, keys.after(start)):
            self._sessions.load_image(key[len(start) :], image)
        self._sessions.loaded(evicted_lsn)
        return Recovered(self._number(keys.META_EPOCH), self._replay())

    def _number(self, name: bytes) -> int:
        stored = self._store.get(self._prefix + name)
        return int.from_bytes(stored, "big") if stored is not None else 0

    def _replay(self) -> int:
        """Bring sessions and state up to the end of the log; its last position."""
        last_lsn = self._checkpoint_lsn
        for record, size in self._records():
            self._keep(record.last_lsn, size)
            if record.last_lsn > self._checkpoint_lsn:
                if record.first_lsn > last_lsn + 1:
                    raise self._corrupt(f"sessions are known up to {last_lsn}, the log goes on at {record.first_lsn}")
                self._sessions.apply(record)
                last_lsn = record.last_lsn
            if record.last_lsn > self.applied_lsn:
                self.committed(record)
            self._time_ms = max(self._time_ms, record.time_ms)
        if last_lsn < self.applied_lsn:
            raise self._corrupt(f"state is applied up to {self.applied_lsn}, the log ends at {last_lsn}")
        return last_lsn

    def _records(self) -> Iterator[tuple[LogRecord, int]]:
        """The log's records with their sizes, oldest first, checked to be whole and without a hole."""
        expected: int | None = None
        for key, data in self._store.scan_log(self._prefix + keys.lsn_key(0), keys.after(self._prefix) + keys.lsn_key(0)):
            try:
                record = decode_record(data)
            except CorruptLogError as error:
                raise self._corrupt(f"record that ends at {int.from_bytes(key[-8:], 'big')}: {error}") from None
            if expected is not None and record.first_lsn != expected:
                raise self._corrupt(f"the log continues at {record.first_lsn} where {expected} was expected")
            expected = record.last_lsn + 1
            yield record, len(data)

    def _corrupt(self, what: str) -> CorruptLogError:
        return CorruptLogError(f"partition {self._partition}: {what}")

    # -- writing

    def save_epoch(self, batch: Batch, epoch: int) -> None:
        batch.put(self._prefix + keys.META_EPOCH, epoch.to_bytes(8, "big"))

    @property
    def last_time_ms(self) -> int:
        """The time of the last record; 0 if there is none."""
        return self._time_ms

    def append(self, batch: Batch, record: LogRecord) -> None:
        """Put `record` at the end of the log."""
        data = encode_record(record)
        batch.append_log(self._prefix + keys.lsn_key(record.last_lsn), data)
        self._keep(record.last_lsn, len(data))
        self._time_ms = record.time_ms

    def _keep(self, last_lsn: int, size: int) -> None:
        self._kept.append((last_lsn, size))
        self.log_bytes += size

    def committed(self, record: LogRecord) -> None:
        """`record` is committed: collect what it puts into the state, the last value of each key (I11: from state and entries alone)."""
        unapplied, prefix = self._unapplied, self._prefix
        for entry in record.entries:
            if entry.changes:
                start = prefix + keys.state_key(entry.address)
                for suffix, value in entry.changes:
                    unapplied[start + suffix] = value
            if entry.key is not None:
                self._collect_key(record, entry.address, entry.key, SessionRecord(entry.digest, entry.status, entry.result, 0))

    def _collect_key(self, record: LogRecord, address: str, key: str, remembered: SessionRecord) -> None:
        """Keep the answer under its idempotency key, and let a few expired ones go, by the record's own time."""
        prefix, unapplied = self._prefix, self._unapplied
        record_key = keys.idempotency_key(address, key)
        unapplied[prefix + record_key] = _encode(remembered)
        expiry_ms = record.time_ms + int(self._settings.idempotency_retention_s * 1000)
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
        applied = (key for key, _ in self._store.scan(start, stop) if key not in unapplied)
        waiting = (key for key in sorted(self._new_expiries) if key < stop and unapplied.get(key) is not None)
        return heapq.merge(applied, waiting)

    def apply(self, batch: Batch, committed_lsn: int) -> bool:
        """Put what was collected into the state, and say up to where; now and then also a checkpoint of the sessions.

        :return: whether there was anything
        """
        if committed_lsn == self.applied_lsn:
            return False
        for key, value in self._unapplied.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._unapplied.clear()
        self._new_expiries.clear()
        batch.put(self._prefix + keys.META_APPLIED, committed_lsn.to_bytes(8, "big"))
        self.applied_lsn = committed_lsn
        if committed_lsn - self._checkpoint_lsn >= self._settings.session_checkpoint_entries:
            self._checkpoint(batch)
        return True

    def _checkpoint(self, batch: Batch) -> None:
        """Write the sessions as they are at `applied_lsn`, and drop old log records that nothing needs any more."""
        prefix = self._prefix
        images, forgotten = self._sessions.take_checkpoint()
        for client_id, image in images:
            batch.put(prefix + keys.SESSION + client_id, image)
        for client_id in forgotten:
            batch.delete(prefix + keys.SESSION + client_id)
        batch.put(prefix + keys.META_SESSIONS, _encode((self.applied_lsn, self._sessions.evicted_lsn)))
        self._checkpoint_lsn = self.applied_lsn
        kept, first_kept = self._kept, 0
        while len(kept) > 1 and self.log_bytes > self._settings.log_retention_bytes and kept[0][0] <= self._checkpoint_lsn:
            last_lsn, size = kept.popleft()
            self.log_bytes -= size
            first_kept = last_lsn + 1
        if first_kept:
            batch.truncate_log(prefix + keys.lsn_key(0), prefix + keys.lsn_key(first_kept))

    # -- reading

    def entries_of(self, address: str) -> StoredEntries:
        """The applied state of one actor."""
        return StoredEntries(self._store, self._prefix + keys.state_key(address))

    def key_record(self, address: str, key: str) -> SessionRecord | None:
        """The answer kept under an idempotency key, committed or applied; None if there is none."""
        storage_key = self._prefix + keys.idempotency_key(address, key)
        stored = self._unapplied[storage_key] if storage_key in self._unapplied else self._store.get(storage_key)
        return _decode_key_record(stored) if stored is not None else None
