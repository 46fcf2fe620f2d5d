"""What the tests of this directory share: logs made from a seed, and replicas on real files."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from actorgrid.replication.configuration import Configuration, Member, encode_configuration
from actorgrid.replication.entry import (
    NO_CHANGES,
    NO_CLIENT,
    STATUS_CONFIGURATION,
    ClientMark,
    Entry,
    LogRecord,
    RecordHead,
    encode_record,
)
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage import keys
from actorgrid.storage.copy import CopyChunk, CopySource, CopySummary
from actorgrid.storage.replica_store import Recovered, ReplicaStore
from actorgrid.storage.store import Batch, ReplicaPointer, Store, StoreIdentity
from tests import wal_files

SETTINGS = HostSettings(sessions_max=8, session_checkpoint_entries=40, idempotency_retention_s=1.0, log_retention_bytes=64 * 1024)
IDENTITY = StoreIdentity("grid", "host", 8)
POINTER = ReplicaPointer(1, 1, 1, "active")
PREFIX = keys.replica_prefix(1, 1)
EPOCH = 1000  #: promised by every replica of these tests; records have lower ones
FIRST_CONFIGURATION = Configuration(1, (Member("host", 1), Member("b", 1), Member("c", 1)))
ACTORS = 20


def random_record(rng: random.Random, number: int, first_lsn: int, time_ms: int, *, epoch: int = 1, value_bytes: int = 5) -> LogRecord:
    """One to four entries of a client out of twelve, for `ACTORS` actors; `number` counts the records of a log."""
    client = bytes([rng.randrange(12)]) * 16
    entries = [
        Entry(
            0,
            number * 10 + position,
            (rng.randrange(3),) if rng.random() < 0.2 else (),
            rng.getrandbits(64),
            f"A\0{rng.randrange(ACTORS)}",
            0,
            b"\x01",
            [(rng.choice([b"", b"items", b"map\0k%d" % rng.randrange(9)]), rng.choice([None, rng.randbytes(value_bytes)]))],
            f"order-{number}-{position}" if rng.random() < 0.5 else None,
        )
        for position in range(rng.randint(1, 4))
    ]
    mark = ClientMark(client, max(0, number * 10 - 50), max(0, number * 10 - 60))
    return LogRecord(epoch, first_lsn, time_ms, [mark], entries)


def random_log(seed: int, ticks: int, *, value_bytes: int = 5, epochs: Iterable[int] = ()) -> list[LogRecord]:
    """`ticks` records; a new epoch begins at each record whose number is in `epochs`."""
    rng = random.Random(seed)
    log: list[LogRecord] = []
    lsn, now_ms, epoch = 1, 1000, 1
    begins = frozenset(epochs)
    for number in range(ticks):
        now_ms += rng.randrange(120)
        epoch += number in begins
        log.append(random_record(rng, number, lsn, now_ms, epoch=epoch, value_bytes=value_bytes))
        lsn = log[-1].last_lsn + 1
    return log


def configuration_record(epoch: int, lsn: int, configuration: Configuration, time_ms: int = 1) -> LogRecord:
    entry = Entry(NO_CLIENT, 0, (), 0, "", STATUS_CONFIGURATION, encode_configuration(configuration), NO_CHANGES)
    return LogRecord(epoch, lsn, time_ms, [], [entry])


def one_change(lsn: int, value: bytes | None, *, epoch: int = 1, actor: str = "a", suffix: bytes = b"") -> LogRecord:
    """A record of one entry that sets one key of one actor."""
    return LogRecord(epoch, lsn, lsn, [ClientMark(b"c" * 16, lsn, lsn)], [Entry(0, lsn, (), lsn, f"A\0{actor}", 0, b"", [(suffix, value)])])


def head_of(record: LogRecord) -> RecordHead:
    return RecordHead(record.epoch, record.first_lsn, record.last_lsn)


@dataclasses.dataclass
class OpenReplica:
    """A replica, recovered, with its store and its sessions."""

    store: Store
    sessions: SessionTable
    durable: ReplicaStore
    found: Recovered

    def append(self, batch: Batch, *records: LogRecord, with_time: bool = False) -> None:
        for record in records:
            self.durable.append(batch, encode_record(record), head_of(record), record.time_ms if with_time else None)

    def commit(self, *records: LogRecord) -> None:
        for record in records:
            self.sessions.apply(record)
            self.durable.committed(record)

    def commit_from_log(self, lsn: int) -> None:
        """As a secondary does it."""
        for record in self.durable.take_committed(lsn):
            self.commit(record)

    def run(self, records: Iterable[LogRecord], *, apply_chance: float = 1.0, rng: random.Random | None = None) -> None:
        """Append and commit `records`, each in a batch of its own, applying now and then."""
        rng = rng or random.Random(0)
        for record in records:
            batch = self.store.batch()
            self.append(batch, record)
            self.commit(record)
            if rng.random() < apply_chance:
                self.durable.apply(batch, record.last_lsn)
            self.store.advance(batch)
            self.store.write(batch)
        self.store.sync_now()

    def append_only(self, records: Iterable[LogRecord]) -> None:
        for record in records:
            batch = self.store.batch()
            self.append(batch, record)
            self.store.advance(batch)
            self.store.write(batch)
        self.store.sync_now()

    def apply_all(self) -> None:
        batch = self.store.batch()
        self.durable.apply(batch, self.durable.last_lsn)
        self.store.write(batch)

    def checkpoint(self) -> None:
        batch = self.store.batch()
        self.durable.checkpoint_now(batch)
        self.store.write(batch)

    def state(self) -> list[tuple[bytes, bytes]]:
        prefix = self.durable.prefix
        return [
            (key[len(prefix) :], value)
            for family in (keys.STATE, keys.IDEMPOTENCY, keys.EXPIRY)
            for key, value in self.store.scan(prefix + family, keys.after(prefix + family))
        ]

    def copy(self) -> tuple[list[CopyChunk], CopySummary]:
        """All chunks of a copy of what is applied, which must be everything that is committed."""
        self.checkpoint()
        source = CopySource(self.durable, chunk_bytes=400)
        chunks = list(iter(source.next_chunk, None))
        return chunks, source.summary


def table_of(sessions: SessionTable) -> list[object]:
    return [(client, s.floor_lsn, s.lowest, s.last_lsn, list(s.records.items()), list(s.nested.items())) for client, s in sessions]


@contextlib.contextmanager
def opened(path: Path, identity: StoreIdentity = IDENTITY) -> Iterator[Store]:
    store = Store(path, identity)
    try:
        yield store
    finally:
        store.close()


def create(store: Store, pointer: ReplicaPointer = POINTER) -> None:
    batch = store.batch()
    ReplicaStore.create(batch, store, pointer, FIRST_CONFIGURATION)
    store.write(batch)
    promise(store, pointer)
    store.sync_now()


def promise(store: Store, pointer: ReplicaPointer = POINTER, epoch: int = EPOCH, voted_for: str = "host") -> None:
    batch = store.batch()
    ReplicaStore(pointer, store, SessionTable(8), SETTINGS).save_epoch(batch, epoch, voted_for)
    store.advance(batch)
    store.write(batch)


def recovered(store: Store, pointer: ReplicaPointer = POINTER, settings: HostSettings = SETTINGS) -> OpenReplica:
    sessions = SessionTable(settings.sessions_max)
    durable = ReplicaStore(pointer, store, sessions, settings)
    return OpenReplica(store, sessions, durable, durable.recover())


@contextlib.contextmanager
def replica_at(path: Path, settings: HostSettings = SETTINGS) -> Iterator[OpenReplica]:
    """The replica in the store at `path`, which are made if there is none."""
    with opened(path) as store:
        pointer = store.replica_pointer(POINTER.partition)
        if pointer is None:
            pointer = POINTER
            create(store)
        yield recovered(store, pointer, settings)


def plain_digest(path: Path, records: list[LogRecord]) -> tuple[int, str]:
    """The digest of a replica that has applied `records`, one by one, and nothing else has happened to."""
    with replica_at(path) as replica:
        replica.run(records)
        digest = replica.durable.digest()
    shutil.rmtree(path)
    return digest


def crash(running: Path, copy: Path) -> Path:
    """The files of a running store as a crash would leave them, and the newest of its write-ahead log (a clean close writes tables)."""
    return wal_files.newest(wal_files.copied(running, copy))
