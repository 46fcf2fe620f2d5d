"""Files that were cut, changed, lost or put back: refused, or told by a position lower than peers remember, never served (I6, I12)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rocksdict import Rdict
from storage_harness import EPOCH, IDENTITY, crash, create, one_change, opened, plain_digest, promise, random_log, recovered, replica_at

from actorgrid.errors import CorruptLogError, StorageError
from actorgrid.storage import keys
from actorgrid.storage.database import LOG_FAMILY, _log_options, _options
from actorgrid.storage.store import Store
from tests import wal_files

TYPE_BYTE = 6  #: in the header of a record of RocksDB's own logs
REUSED = 4  #: the bit that makes a full record (1) one of a reused file (5)


def _written(path: Path, batches: int) -> list[int]:
    """A store that runs, with `batches` synced batches of one record each; where the write-ahead log ended after each."""
    ends = []
    with opened(path) as store:
        create(store)
        replica = recovered(store)
        for lsn in range(1, batches + 1):
            batch = store.batch()
            replica.append(batch, one_change(lsn, b"v" * 40))
            assert store.advance(batch) == lsn + 1  # the promise of the epoch was the first
            store.write(batch)
            store.sync_now()
            ends.append(wal_files.end(path))
        crash(path, path.with_name("crashed"))
    return ends


def test_of_a_torn_log_everything_up_to_the_last_whole_batch_is_there(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    ends = _written(tmp_path / "running", 20)
    rng = random.Random(request.config.getoption("--seed"))
    sizes = {ends[-1], ends[-1] - 1, ends[7], ends[7] + 1, *rng.sample(range(ends[0], ends[-1]), 24)}
    for size in sorted(sizes):
        path = tmp_path / "torn"
        log = crash(tmp_path / "crashed", path)
        wal_files.tear(log, size)
        with replica_at(path) as replica:
            whole = sum(end <= size for end in ends)
            assert replica.found.last_lsn == whole
            assert replica.store.position == whole + 1
            assert replica.found[:2] == (EPOCH, "host")
            # And it goes on from there.
            replica.append_only([one_change(whole + 1, b"again")])
        with replica_at(path) as replica:
            assert replica.found.last_lsn == whole + 1
            assert replica.store.position == whole + 2


def test_no_flipped_bit_of_the_write_ahead_log_goes_unnoticed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Refused; or, in the last frame, where it looks like a torn tail, seen by peers: a store that opens with less has a lower position."""
    _written(tmp_path / "running", 20)
    rng = random.Random(request.config.getoption("--seed"))
    refused = 0
    for _ in range(80):
        crash(tmp_path / "crashed", tmp_path / "flipped")
        wal_files.flip(tmp_path / "flipped", rng)
        try:
            store = Store(tmp_path / "flipped", IDENTITY)
        except CorruptLogError:
            refused += 1
            continue
        try:
            assert store.position == 20
            assert recovered(store).found.last_lsn == 19
        finally:
            store.close()
    assert refused > 60


def test_a_damaged_log_is_taken_up_to_the_damage_where_peers_know_better(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    _written(tmp_path / "running", 20)
    rng = random.Random(request.config.getoption("--seed"))
    for _ in range(8):
        crash(tmp_path / "crashed", tmp_path / "flipped")
        wal_files.flip(tmp_path / "flipped", rng, but_the_last=1)
        store = Store(tmp_path / "flipped", IDENTITY, salvage=True)
        found = store.position
        assert found < 20
        store.close()
        with opened(tmp_path / "flipped") as store:  # and what was behind the damage never comes back
            assert store.position == found


@pytest.mark.parametrize("where", ["000*.log", "MANIFEST-*"])
def test_a_flipped_bit_that_rocksdb_would_never_return_from_is_refused(tmp_path: Path, where: str) -> None:
    """Its reader of logs and manifests loops on records of reused files; should a later one not, `files.py` can go."""
    with _older(tmp_path / "running") as older:
        for number in range(5):
            older[b"k%d" % number] = b"v"
        shutil.copytree(tmp_path / "running", tmp_path / "flipped")
    file = max((tmp_path / "flipped").glob(where), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    second = 7 + int.from_bytes(data[4:6], "little")
    assert data[second + TYPE_BYTE] == 1
    data[second + TYPE_BYTE] ^= REUSED
    file.write_bytes(data)
    script = (
        "import sys, pathlib; from actorgrid.storage.store import Store, StoreIdentity\n"
        "try: Store(pathlib.Path(sys.argv[1]), StoreIdentity('grid', 'host', 8))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # In a process that can be killed: a RocksDB that hangs holds the interpreter lock, and no time-out of a test ends it.
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "flipped")], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("CorruptLogError")
    assert f"record at byte {second} of {file.name}" in done.stdout


def test_the_look_at_the_files_finds_its_way_over_the_ends_of_blocks(tmp_path: Path) -> None:
    block, type_of_reused = 32 * 1024, b"\x05"  # a look at the wrong place would see that

    def size() -> int:
        return max(file.stat().st_size for file in (tmp_path / "running").glob("*.log"))

    def write(store: Rdict, value_bytes: int) -> None:
        store[b"k"] = type_of_reused * value_bytes

    with _older(tmp_path / "running") as store:
        write(store, 1000)
        before = size()
        write(store, 1000)
        beside = size() - before - 1000
        for left in range(20):
            write(store, 3 * block // 2)
            if block - size() % block < 4000:
                write(store, 5000)
            while (room := block - size() % block) > 12_000:
                write(store, 8000)
            write(store, room - beside - left)
            assert -size() % block == left
        write(store, 3)
        shutil.copytree(tmp_path / "running", tmp_path / "crashed")
    with opened(tmp_path / "crashed") as opened_store:
        assert opened_store.get(b"k") == type_of_reused * 3


def test_a_store_of_the_format_before_is_taken_over_with_what_is_in_its_own_log(tmp_path: Path) -> None:
    with _older(tmp_path / "running") as older:
        older[b"k"] = b"v"
        older[keys.IDENTITY_KEY] = msgspec.json.encode(msgspec.structs.replace(IDENTITY, format_version=2))
        older[keys.STORE_ID_KEY] = b"5" * 32
        shutil.copytree(tmp_path / "running", tmp_path / "crashed")
    for _ in range(2):
        with opened(tmp_path / "crashed") as store:
            assert store.get(b"k") == b"v"
            assert store.store_id == "5" * 32
            assert not store.is_new
            crash(tmp_path / "crashed", tmp_path / "later")
    for path in wal_files.files(tmp_path / "later"):  # an earlier release knows nothing of them
        path.unlink()
    found = Rdict(str(tmp_path / "later"), _options(salvage=False), column_families={LOG_FAMILY: _log_options()})
    assert msgspec.json.decode(found[keys.IDENTITY_KEY])["format_version"] == 3
    found.close()


@contextlib.contextmanager
def _older(path: Path) -> Iterator[Rdict]:
    """A database of a release that left the write-ahead log to RocksDB, while it runs."""
    path.mkdir(parents=True)
    found = Rdict(str(path), _options(salvage=False), column_families={LOG_FAMILY: _log_options()})
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("zeros", [1, 6, 7, 100, 40_000, 50_000_000])
def test_a_log_that_ends_in_zeros_is_taken_up_to_them(tmp_path: Path, zeros: int) -> None:
    _written(tmp_path / "running", 10)
    log = crash(tmp_path / "crashed", tmp_path / "torn")
    os.truncate(log, log.stat().st_size + zeros)
    with replica_at(tmp_path / "torn") as replica:
        assert (replica.found.last_lsn, replica.store.position) == (10, 11)


def _in_tables(path: Path, count: int = 300) -> tuple[int, str]:
    """A closed store whose replica lies in tables; its digest."""
    with replica_at(path) as replica:
        replica.run(random_log(1, count))
        digest = replica.durable.digest()
        replica.store._db.state_family.flush()
        replica.store._db.log_family.flush()
    return digest


def test_no_flipped_bit_of_a_table_is_served(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(request.config.getoption("--seed"))
    digest = _in_tables(tmp_path / "store")
    refused = 0
    for _ in range(60):
        crash(tmp_path / "store", tmp_path / "flipped")
        table = rng.choice(sorted((tmp_path / "flipped").glob("*.sst")))
        data = bytearray(table.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        table.write_bytes(data)
        try:
            with replica_at(tmp_path / "flipped") as replica:
                assert replica.durable.digest() == digest  # what was changed was never read
                replica.durable.read_log(replica.found.log_start_lsn, 1 << 30)
        except CorruptLogError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("victim", ["*.sst", "MANIFEST-*", "CURRENT"])
def test_a_missing_file_is_refused(tmp_path: Path, victim: str) -> None:
    _in_tables(tmp_path / "store")
    max((tmp_path / "store").glob(victim), key=lambda file: file.stat().st_size).unlink()
    with pytest.raises(CorruptLogError), replica_at(tmp_path / "store"):
        pass


def test_a_deleted_write_ahead_log_is_refused_and_shows_as_a_lower_position(tmp_path: Path) -> None:
    with replica_at(tmp_path / "running") as replica:
        replica.run(random_log(2, 30))
        name, before = replica.store.store_id, replica.store.position
    with replica_at(tmp_path / "running") as replica:  # what was before is in tables now
        assert replica.store.position == before
        log = random_log(2, 60)[30:]
        replica.run(log)
        after = replica.store.position
        crash(tmp_path / "running", tmp_path / "crashed")
    wal_files.delete(tmp_path / "crashed")
    with pytest.raises(CorruptLogError, match="the write-ahead log is gone"):
        Store(tmp_path / "crashed", IDENTITY)
    store = Store(tmp_path / "crashed", IDENTITY, salvage=True)
    assert (store.store_id, store.position) == (name, before)
    assert before < after
    assert recovered(store).found.last_lsn == log[0].first_lsn - 1
    store.close()


@pytest.mark.parametrize("family", ["state_family", "log_family"])
def test_tables_of_two_moments_without_the_log_between_them_are_refused(tmp_path: Path, family: str) -> None:
    with replica_at(tmp_path / "running") as replica:
        replica.run(random_log(3, 30))
    with replica_at(tmp_path / "running") as replica:
        replica.append_only(random_log(3, 60)[30:])  # promised, not committed: the state does not tell that the log is short
        replica.store._db._buffer_late()
        getattr(replica.store._db, family).flush()
        crash(tmp_path / "running", tmp_path / "crashed")
    wal_files.delete(tmp_path / "crashed")
    for salvage in (False, True):  # a mixture of two moments: not even peers could say what is missing
        with pytest.raises(CorruptLogError):
            Store(tmp_path / "crashed", IDENTITY, salvage=salvage)


def test_an_old_copy_of_a_store_has_its_name_and_a_lower_position(tmp_path: Path) -> None:
    with replica_at(tmp_path / "store") as replica:
        replica.run(random_log(4, 30))
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    with replica_at(tmp_path / "store") as replica:
        replica.run(random_log(4, 40)[30:])
        name, position = replica.store.store_id, replica.store.position
    with replica_at(tmp_path / "old") as replica:
        assert replica.store.store_id == name
        assert replica.store.position == position - 10


def test_a_store_that_failed_while_it_was_read_can_be_closed_and_opened_again(tmp_path: Path) -> None:
    """The error holds the frames it was raised in; an iterator among them would keep the database open."""
    _in_tables(tmp_path / "store")
    table = max((tmp_path / "store").glob("*.sst"), key=lambda file: file.stat().st_size)
    whole = table.read_bytes()
    data = bytearray(whole)
    data[200] ^= 1
    table.write_bytes(data)
    errors = []
    with opened(tmp_path / "store") as store:
        view = store.view()
        for read in (lambda: list(store.scan(b"", b"\xff" * 20)), lambda: list(store.scan_log(b"", b"\xff" * 20)), lambda: view.get(b"a")):
            try:
                read()
            except StorageError as error:
                errors.append(error)
        assert errors
        assert store.has_failed
    table.write_bytes(whole)
    with replica_at(tmp_path / "store"):
        pass


def test_what_was_promised_before_a_crash_is_there_after_it(tmp_path: Path) -> None:
    """Killed without warning in the middle of a batch: each synced batch is whole, and positions tell which they are."""
    log = random_log(5, 40)
    with replica_at(tmp_path / "running") as replica:
        for index, record in enumerate(log):
            replica.run([record], apply_chance=0.5, rng=random.Random(index))
            if index % 10 == 5:
                promise(replica.store, epoch=EPOCH + index, voted_for=f"h{index}")
                replica.store.sync_now()
            if index % 8 == 0:
                crash(tmp_path / "running", tmp_path / "crashed")
                with replica_at(tmp_path / "crashed") as after:
                    assert after.store.position == replica.store.position
                    assert after.found.last_lsn == record.last_lsn
                    after.commit_from_log(record.last_lsn)
                    after.apply_all()
                    assert after.durable.digest() == plain_digest(tmp_path / "plain", log[: index + 1])
