"""Copies: what is installed is what the source had at one position, or nothing at all (I13)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storage_harness import (
    EPOCH,
    FIRST_CONFIGURATION,
    OpenReplica,
    configuration_record,
    crash,
    create,
    one_change,
    opened,
    plain_digest,
    random_log,
    recovered,
    replica_at,
    table_of,
)
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from actorgrid.errors import CorruptLogError, InvariantViolation, StorageError
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.storage import keys
from actorgrid.storage.copy import COPY_CHUNK_BYTES, COPY_CHUNK_PAIRS_MAX, CopyChunk, CopySource, CopySummary, CopyTarget
from actorgrid.storage.store import ReplicaPointer, Store
from tests import wal_files

Chunks = tuple[list[CopyChunk], CopySummary]


def made(path: Path, records: int = 120, seed: int = 1) -> tuple[list[CopyChunk], CopySummary, tuple[int, str]]:
    """A copy of a replica that has applied `records` records, and its digest."""
    with replica_at(path) as replica:
        replica.run(random_log(seed, records, epochs=(50,)))
        chunks, summary = replica.copy()
        return chunks, summary, replica.durable.digest()


def received(store: Store, chunks: list[CopyChunk], incarnation: int = 1) -> CopyTarget:
    target = CopyTarget(store, 1, incarnation)
    for chunk in chunks:
        target.add(chunk)
    return target


def install(target: CopyTarget, summary: CopySummary, epoch: int = EPOCH, voted_for: str = "") -> ReplicaPointer:
    batch = target._store.batch()
    pointer = target.install(batch, summary, epoch, voted_for)
    target._store.advance(batch)
    target._store.write(batch)
    target._store.sync_now()
    return pointer


def abandon(target: CopyTarget) -> None:
    batch = target._store.batch()
    target.abandon(batch)
    target._store.write(batch)


def everything(store: Store) -> list[tuple[bytes, bytes]]:
    """What is in the store beside the host's own counters."""
    return [*store.scan(b"", keys.HOST), *store.scan_log(b"", keys.HOST)]


def everything_but_its_number(store: Store) -> list[tuple[bytes, bytes]]:
    """What is in the store, the host's own beside the number of the last batch."""
    pairs = [*store.scan(b"", b"\xff" * 40), *store.scan_log(b"", b"\xff" * 40)]
    return [pair for pair in pairs if pair[0] != keys.BATCH_KEY]


def chunk_of(number: int, pairs: object) -> CopyChunk:
    data = msgspec.msgpack.encode(pairs)
    return CopyChunk(number, data, xxh3_64_intdigest(data))


# -- what is installed


def test_an_installed_copy_has_the_digest_of_its_source_and_goes_on_from_there(tmp_path: Path) -> None:
    log = random_log(2, 200, epochs=(60, 61))
    with replica_at(tmp_path / "source") as source, opened(tmp_path / "target") as store:
        source.run(log[:150])
        chunks, summary = source.copy()
        assert summary.lsn == log[149].last_lsn
        assert summary.epoch_at_lsn == 3
        assert (summary.chunks, summary.bytes) == (len(chunks), sum(len(chunk.data) for chunk in chunks))
        assert summary.digest == xxh3_128_hexdigest(b"".join(chunk.data for chunk in chunks))
        assert len(chunks) > 5
        pointer = install(received(store, chunks, 4), summary, epoch=7, voted_for="b")
        assert pointer == ReplicaPointer(1, 4, pointer.generation, "active")
        assert store.replica_pointers() == [pointer]
        target = recovered(store, pointer)
        assert target.found == (7, "b", summary.lsn + 1, summary.lsn, summary.lsn, [(summary.lsn, 3)], [(0, FIRST_CONFIGURATION)])
        assert target.durable.digest() == source.durable.digest()
        assert table_of(target.sessions) == table_of(source.sessions)
        assert target.durable.last_time_ms == source.durable.last_time_ms
        for replica in (source, target):
            replica.run(log[150:180], apply_chance=0.3)
    with replica_at(tmp_path / "source") as source, replica_at(tmp_path / "target") as target:
        for replica in (source, target):
            replica.commit_from_log(log[179].last_lsn)
            replica.run(log[180:])
        assert target.durable.digest() == source.durable.digest() == plain_digest(tmp_path / "plain", log)
        assert target.durable.epoch_at(summary.lsn) == 3


def test_an_empty_replica_can_be_copied(tmp_path: Path) -> None:
    with replica_at(tmp_path / "source") as source, opened(tmp_path / "target") as store:
        chunks, summary = source.copy()
        assert (summary.lsn, summary.epoch_at_lsn, summary.configuration_lsn) == (0, 0, 0)
        target = recovered(store, install(received(store, chunks), summary))
        assert target.found == (EPOCH, "", 1, 0, 0, [], [(0, FIRST_CONFIGURATION)])
        assert target.durable.digest() == source.durable.digest()
        log = random_log(3, 30)
        target.run(log)
        assert target.durable.digest() == plain_digest(tmp_path / "plain", log)


def test_the_configuration_in_force_is_copied_and_later_ones_come_with_the_log(tmp_path: Path) -> None:
    second = FIRST_CONFIGURATION.with_idle(Member("d", 1))
    third = second.promoted(Member("d", 1))
    log = [one_change(1, b"1"), configuration_record(1, 2, second), one_change(3, b"3")]
    with replica_at(tmp_path / "source") as source, opened(tmp_path / "target") as store:
        source.run(log)
        source.append_only([configuration_record(1, 4, third)])
        chunks, summary = source.copy()
        assert (summary.configuration_lsn, summary.configuration) == (2, second)
        target = recovered(store, install(received(store, chunks), summary))
        assert target.found.configurations == [(2, second)]
        target.append_only([configuration_record(1, 4, third)])
        assert recovered(store, target.durable.pointer).found.configurations == [(2, second), (4, third)]


def test_a_copy_of_a_copy_is_the_same(tmp_path: Path) -> None:
    chunks, summary, digest = made(tmp_path / "first")
    with opened(tmp_path / "second") as store:
        second = recovered(store, install(received(store, chunks), summary))
        again, summary_again = second.copy()
        assert (again, summary_again) == (chunks, summary)
    with opened(tmp_path / "third") as store:
        assert recovered(store, install(received(store, again), summary_again)).durable.digest() == digest


def test_a_large_value_has_a_chunk_of_its_own_and_small_ones_do_not_pile_up(tmp_path: Path) -> None:
    log = [one_change(1, b"x" * (5 << 20), actor="b")]
    log += [one_change(lsn, b"", actor=f"{'a' if lsn % 2 else 'c'}{lsn}") for lsn in range(2, 2 * COPY_CHUNK_PAIRS_MAX + 500)]
    with replica_at(tmp_path / "source") as source, opened(tmp_path / "target") as store:
        source.run(log)
        source.checkpoint()
        copy = CopySource(source.durable)
        assert copy.bytes_total_estimate > 5 << 20
        chunks = list(iter(copy.next_chunk, None))
        counts = [len(msgspec.msgpack.decode(chunk.data)) for chunk in chunks]
        large = [count for chunk, count in zip(chunks, counts, strict=True) if len(chunk.data) > COPY_CHUNK_BYTES + 1024]
        assert large == [1]
        assert max(counts) <= COPY_CHUNK_PAIRS_MAX
        assert recovered(store, install(received(store, chunks), copy.summary)).durable.digest() == source.durable.digest()


def test_what_is_written_while_a_copy_goes_on_is_not_in_it(tmp_path: Path) -> None:
    log = random_log(4, 600)
    with replica_at(tmp_path / "source") as source, opened(tmp_path / "target") as store:
        source.run(log[:200])
        digest = source.durable.digest()
        source.checkpoint()
        copy = CopySource(source.durable, chunk_bytes=100)
        target = CopyTarget(store, 1, 1)
        rest = log[200:]
        while (chunk := copy.next_chunk()) is not None:
            target.add(chunk)
            source.run(rest[:8])
            if len(rest) % 3 == 0:
                source.checkpoint()
                source.store._db.state_family.flush()
            rest = rest[8:]
        assert len(rest) < 300, "little was written meanwhile: too little was shown"
        source.store._db.state_family.compact_range(None, None)
        assert copy.summary.lsn == log[199].last_lsn
        assert recovered(store, install(target, copy.summary)).durable.digest() == digest
        assert source.durable.digest()[1] != digest[1]


def test_a_copy_is_of_a_checkpoint_with_everything_that_is_committed(tmp_path: Path) -> None:
    log = random_log(5, 20)
    with replica_at(tmp_path / "source") as source:
        source.run(log[:10])
        with pytest.raises(AssertionError, match="no checkpoint"):
            CopySource(source.durable)
        assert not source.store._views
        source.run(log[10:11], apply_chance=0)
        with pytest.raises(AssertionError, match="is applied"):
            source.checkpoint()
        source.apply_all()
        source.append_only(log[11:])
        chunks, summary = source.copy()
        assert summary.lsn == log[10].last_lsn
        assert all(not key.startswith((keys.META_EPOCH, keys.META_LOG_START)) for c in chunks for key, _ in msgspec.msgpack.decode(c.data))


def test_a_source_lets_go_when_it_is_done_or_closed(tmp_path: Path) -> None:
    with replica_at(tmp_path / "source") as source:
        source.run(random_log(6, 50))
        source.checkpoint()
        done, closed, left = (CopySource(source.durable, chunk_bytes=100) for _ in range(3))
        assert len(source.store._views) == 3
        list(iter(done.next_chunk, None))
        assert done.next_chunk() is None
        closed.next_chunk()
        closed.close()
        with pytest.raises(StorageError, match="closed"):
            closed.next_chunk()
        with pytest.raises(AssertionError, match="not all chunks"):
            _ = closed.summary
        left.next_chunk()
        assert len(source.store._views) == 1
    with pytest.raises(StorageError, match="closed"):
        left.next_chunk()


# -- what is refused


def _flip(chunk: CopyChunk) -> CopyChunk:
    data = bytearray(chunk.data)
    data[len(data) // 3] ^= 4
    return CopyChunk(chunk.number, bytes(data), chunk.checksum)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda chunks: _flip(chunks[3]), "checksum of chunk 4"),
        (lambda chunks: CopyChunk(4, chunks[3].data[:-1], chunks[3].checksum), "checksum of chunk 4"),
        (lambda chunks: chunks[4], "chunk 5 came where 4"),
        (lambda chunks: chunks[2], "chunk 3 came where 4"),
        (lambda chunks: chunks[0], "chunk 1 came where 4"),
        (lambda chunks: CopyChunk(4, chunks[2].data, chunks[2].checksum), "has the key"),
        (lambda chunks: CopyChunk(4, b"", xxh3_64_intdigest(b"")), "wrong form"),
        (lambda _: chunk_of(4, [[b"s", "text"]]), "wrong form"),
        (lambda _: chunk_of(4, {b"s": b"v"}), "wrong form"),
        (lambda _: chunk_of(4, [[b"z", b"v"], [b"y", b"v"]]), "has the key"),
        (lambda _: chunk_of(4, [[b"sz", b"v"], [b"sy", b"v"]]), "has the key"),
        (lambda _: chunk_of(4, [[b"sz", b"v"], [b"sz", b"v"]]), "has the key"),
    ],
)
def test_a_chunk_that_is_not_the_next_one_as_it_was_sent_is_refused_and_changes_nothing(
    tmp_path: Path, wrong: Callable[[list[CopyChunk]], CopyChunk], words: str
) -> None:
    chunks, summary, digest = made(tmp_path / "source")
    with opened(tmp_path / "target") as store:
        target = received(store, chunks[:3])
        before = everything(store)
        with pytest.raises(CorruptLogError, match=f"copy of partition 1: .*{words}"):
            target.add(wrong(chunks))
        assert (target.chunks, target.bytes) == (3, sum(len(chunk.data) for chunk in chunks[:3]))
        assert everything(store) == before
        for chunk in chunks[3:]:
            target.add(chunk)
        assert recovered(store, install(target, summary)).durable.digest() == digest


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\xff" * 8 + b"identity",
        b"a",
        keys.META,
        keys.META_EPOCH,
        keys.META_LOG_START,
        keys.META + b"anything",
        keys.META_APPLIED + b"x",
        keys.EXPIRY,
        keys.EXPIRY + b"\0" * 8,
        keys.EXPIRY + b"\0" * 8 + keys.META_EPOCH,
        keys.EXPIRY + b"\0" * 8 + b"s",
    ],
)
def test_a_key_that_no_copy_holds_is_refused(tmp_path: Path, key: bytes) -> None:
    with opened(tmp_path / "target") as store:
        target = CopyTarget(store, 1, 1)
        with pytest.raises(CorruptLogError, match="has the key"):
            target.add(chunk_of(1, [[key, b"v"]]))
        assert everything(store) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(st.binary(max_size=14) | st.sampled_from([b"mepoch", b"s", b"k", b"c"]), st.binary(max_size=9)), max_size=6)
)
def test_whatever_a_peer_sends_stays_under_the_prefix_of_its_own_generation(target_store: Store, pairs: list[tuple[bytes, bytes]]) -> None:
    before = everything_but_its_number(target_store)
    target = CopyTarget(target_store, 1, 1)
    with contextlib.suppress(CorruptLogError):
        target.add(chunk_of(1, pairs))
        assert all(key[:1] in (b"s", b"k", b"c", b"x", b"m") for key, _ in pairs)
    own = (keys.replica_prefix(1, target.generation), keys.copying_key(1, target.generation))
    after = everything_but_its_number(target_store)
    assert [pair for pair in after if not pair[0].startswith(own)] == before
    abandon(target)
    assert everything_but_its_number(target_store) == before


@pytest.fixture
def target_store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "target") as store:
        create(store, ReplicaPointer(1, 1, 1, "active"))
        create(store, ReplicaPointer(2, 1, 1, "active"))
        yield store


@pytest.mark.parametrize("missing", ["first", "middle", "last", "summary of another", "position", "configuration", "counts"])
def test_a_copy_that_is_not_whole_is_never_installed(tmp_path: Path, missing: str) -> None:
    chunks, summary, _ = made(tmp_path / "source")
    _, other_summary, _ = made(tmp_path / "other", seed=9)
    change = msgspec.structs.replace
    if missing in ("first", "middle", "last"):
        del chunks[{"first": 0, "middle": 3, "last": -1}[missing]]
        chunks = [CopyChunk(number, chunk.data, chunk.checksum) for number, chunk in enumerate(chunks, 1)]
    elif missing == "summary of another":
        summary = change(other_summary, chunks=summary.chunks)
    elif missing == "position":
        summary = change(summary, lsn=summary.lsn + 1)
    elif missing == "configuration":
        summary = change(summary, configuration=Configuration(1, (Member("evil", 1),)))
    else:
        summary = change(summary, pairs=summary.pairs + 1)
    with replica_at(tmp_path / "target") as replica:
        replica.run(random_log(8, 5))
        before = replica.durable.digest()
        target = received(replica.store, chunks)
        with pytest.raises(CorruptLogError, match="copy of partition 1"):
            install(target, summary)
        abandon(target)
        pairs = everything(replica.store)
    with replica_at(tmp_path / "target") as replica:
        assert replica.durable.pointer.generation == 1
        assert replica.durable.digest() == before
        assert everything(replica.store) == pairs


def test_a_copy_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "target") as store:
        chunk = chunk_of(1, [[keys.state_key("A\0a"), b"v"]])
        target = received(store, [chunk])
        summary = CopySummary(1, 1, len(chunk.data), xxh3_128_hexdigest(chunk.data), 5, 1, FIRST_CONFIGURATION, 0)
        with pytest.raises(CorruptLogError, match="position 5"):
            install(target, summary)


# -- half-built, abandoned, replaced


def test_a_half_built_copy_is_discarded_by_a_restart(tmp_path: Path) -> None:
    chunks, summary, digest = made(tmp_path / "source")
    for taken in (0, 1, 7, len(chunks)):
        with replica_at(tmp_path / "target") as replica:
            own = everything(replica.store)
            target = received(replica.store, chunks[:taken])
            assert (len(everything(replica.store)) > len(own)) == (taken > 0)
            assert target.generation == 2
        with replica_at(tmp_path / "target") as replica:
            assert everything(replica.store) == own
            assert replica.durable.pointer.generation == 1
            assert list(replica.store.scan(keys.COPYING_PREFIX, keys.after(keys.COPYING_PREFIX))) == []
    with replica_at(tmp_path / "target") as replica:
        pointer = install(received(replica.store, chunks), summary)
        assert pointer.generation > 1
    with replica_at(tmp_path / "target") as replica:
        assert replica.durable.pointer == pointer
        assert replica.durable.digest() == digest


def test_an_install_whose_sync_was_cut_off_is_all_there_or_not_at_all(tmp_path: Path) -> None:
    chunks, summary, digest = made(tmp_path / "source", records=30)
    with replica_at(tmp_path / "running") as replica:
        replica.run(random_log(1, 4))
        old = replica.durable.digest()
        replica.store.sync_now()
        begin = wal_files.end(tmp_path / "running")
        install(received(replica.store, chunks), summary)
        replica.store.sync_now()
        crash(tmp_path / "running", tmp_path / "crashed")
    rng, outcomes = random.Random(1), []
    end = wal_files.end(tmp_path / "crashed")
    for size in [*sorted(rng.sample(range(begin, end), 12)), end - 1, end]:
        log = crash(tmp_path / "crashed", tmp_path / "torn")
        wal_files.tear(log, size)
        with replica_at(tmp_path / "torn") as replica:
            is_installed = replica.durable.pointer.generation > 1
            assert replica.durable.digest() == (digest if is_installed else old)
            prefixes = {key[:8] for key, _ in everything(replica.store)}
            assert prefixes == {replica.durable.prefix}
            outcomes.append(is_installed)
    assert outcomes == [False] * 13 + [True]


def test_an_abandoned_copy_leaves_nothing_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    chunks, summary, digest = made(tmp_path / "source")
    with opened(tmp_path / "target") as store:
        first = received(store, chunks[:5])
        second = CopyTarget(store, 1, 1)  # before the batch that drops the first is written
        assert second.generation > first.generation
        second.add(chunks[0])
        abandon(first)
        abandon(first)
        with pytest.raises(AssertionError):
            first.add(chunks[5])
        assert {key[:8] for key, _ in everything(store)} == {keys.replica_prefix(1, second.generation)}
        for chunk in chunks[1:]:
            second.add(chunk)
        assert recovered(store, install(second, summary)).durable.digest() == digest
        with pytest.raises(AssertionError):
            install(second, summary)


def test_a_voter_that_lags_goes_on_voting_until_the_copy_takes_its_place(tmp_path: Path) -> None:
    log = random_log(11, 100)
    with replica_at(tmp_path / "source") as source, replica_at(tmp_path / "target") as lagging:
        source.run(log)
        lagging.run(log[:20])
        lagging.append_only(log[20:25])
        chunks, summary = source.copy()
        target = received(lagging.store, chunks)
        batch = lagging.store.batch()
        lagging.durable.save_epoch(batch, EPOCH + 1, "c")
        lagging.store.write(batch)
        lagging.commit_from_log(log[24].last_lsn)
        lagging.apply_all()
        assert lagging.durable.digest() == plain_digest(tmp_path / "plain", log[:25])
        pointer = install(target, summary, EPOCH + 1, "c")
        assert {key[:8] for key, _ in everything(lagging.store)} == {keys.replica_prefix(1, pointer.generation)}
        caught_up = recovered(lagging.store, pointer)
        assert caught_up.found[:2] == (EPOCH + 1, "c")
        assert caught_up.durable.digest() == source.durable.digest()


def test_a_successor_takes_the_place_of_a_retired_replica_and_its_data_goes_then(tmp_path: Path) -> None:
    chunks, summary, digest = made(tmp_path / "source")
    with replica_at(tmp_path / "target") as replica:
        replica.run(random_log(12, 300))  # more than the copy has: it lost its right to it
        store = replica.store
        batch = store.batch()
        store.put_pointer(batch, ReplicaPointer(1, 3, 1, "retired"))
        store.write(batch)
        for incarnation in (1, 2, 3):
            with pytest.raises(InvariantViolation, match="I6"):
                CopyTarget(store, 1, incarnation)
        target = received(store, chunks, 4)
        assert any(key.startswith(keys.replica_prefix(1, 1)) for key, _ in everything(store))
        pointer = install(target, summary, epoch=2)
        assert pointer == ReplicaPointer(1, 4, target.generation, "active")
        assert {key[:8] for key, _ in everything(store)} == {keys.replica_prefix(1, target.generation)}
        assert recovered(store, pointer).durable.digest() == digest


@pytest.mark.parametrize("broken", ["I1 epoch", "I1 copy", "I2", "I3", "I6"])
def test_a_copy_takes_back_nothing_that_the_same_replica_has_promised(tmp_path: Path, broken: str) -> None:
    log = random_log(13, 60)
    with replica_at(tmp_path / "source") as source, replica_at(tmp_path / "target") as replica:
        source.run(log[:40])
        chunks, summary = source.copy()
        target = received(replica.store, chunks)
        epoch = EPOCH
        if broken == "I1 epoch":
            epoch = EPOCH - 1
        elif broken == "I1 copy":
            summary = msgspec.structs.replace(summary, epoch_at_lsn=EPOCH + 1)
        elif broken == "I2":
            replica.append_only(log[:45])  # acknowledged, and it fits: the copy would lose what is behind it
        elif broken == "I3":
            replica.run(log)
        else:
            batch = replica.store.batch()
            replica.store.put_pointer(batch, ReplicaPointer(1, 2, 1, "active"))
            replica.store.write(batch)
        before = everything(replica.store)
        with pytest.raises(InvariantViolation, match=broken[:2]):
            install(target, summary, epoch)
        assert everything(replica.store) == before


def test_a_copy_may_replace_a_log_of_another_primary_that_was_never_committed(tmp_path: Path) -> None:
    log = random_log(14, 60, epochs=(30,))
    with replica_at(tmp_path / "source") as source, replica_at(tmp_path / "target") as replica:
        source.run(log)
        chunks, summary = source.copy()
        replica.run(log[:20])
        replica.append_only([one_change(lsn, b"other") for lsn in range(log[20].first_lsn, log[-1].last_lsn + 20)])
        pointer = install(received(replica.store, chunks), summary)
        assert recovered(replica.store, pointer).durable.digest() == source.durable.digest()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    records=st.integers(0, 90),
    more=st.integers(0, 30),
    chance=st.floats(0, 1),
    chunk_bytes=st.integers(1, 9000),
)
def test_any_replica_can_be_copied_and_both_go_on_alike(
    tmp_path_factory: pytest.TempPathFactory, seed: int, records: int, more: int, chance: float, chunk_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("copy")
    log = random_log(seed, records + more, value_bytes=seed % 700, epochs=(5, 50))
    with replica_at(path / "source") as source:
        source.run(log[:records], apply_chance=chance, rng=random.Random(seed))
        source.apply_all()
    with replica_at(path / "source") as source, opened(path / "target") as store:
        source.checkpoint()
        copy = CopySource(source.durable, chunk_bytes)
        target = CopyTarget(store, 1, 1)
        while (chunk := copy.next_chunk()) is not None:
            target.add(chunk)
        pointer = install(target, copy.summary)
        replicas: list[OpenReplica] = [source, recovered(store, pointer)]
        for replica in replicas:
            replica.run(log[records:])
        assert replicas[0].durable.digest() == replicas[1].durable.digest() == plain_digest(path / "plain", log)
