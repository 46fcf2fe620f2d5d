"""The log of one replica: what was appended is what is read, from memory or from disk, whatever was dropped at either end (I3)."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from storage_harness import SETTINGS, head_of, one_change, random_log, replica_at

from actorgrid.errors import CorruptLogError
from actorgrid.replication.entry import RecordHead, encode_record
from actorgrid.storage import log as log_module
from actorgrid.storage.log import LOG_TAIL_BYTES_MAX
from actorgrid.storage.replica_store import ReplicaStore

KIB = 1024


def test_records_are_read_whole_from_the_one_asked_for_until_they_are_enough(tmp_path: Path) -> None:
    log = [one_change(lsn, b"v" * 900) for lsn in range(1, 101)]
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        read = replica.durable.read_log
        for first, bytes_max, count in ((1, 1, 1), (1, 0, 1), (50, 3 * KIB, 3), (98, 1 << 20, 3), (100, 1, 1), (100, 1 << 20, 1)):
            found = read(first, bytes_max)
            assert [item.head for item in found] == [head_of(record) for record in log[first - 1 : first - 1 + count]]
            assert [item.data for item in found] == [encode_record(record) for record in log[first - 1 : first - 1 + count]]
        assert read(101, 1) == []


def test_reading_before_the_logs_start_is_a_mistake(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.run(random_log(1, 300, value_bytes=400))
        start_lsn = replica.durable.log_start_lsn
        assert start_lsn > 1
        assert replica.durable.read_log(start_lsn, 1)[0].head.first_lsn == start_lsn
        with pytest.raises(AssertionError, match="before the log's start"):
            replica.durable.read_log(start_lsn - 1, 1)


def test_a_position_inside_of_a_record_gives_that_record_from_memory_and_from_disk(tmp_path: Path) -> None:
    log = random_log(2, 80, value_bytes=9000)
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        for where in (log[:30], log[-10:]):
            record = next(record for record in where if record.last_lsn >= record.first_lsn + 2)
            for lsn in range(record.first_lsn, record.last_lsn + 1):
                assert replica.durable.read_log(lsn, 1)[0].head == head_of(record)


def test_what_is_appended_can_be_read_and_taken_before_its_batch_is_written_however_large_it_is(tmp_path: Path) -> None:
    log = [one_change(lsn, b"v" * 40 * KIB) for lsn in range(1, 21)]
    fork = [one_change(lsn, b"w" * 50 * KIB, epoch=2) for lsn in range(11, 21)]
    assert len(log) * 40 * KIB > 2 * LOG_TAIL_BYTES_MAX
    with replica_at(tmp_path / "store") as replica:
        batch = replica.store.batch()
        replica.append(batch, *log)
        assert [item.head.first_lsn for item in replica.durable.read_log(1, 1 << 30)] == list(range(1, 21))
        replica.durable.truncate_suffix(batch, 11)
        replica.append(batch, *fork)
        assert [item.data for item in replica.durable.read_log(1, 1 << 30)] == [encode_record(record) for record in log[:10] + fork]
        assert list(replica.durable.take_committed(20)) == log[:10] + fork
        replica.commit_from_log(5)
        replica.durable.apply(batch, 5)
        replica.durable.checkpoint_now(batch)  # and dropping old records makes memory forget none of those that are nowhere else
        assert replica.durable.log_start_lsn > 1
        kept = [encode_record(record) for record in (log[:10] + fork)[replica.durable.log_start_lsn - 1 :]]
        assert [item.data for item in replica.durable.read_log(replica.durable.log_start_lsn, 1 << 30)] == kept
        replica.store.write(batch)
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.last_lsn == 20
        assert [item.data for item in replica.durable.read_log(replica.found.log_start_lsn, 1 << 30)] == kept


def test_a_truncated_suffix_may_be_followed_by_records_of_older_epochs(tmp_path: Path) -> None:
    """Ongaro 2014, figure 3.7: a primary of epoch 4 may have, where this log has epoch 3, records of epoch 2."""
    log = [one_change(lsn, b"v", epoch=epoch) for lsn, epoch in enumerate((1, 1, 3, 3), 1)]
    later = [one_change(lsn, b"w", epoch=epoch) for lsn, epoch in enumerate((2, 2, 4), 3)]
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        batch = replica.store.batch()
        replica.durable.truncate_suffix(batch, 3)
        replica.append(batch, *later)
        replica.store.write(batch)
        assert [replica.durable.epoch_at(lsn) for lsn in range(6)] == [0, 1, 1, 2, 2, 4]
        with pytest.raises(AssertionError, match="epoch 3 follows epoch 4"):
            replica.append(replica.store.batch(), one_change(6, b"x", epoch=3))
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.epochs == [(1, 1), (3, 2), (5, 4)]


def test_a_log_whose_epochs_go_back_is_refused(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.append_only([one_change(1, b"v", epoch=2)])
        bad = one_change(2, b"v", epoch=1)
        batch = replica.store.batch()
        batch.append_log(replica.durable.prefix + (2).to_bytes(8, "big"), encode_record(bad))
        replica.store.write(batch)
    with pytest.raises(CorruptLogError, match="partition 1: epoch 1 follows epoch 2 at 2"), replica_at(tmp_path / "store"):
        pass


def test_memory_holds_the_newest_records_and_no_more(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        for lsn in range(1, 2001):
            batch = replica.store.batch()
            replica.append(batch, one_change(lsn, b"v" * KIB))
            replica.store.write(batch)
        held = replica.durable.log._tail
        assert sum(map(len, held.values())) <= LOG_TAIL_BYTES_MAX + 2 * KIB
        assert list(held) == list(range(2001 - len(held), 2001))
        assert len(held) > 200
    with replica_at(tmp_path / "store") as replica:
        assert sum(map(len, replica.durable.log._tail.values())) <= LOG_TAIL_BYTES_MAX


def test_memory_holds_nothing_that_the_garbage_collector_looks_at(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        gc.collect()
        before = len(gc.get_objects())
        for lsn in range(1, 501):
            batch = replica.store.batch()
            replica.append(batch, one_change(lsn, b"v" * 100))
            replica.store.write(batch)
        assert len(replica.durable.log._tail) == 500
        gc.collect()
        assert len(gc.get_objects()) < before + 50


def test_old_records_are_kept_up_to_the_retention_and_never_dropped_behind_the_checkpoint(tmp_path: Path) -> None:
    log = [one_change(lsn, b"v" * 4 * KIB) for lsn in range(1, 201)]
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        assert replica.durable.log_start_lsn == 1, "nothing of it is applied"
        assert replica.durable.log_bytes > 10 * SETTINGS.log_retention_bytes
        replica.commit_from_log(30)
        batch = replica.store.batch()
        assert replica.durable.apply(batch, 30)
        replica.store.write(batch)
        assert replica.durable.log_start_lsn == 1, "there is no checkpoint"
        replica.commit_from_log(50)
        batch = replica.store.batch()
        assert replica.durable.apply(batch, 50)
        replica.store.write(batch)
        assert 50 - 2 <= replica.durable.log_start_lsn <= 51
        replica.commit_from_log(200)
        replica.apply_all()
        assert SETTINGS.log_retention_bytes * 3 // 4 < replica.durable.log_bytes <= SETTINGS.log_retention_bytes
        found = replica.durable.read_log(replica.durable.log_start_lsn, 1 << 30)
        assert sum(len(item.data) for item in found) == replica.durable.log_bytes
        assert found[-1].head.last_lsn == 200


def test_a_record_larger_than_the_retention_is_kept_while_it_is_the_last(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        for lsn in range(1, 4):
            replica.run([one_change(lsn, b"v" * 3 * SETTINGS.log_retention_bytes)])
            replica.checkpoint()
            assert (replica.durable.log_start_lsn, replica.durable.last_lsn) == (lsn, lsn)
            assert replica.durable.epoch_at(lsn - 1) == (1 if lsn > 1 else 0)


@pytest.mark.parametrize("tail_bytes", [0, 20 * KIB, LOG_TAIL_BYTES_MAX])
def test_any_course_of_appends_truncations_checkpoints_and_restarts_leaves_the_log_as_it_should_be(
    tmp_path: Path, tail_bytes: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(log_module, "LOG_TAIL_BYTES_MAX", tail_bytes)
    rng = random.Random(request.config.getoption("--seed"))
    expected: list[Known] = []  # every record there ever was and that counts
    committed, epoch, truncated, dropped = 0, 1, 0, 0
    for _ in range(10):
        with replica_at(tmp_path / "store") as replica:
            durable = replica.durable
            committed = sum(known.head.last_lsn <= durable.applied_lsn for known in expected)
            for _ in range(50):
                batch = replica.store.batch()
                action = rng.random()
                if action < 0.12 and len(expected) > committed:
                    index = rng.randrange(committed, len(expected))
                    durable.truncate_suffix(batch, expected[index].head.first_lsn)
                    del expected[index:]
                    epoch += 1
                    truncated += 1
                if action < 0.7:
                    for _ in range(rng.randint(1, 5)):
                        record = one_change(durable.last_lsn + 1, rng.randbytes(rng.choice([1, 500, 6 * KIB])), epoch=epoch)
                        record.entries = record.entries * rng.choice([1, 1, 2, 4])
                        replica.append(batch, record)
                        expected.append(Known(head_of(record), encode_record(record), record.time_ms))
                if action > 0.4 and len(expected) > committed:
                    committed = rng.randint(committed + 1, len(expected))
                    replica.commit_from_log(expected[committed - 1].head.last_lsn)
                    if durable.apply(batch, durable.last_lsn) and action > 0.9:
                        durable.checkpoint_now(batch)
                if action > 0.95:
                    epoch += 1
                _compare(durable, expected, rng)
                replica.store.write(batch)
                _compare(durable, expected, rng)
            dropped = max(dropped, durable.log_start_lsn)
    assert truncated > 10
    assert dropped > 100


class Known(NamedTuple):
    head: RecordHead
    data: bytes
    time_ms: int


def _compare(durable: ReplicaStore, expected: list[Known], rng: random.Random) -> None:
    kept = [known for known in expected if known.head.first_lsn >= durable.log_start_lsn]
    assert durable.last_lsn == (expected[-1].head.last_lsn if expected else 0)
    assert durable.log_bytes == sum(len(known.data) for known in kept)
    if kept:
        assert kept[0].head.first_lsn == durable.log_start_lsn
        index = rng.randrange(len(kept))
        found = durable.read_log(kept[index].head.first_lsn, rng.choice([0, 10 * KIB, 1 << 30]))
        assert found
        assert [item.data for item in found] == [known.data for known in kept[index : index + len(found)]]
        assert durable.last_time_ms == expected[-1].time_ms
    epochs = {lsn: known.head.epoch for known in expected for lsn in known.head[1:]}
    for lsn in [durable.log_start_lsn - 1, *(known.head.last_lsn for known in kept)]:
        assert durable.epoch_at(lsn) == epochs.get(lsn, 0)
