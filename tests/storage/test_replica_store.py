"""What a replica has on disk follows from its log alone, however its entries were batched, applied and replayed (I9, I11)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from storage_harness import (
    EPOCH,
    FIRST_CONFIGURATION,
    POINTER,
    PREFIX,
    SETTINGS,
    configuration_record,
    create,
    one_change,
    opened,
    plain_digest,
    promise,
    random_log,
    recovered,
    replica_at,
    table_of,
)

from actorgrid.errors import CorruptLogError
from actorgrid.replication.configuration import Member
from actorgrid.replication.entry import encode_record
from actorgrid.replication.sessions import SessionTable
from actorgrid.storage import keys
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.store import ReplicaPointer


@pytest.mark.parametrize("apply_chance", [0.0, 0.1, 0.5])
def test_state_does_not_depend_on_when_entries_were_applied_or_replayed(
    tmp_path: Path, apply_chance: float, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed")
    log = random_log(seed, 300)
    states, tables, digests = [], [], []
    for name, chance in (("at once", 1.0), ("late", apply_chance)):
        with replica_at(tmp_path / name) as replica:
            replica.run(log, apply_chance=chance, rng=random.Random(seed))
        with replica_at(tmp_path / name) as replica:  # closed without applying the rest, as a crash would
            assert replica.found.last_lsn == log[-1].last_lsn
            assert (replica.found.applied_lsn == log[-1].last_lsn) or chance < 1
            replica.commit_from_log(log[-1].last_lsn)
            replica.apply_all()
            states.append(replica.state())
            tables.append(table_of(replica.sessions))
            digests.append(replica.durable.digest())
    assert states[0] == states[1]
    assert tables[0] == tables[1]
    assert digests[0] == digests[1]
    assert any(key.startswith(keys.EXPIRY) for key, _ in states[0])
    kept = sum(key.startswith(keys.IDEMPOTENCY) for key, _ in states[0])
    assert kept < sum(entry.key is not None for record in log for entry in record.entries), "no record expired: too little was shown"


def test_old_log_records_go_once_sessions_have_a_checkpoint_and_a_restart_finds_the_same(tmp_path: Path) -> None:
    log = random_log(1, 400, value_bytes=300)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log)
        kept = (replica.durable.log_start_lsn, replica.durable.log_bytes, table_of(replica.sessions))
        assert kept[0] > 1
        assert kept[1] <= SETTINGS.log_retention_bytes + 40 * 4 * 400
    with replica_at(tmp_path / "store") as replica:
        found = replica.found
        assert (found.log_start_lsn, replica.durable.log_bytes, table_of(replica.sessions)) == kept
        assert (found.last_lsn, found.applied_lsn) == (log[-1].last_lsn, log[-1].last_lsn)
        assert len(replica.sessions) == 8


# -- what is not known to be committed


def test_a_restart_keeps_sessions_and_state_at_applied_lsn_and_the_uncommitted_tail_in_the_log(tmp_path: Path) -> None:
    log = random_log(4, 120)
    applied, appended = log[:90], log[90:]
    with replica_at(tmp_path / "store") as replica:
        replica.run(applied)
        digest = replica.durable.digest()
        replica.append_only(appended)
        tail = replica.durable.read_log(appended[0].first_lsn, 1 << 20)
    for _ in range(2):  # nothing is worn off by restarts
        with replica_at(tmp_path / "store") as replica:
            assert replica.found.applied_lsn == applied[-1].last_lsn
            assert replica.found.last_lsn == appended[-1].last_lsn
            assert replica.durable.digest() == digest
            assert not replica.durable.apply(replica.store.batch(), appended[-1].last_lsn)
            assert replica.durable.read_log(appended[0].first_lsn, 1 << 20) == tail
            assert replica.durable.last_time_ms == appended[-1].time_ms
    with replica_at(tmp_path / "store") as replica:
        replica.commit_from_log(appended[4].last_lsn)
        replica.apply_all()
        assert replica.durable.digest() == plain_digest(tmp_path / "plain", log[:95])
        replica.commit_from_log(appended[-1].last_lsn)
        replica.apply_all()
        assert replica.durable.digest() == plain_digest(tmp_path / "plain", log)


def test_what_is_committed_and_not_applied_is_taken_from_the_log_again(tmp_path: Path) -> None:
    log = random_log(5, 30)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log, apply_chance=0.0)
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.applied_lsn == 0
        assert len(replica.sessions) == 0
        assert replica.state() == []
        replica.commit_from_log(log[-1].last_lsn)
        replica.apply_all()
        assert replica.durable.digest() == plain_digest(tmp_path / "plain", log)


def test_a_record_that_ends_behind_what_is_committed_waits_whole(tmp_path: Path) -> None:
    log = random_log(6, 10)
    index = next(index for index, record in enumerate(log[3:], 3) if record.last_lsn > record.first_lsn)
    inside_lsn = log[index].last_lsn - 1
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        assert list(replica.durable.take_committed(inside_lsn)) == log[:index]
        replica.commit_from_log(inside_lsn)
        batch = replica.store.batch()
        assert replica.durable.apply(batch, inside_lsn)
        replica.store.write(batch)
        assert replica.durable.applied_lsn == log[index - 1].last_lsn
        assert not replica.durable.apply(batch, inside_lsn)
        assert replica.durable.digest() == plain_digest(tmp_path / "plain", log[:index])


def test_records_that_were_given_decoded_are_not_taken_again(tmp_path: Path) -> None:
    log = random_log(7, 10)
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        replica.commit_from_log(log[2].last_lsn)
        replica.commit(*log[3:6])
        assert list(replica.durable.take_committed(log[-1].last_lsn)) == log[6:]
        with pytest.raises(AssertionError):
            replica.durable.committed(log[7])


def test_a_suffix_that_was_truncated_and_written_anew_is_what_a_restart_finds(tmp_path: Path) -> None:
    log = random_log(8, 60)
    fork = random_log(88, 40)
    base = log[:40]
    with replica_at(tmp_path / "store") as replica:
        replica.run(base)
        replica.append_only(log[40:])
        batch = replica.store.batch()
        replica.durable.truncate_suffix(batch, log[40].first_lsn)
        other, lsn = [], base[-1].last_lsn + 1
        for record in fork:
            record.first_lsn, record.epoch = lsn, 2
            record.time_ms = max(record.time_ms, base[-1].time_ms)
            other.append(record)
            lsn = record.last_lsn + 1
        assert replica.durable.last_lsn == base[-1].last_lsn
        assert replica.durable.last_time_ms == base[-1].time_ms
        replica.append(batch, *other)
        replica.store.write(batch)
        replica.store.sync_now()
        expected = [encode_record(record) for record in base + other]
        assert [item.data for item in replica.durable.read_log(1, 1 << 30)] == expected
        size = replica.durable.log_bytes
        assert size == sum(map(len, expected))
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.epochs == [(1, 1), (other[0].first_lsn, 2)]
        assert replica.found.last_lsn == other[-1].last_lsn
        assert replica.durable.log_bytes == size
        assert [item.data for item in replica.durable.read_log(1, 1 << 30)] == expected
        replica.commit_from_log(other[-1].last_lsn)
        replica.apply_all()
        assert replica.durable.digest() == plain_digest(tmp_path / "plain", base + other)


def test_nothing_that_is_committed_and_no_half_record_can_be_truncated(tmp_path: Path) -> None:
    log = random_log(9, 20)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log[:10])
        replica.append_only(log[10:])
        half = next(record for record in log[10:] if record.last_lsn > record.first_lsn)
        for lsn in (log[9].first_lsn, half.first_lsn + 1, log[-1].last_lsn + 1):
            with pytest.raises(AssertionError):
                replica.durable.truncate_suffix(replica.store.batch(), lsn)
        with pytest.raises(AssertionError, match="does not follow"):
            replica.append(replica.store.batch(), log[15])
        assert replica.durable.last_lsn == log[-1].last_lsn


# -- epochs and configurations


def test_epochs_of_everything_in_the_log_and_of_the_position_before_it_are_known_after_a_restart(tmp_path: Path) -> None:
    log = random_log(10, 300, value_bytes=400, epochs=(20, 21, 150, 151, 152, 280))
    epoch_of = {lsn: record.epoch for record in log for lsn in range(record.first_lsn, record.last_lsn + 1)}
    with replica_at(tmp_path / "store") as replica:
        assert (replica.found.log_start_lsn, replica.found.last_lsn, replica.found.epochs) == (1, 0, [])
        assert replica.durable.epoch_at(0) == 0
        replica.run(log)
        before = replica.durable.log.epochs
    with replica_at(tmp_path / "store") as replica:
        found = replica.found
        assert found.log_start_lsn > 20, "nothing was truncated: too little was shown"
        assert found.epochs == before
        assert found.epochs[0] == (found.log_start_lsn - 1, epoch_of[found.log_start_lsn - 1])
        for lsn in range(found.log_start_lsn - 1, found.last_lsn + 1):
            assert replica.durable.epoch_at(lsn) == epoch_of[lsn]
            assert [epoch for first, epoch in found.epochs if first <= lsn][-1] == epoch_of[lsn]


def test_the_epoch_and_the_vote_are_one_promise(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        create(store)
        promise(store, epoch=12, voted_for="b")
        promise(store, epoch=13, voted_for="")
        assert recovered(store).found[:2] == (13, "")
        promise(store, epoch=13, voted_for="c")
    with replica_at(tmp_path / "store") as replica:
        assert replica.found[:2] == (13, "c")


def test_a_log_of_a_newer_epoch_than_was_promised_is_refused(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.append_only([one_change(1, b"x", epoch=EPOCH + 1)])
    with pytest.raises(CorruptLogError, match="partition 1: epoch 1000 was promised"), replica_at(tmp_path / "store"):
        pass


def test_a_configuration_is_in_force_in_the_state_once_it_is_applied_and_before_that_in_the_log(tmp_path: Path) -> None:
    second = FIRST_CONFIGURATION.with_idle(Member("d", 1))
    third = second.promoted(Member("d", 1))
    log = [one_change(1, b"1"), configuration_record(1, 2, second), one_change(3, b"3"), configuration_record(2, 4, third)]
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.configurations == [(0, FIRST_CONFIGURATION)]
        replica.append_only(log)
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.configurations == [(0, FIRST_CONFIGURATION), (2, second), (4, third)]
        assert (replica.durable.configuration_lsn, replica.durable.configuration) == (0, FIRST_CONFIGURATION)
        replica.commit_from_log(3)
        replica.apply_all()
        assert (replica.durable.configuration_lsn, replica.durable.configuration) == (2, second)
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.configurations == [(2, second), (4, third)]
        replica.checkpoint()
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.configurations == [(2, second), (4, third)]
        replica.commit_from_log(4)
        replica.apply_all()
    with replica_at(tmp_path / "store") as replica:
        assert replica.found.configurations == [(4, third)]


# -- addresses for reads on secondaries, times


def test_changed_addresses_are_collected_while_somebody_wants_them_and_given_once(tmp_path: Path) -> None:
    log = random_log(11, 30)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log[:10])
        assert replica.durable.take_changed_addresses() == []
        replica.durable.collects_changes = True
        replica.run(log[10:20])
        assert replica.durable.take_changed_addresses() == list(dict.fromkeys(e.address for r in log[10:20] for e in r.entries))
        assert replica.durable.take_changed_addresses() == []
        replica.durable.collects_changes = False
        replica.run(log[20:])
        assert replica.durable.take_changed_addresses() == []


@pytest.mark.parametrize("with_time", [True, False])
def test_the_time_of_the_last_record_is_known_whoever_wrote_it(tmp_path: Path, with_time: bool) -> None:
    log = random_log(12, 50)
    with replica_at(tmp_path / "store") as replica:
        assert replica.durable.last_time_ms == 0
        for record in log:
            batch = replica.store.batch()
            replica.append(batch, record, with_time=with_time)
            assert replica.durable.last_time_ms == record.time_ms
            replica.store.write(batch)
        replica.commit_from_log(log[-1].last_lsn)
        replica.apply_all()
    with replica_at(tmp_path / "store") as replica:
        replica.checkpoint()
        assert replica.durable.last_time_ms == log[-1].time_ms
    with replica_at(tmp_path / "store") as replica:  # no record is decoded now
        assert replica.durable.last_time_ms == log[-1].time_ms


def test_an_active_pointer_is_needed(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        create(store)
        with pytest.raises(AssertionError, match="is not active"):
            ReplicaStore(ReplicaPointer(1, 1, 1, "retired"), store, SessionTable(8), SETTINGS)


def test_replicas_of_one_store_do_not_see_each_other(tmp_path: Path) -> None:
    first, second = random_log(13, 60), random_log(14, 60)
    other = ReplicaPointer(2, 4, 7, "active")
    with opened(tmp_path / "store") as store:
        create(store)
        create(store, other)
        recovered(store).run(first)
        recovered(store, other).run(second)
        digests = recovered(store).durable.digest(), recovered(store, other).durable.digest()
        assert digests == (plain_digest(tmp_path / "a", first), plain_digest(tmp_path / "b", second))
        batch = store.batch()
        store.drop_generation(batch, 1, 1)
        store.write(batch)
        assert list(store.scan(PREFIX, keys.after(PREFIX))) == list(store.scan_log(PREFIX, keys.after(PREFIX))) == []
        assert recovered(store, other).durable.digest() == digests[1]
        assert store.replica_pointers() == [POINTER, other]


# -- digests


@pytest.mark.parametrize("change", ["value", "result", "number", "mark", "key", "time", "configuration"])
def test_a_digest_tells_any_difference_in_what_was_applied(tmp_path: Path, change: str) -> None:
    log = random_log(15, 20)
    log[-1] = one_change(log[-1].first_lsn, b"v")
    log[-1].time_ms = log[-2].time_ms
    expected = plain_digest(tmp_path / "a", log)
    record, entry = log[-1], log[-1].entries[0]
    if change == "value":
        entry.changes = [(b"", b"w")]
    elif change == "result":
        entry.result = b"other"
    elif change == "number":
        entry.number += 1
    elif change == "mark":
        record.clients[0].lowest += 1
    elif change == "key":
        entry.key = "k"
    elif change == "time":
        record.time_ms += 1
    else:
        log[-1] = configuration_record(1, record.first_lsn, FIRST_CONFIGURATION.with_idle(Member("d", 1)), record.time_ms)
    found = plain_digest(tmp_path / "b", log)
    assert found[0] == expected[0]
    assert found[1] != expected[1]


def test_a_digest_does_not_see_what_only_the_primary_knows(tmp_path: Path) -> None:
    log = random_log(16, 30)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log)
        digest = replica.durable.digest()
        for client, session in replica.sessions:
            session.heard, session.heard_anywhere, session.running = 999, 999, {1: client}
        replica.sessions.open(b"new" * 5 + b"c", 10**9)
        assert replica.durable.digest() == digest
        record = one_change(log[-1].last_lsn + 1, b"x")
        replica.append_only([record])
        assert replica.durable.digest() == digest
        replica.sessions.evicted_lsn += 1  # but what decides about forgotten clients is everybody's
        assert replica.durable.digest() != digest
        replica.sessions.evicted_lsn -= 1
        replica.commit(record)
        with pytest.raises(AssertionError, match="is applied"):
            replica.durable.digest()


@pytest.mark.parametrize("family", [keys.STATE, keys.IDEMPOTENCY, keys.EXPIRY])
def test_a_digest_covers_every_pair_of_the_state(tmp_path: Path, family: bytes) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.run(random_log(16, 60))
        seen = {replica.durable.digest()}
        pairs = [(PREFIX + key, value) for key, value in replica.state() if key.startswith(family)]
        for key, value in pairs[:1] + pairs[-1:]:
            for other in (value + b"x", None):
                batch = replica.store.batch()
                batch.put(key, other) if other is not None else batch.delete(key)
                replica.store.write(batch)
                seen.add(replica.durable.digest())
        assert len(seen) == 5


# -- damage that only this layer can see


def _rewrite(path: Path, record_of_lsn: int, change: int) -> None:
    """Flip bit `change` of the record that ends at `record_of_lsn`, under RocksDB's own checksums."""
    with opened(path) as store:
        key = PREFIX + keys.lsn_key(record_of_lsn)
        data = bytearray(next(value for found, value in store.scan_log(key, keys.after(key)) if found == key))
        data[change // 8 % len(data)] ^= 1 << change % 8
        batch = store.batch()
        batch.append_log(key, bytes(data))
        store.write(batch)
        store.sync_now()


@pytest.mark.parametrize("bit", [3, 70, 130, 190, 260, 777])
@pytest.mark.parametrize("where", ["applied", "uncommitted", "behind the checkpoint only"])
def test_a_flipped_bit_in_a_record_is_named_with_partition_and_position(tmp_path: Path, where: str, bit: int) -> None:
    log = random_log(17, 60)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log[:50])
        if where == "applied":
            replica.checkpoint()
        replica.append_only(log[50:])
    record = log[5] if where == "applied" else log[55] if where == "uncommitted" else log[49]
    _rewrite(tmp_path / "store", record.last_lsn, bit)
    with pytest.raises(CorruptLogError, match=rf"partition 1: .*{record.last_lsn}"), replica_at(tmp_path / "store"):
        pass


def test_a_record_that_was_damaged_after_the_start_is_named_when_it_is_read(tmp_path: Path) -> None:
    log = random_log(18, 80, value_bytes=8000)
    with replica_at(tmp_path / "store") as replica:
        replica.append_only(log)
        key = PREFIX + keys.lsn_key(log[1].last_lsn)
        for data, words in (
            (b"\0" * 100, rf"partition 1: log record that ends at {log[1].last_lsn}: checksum"),
            (encode_record(log[2]), rf"partition 1: log record that ends at {log[1].last_lsn}: its head says"),
            (None, rf"partition 1: the log has no record at {log[1].first_lsn}"),
        ):
            batch = replica.store.batch()
            if data is None:
                batch.delete_log(key)
            else:
                batch.append_log(key, data)
            replica.store.write(batch)
            for read in (lambda: replica.durable.read_log(1, 1 << 30), lambda: list(replica.durable.take_committed(log[5].last_lsn))):
                with pytest.raises(CorruptLogError, match=words):
                    read()
        assert not replica.store.has_failed, "one replica's record is no failure of the disk"
        assert replica.durable.read_log(log[-1].first_lsn, 1)[0].data == encode_record(log[-1])


def test_a_hole_in_the_log_is_found(tmp_path: Path) -> None:
    log = random_log(2, 20)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log, apply_chance=0.0)
        batch = replica.store.batch()
        batch.delete_log(PREFIX + keys.lsn_key(log[7].last_lsn))
        replica.store.write(batch)
    with (
        pytest.raises(
            CorruptLogError, match=rf"partition 1: the log continues at {log[8].first_lsn} where {log[7].first_lsn} was expected"
        ),
        replica_at(tmp_path / "store"),
    ):
        pass


@pytest.mark.parametrize("truncated", [False, True])
def test_a_log_without_its_first_record_is_found(tmp_path: Path, truncated: bool) -> None:
    log = random_log(2, 150, value_bytes=1000 if truncated else 1)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log)
        start_lsn = replica.durable.log_start_lsn
        assert (start_lsn > 1) == truncated
        first = replica.durable.read_log(start_lsn, 1)[0].head
        batch = replica.store.batch()
        batch.delete_log(PREFIX + keys.lsn_key(first.last_lsn))
        replica.store.write(batch)
    with pytest.raises(CorruptLogError, match=rf"where {start_lsn} was expected"), replica_at(tmp_path / "store"):
        pass


def test_a_log_that_ends_before_the_applied_state_is_found(tmp_path: Path) -> None:
    log = random_log(3, 20)
    with replica_at(tmp_path / "store") as replica:
        replica.run(log)
        batch = replica.store.batch()
        batch.delete_log(PREFIX + keys.lsn_key(log[-1].last_lsn))
        replica.store.write(batch)
    with pytest.raises(CorruptLogError, match="the log ends at"), replica_at(tmp_path / "store"):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (keys.META_APPLIED, b"\0" * 8),
        (keys.META_APPLIED, (10**6).to_bytes(8, "big") + b"\0" * 8),
        (keys.META_SESSIONS, b"\xc1"),
        (keys.META_SESSIONS, b"\x92\xcd\xff\xff\x00"),
        (keys.META_CONFIGURATION, b"\x00"),
        (keys.META_EPOCH, b"\x91\x01"),
        (keys.META_LOG_START, b"\xa0"),
        (keys.META_LOG_START, b"\x92\x7f\x01"),
        (keys.SESSION + b"c" * 16, b"\x01"),
    ],
)
def test_what_has_the_wrong_form_is_refused_as_corrupt(tmp_path: Path, name: bytes, value: bytes) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.run(random_log(19, 30))
        batch = replica.store.batch()
        batch.put(PREFIX + name, value)
        replica.store.write(batch)
    with pytest.raises(CorruptLogError, match="partition 1: "), replica_at(tmp_path / "store"):
        pass


def test_a_replica_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store, pytest.raises(CorruptLogError, match="no configuration"):
        recovered(store)
