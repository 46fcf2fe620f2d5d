"""What a replica has on disk follows from its log alone, however its entries were batched, applied and replayed (I9, I11)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actorgrid.errors import CorruptLogError
from actorgrid.ids import PartitionId
from actorgrid.replication.entry import ClientMark, Entry, LogRecord
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage import keys
from actorgrid.storage.replica_store import FIRST_INCARNATION, ReplicaStore
from actorgrid.storage.store import Store, StoreIdentity

SETTINGS = HostSettings(sessions_max=8, session_checkpoint_entries=40, idempotency_retention_s=1.0, log_retention_bytes=64 * 1024)
PARTITION = PartitionId(1)
PREFIX = keys.replica_prefix(PARTITION, FIRST_INCARNATION)


def _log(seed: int, ticks: int) -> list[LogRecord]:
    rng = random.Random(seed)
    log, lsn, now_ms = [], 1, 1000
    for tick in range(ticks):
        client = bytes([rng.randrange(12)]) * 16
        entries = [
            Entry(
                0,
                tick * 10 + position,
                (rng.randrange(3),) if rng.random() < 0.2 else (),
                rng.getrandbits(64),
                f"A\0{rng.randrange(20)}",
                0,
                b"\x01",
                [(rng.choice([b"", b"items", b"map\0k%d" % rng.randrange(9)]), rng.choice([None, rng.randbytes(5)]))],
                f"order-{tick}-{position}" if rng.random() < 0.5 else None,
            )
            for position in range(rng.randint(1, 4))
        ]
        now_ms += rng.randrange(120)
        record = LogRecord(1, lsn, now_ms, [ClientMark(client, max(0, tick * 10 - 50), max(0, tick * 10 - 60))], entries)
        lsn = record.last_lsn + 1
        log.append(record)
    return log


def _open(path: Path) -> tuple[Store, SessionTable, ReplicaStore]:
    store = Store(path, StoreIdentity("grid", "host", 1))
    sessions = SessionTable(SETTINGS.sessions_max)
    return store, sessions, ReplicaStore(PARTITION, store, sessions, SETTINGS)


def _state(store: Store) -> list[tuple[bytes, bytes]]:
    return [
        pair for family in (keys.STATE, keys.IDEMPOTENCY, keys.EXPIRY) for pair in store.scan(PREFIX + family, keys.after(PREFIX + family))
    ]


def _write(path: Path, log: list[LogRecord], rng: random.Random, apply_chance: float) -> None:
    """Append and commit `log`, applying now and then; then close, as a crash would, without applying the rest."""
    store, sessions, replica = _open(path)
    replica.recover()
    for record in log:
        batch = store.batch()
        replica.append(batch, record)
        sessions.apply(record)
        replica.committed(record)
        if rng.random() < apply_chance:
            replica.apply(batch, record.last_lsn)
        store.write(batch)
    store.sync_now()
    store.close()


@pytest.mark.parametrize("apply_chance", [0.0, 0.1, 0.5])
def test_state_does_not_depend_on_when_entries_were_applied_or_replayed(
    tmp_path: Path, apply_chance: float, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed")
    log = _log(seed, 300)
    states, tables = [], []
    for name, chance in (("at once", 1.0), ("late", apply_chance)):
        _write(tmp_path / name, log, random.Random(seed), chance)
        store, sessions, replica = _open(tmp_path / name)
        found = replica.recover()
        assert found.last_lsn == log[-1].last_lsn
        batch = store.batch()
        replica.apply(batch, found.last_lsn)
        store.write(batch)
        states.append(_state(store))
        tables.append([(client, session.lowest, session.last_lsn, session.records, session.nested) for client, session in sessions])
        store.close()
    assert states[0] == states[1]
    assert tables[0] == tables[1]
    assert any(key.startswith(PREFIX + keys.EXPIRY) for key, _ in states[0])
    kept = sum(key.startswith(PREFIX + keys.IDEMPOTENCY) for key, _ in states[0])
    assert kept < sum(entry.key is not None for record in log for entry in record.entries), "no record expired: too little was shown"


def test_old_log_records_go_once_sessions_have_a_checkpoint_and_a_restart_finds_the_same(tmp_path: Path) -> None:
    log = _log(1, 400)
    _write(tmp_path / "store", log, random.Random(1), 1.0)
    store, sessions, replica = _open(tmp_path / "store")
    assert replica.recover().last_lsn == log[-1].last_lsn
    assert len(sessions) == 8
    store.close()


def test_a_hole_in_the_log_is_found(tmp_path: Path) -> None:
    log = _log(2, 20)
    _write(tmp_path / "store", log, random.Random(2), 0.0)
    store, _, _ = _open(tmp_path / "store")
    batch = store.batch()
    batch.truncate_log(PREFIX + keys.lsn_key(log[7].last_lsn), PREFIX + keys.lsn_key(log[7].last_lsn + 1))
    store.write(batch)
    store.close()
    store, _, replica = _open(tmp_path / "store")
    with pytest.raises(
        CorruptLogError, match=rf"partition 1: the log continues at {log[8].first_lsn} where {log[7].first_lsn} was expected"
    ):
        replica.recover()
    store.close()


def test_a_log_that_ends_before_the_applied_state_is_found(tmp_path: Path) -> None:
    log = _log(3, 20)
    _write(tmp_path / "store", log, random.Random(3), 1.0)
    store, _, _ = _open(tmp_path / "store")
    batch = store.batch()
    batch.truncate_log(PREFIX + keys.lsn_key(log[-1].last_lsn), PREFIX + keys.lsn_key(log[-1].last_lsn + 1))
    store.write(batch)
    store.close()
    store, _, replica = _open(tmp_path / "store")
    with pytest.raises(CorruptLogError, match="the log ends at"):
        replica.recover()
    store.close()
