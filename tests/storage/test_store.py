"""The store on real files: whose it is, what it keeps, and what it says when the disk does not (I12)."""

import contextlib
import shutil
import subprocess
import threading

import pytest

from actorgrid.errors import CorruptLogError, DiskFullError, SettingsError, StorageError
from actorgrid.storage import keys
from actorgrid.storage.store import PeerMark, ReplicaPointer, Store, StoreIdentity

IDENTITY = StoreIdentity("grid-1", "host-1", 8)


@contextlib.contextmanager
def opened(path, identity=IDENTITY):
    store = Store(path, identity)
    try:
        yield store
    finally:
        store.close()


def put(store, pairs, log=()):
    batch = store.batch()
    for key, value in pairs:
        batch.put(key, value)
    for key, value in log:
        batch.append_log(key, value)
    store.write(batch)
    store.sync_now()


def test_a_store_gives_back_what_it_was_given_after_it_was_opened_again(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(b"a", b"1"), (b"b", b"2")], [(b"l1", b"r")])
        batch = store.batch()
        batch.delete(b"a")
        store.write(batch)
    with opened(tmp_path / "s") as store:
        assert (store.get(b"a"), store.get(b"b"), store.get(b"l1")) == (None, b"2", None)
        assert list(store.scan_log(b"", b"\xff")) == [(b"l1", b"r")]


@pytest.mark.parametrize(("identity", "words"), [
    (StoreIdentity("grid-2", "host-1", 8), ["grid-1", "grid-2"]),
    (StoreIdentity("grid-1", "host-2", 8), ["host-1", "host-2"]),
    (StoreIdentity("grid-1", "host-1", 16), ["partition count", "8", "16"]),
    (StoreIdentity("grid-1", "host-1", 8, format_version=4), ["format", "3", "4"]),
    (StoreIdentity("grid-2", "host-2", 16), ["grid-1", "host-2", "16"]),
])  # fmt: skip
def test_data_of_another_grid_host_or_partition_count_is_refused(tmp_path, identity, words):
    with opened(tmp_path / "s"):
        pass
    with pytest.raises(SettingsError) as refused, opened(tmp_path / "s", identity):
        pass
    for word in words:
        assert word in str(refused.value)
    with opened(tmp_path / "s"):
        pass


def test_data_of_the_first_storage_format_is_refused_by_its_number(tmp_path):
    with opened(tmp_path / "s") as store:
        old = b'{"cluster_id":"grid-1","host":"host-1","partition_count":8,"hosts":["host-1"],"format_version":1}'
        put(store, [(keys.IDENTITY_KEY, old)])
    with pytest.raises(SettingsError, match="holds storage format 1, this host was started for 3"), opened(tmp_path / "s"):
        pass


def test_a_store_in_use_is_refused(tmp_path):
    with opened(tmp_path / "s"), pytest.raises(SettingsError, match="in use"), opened(tmp_path / "s"):
        pass


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "s").write_text("x")
    with pytest.raises(SettingsError, match="cannot be used"), opened(tmp_path / "s"):
        pass


def test_scans_keep_to_their_bounds_in_both_directions(tmp_path):
    with opened(tmp_path / "s") as store:
        names = [bytes([i]) for i in range(10, 20)]
        put(store, [(name, name) for name in names])
        for start, stop in [
            (b"\x0b", b"\x0e"),
            (b"\x0a", b"\x14"),
            (b"\x0c", b"\x0c"),
            (b"\x0b\x00", b"\x0d\x01"),
            (b"", b"\x0b"),
            (b"\x12", b"\xff"),
        ]:
            inside = [(name, name) for name in names if start <= name < stop]
            assert list(store.scan(start, stop)) == inside
            assert list(store.scan(start, stop, reverse=True)) == inside[::-1]


def test_a_scan_is_the_state_of_its_call_whatever_is_written_meanwhile(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(b"a", b"1"), (b"b", b"1")])
        scan = store.scan(b"a", b"z")
        put(store, [(b"a", b"2"), (b"c", b"2")])
        assert list(scan) == [(b"a", b"1"), (b"b", b"1")]


def test_truncating_the_log_drops_that_range_alone(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(b"\x02", b"state")], [(bytes([i]), b"r") for i in range(6)])
        batch = store.batch()
        batch.truncate_log(b"\x01", b"\x04")
        store.write(batch)
        assert [key for key, _ in store.scan_log(b"", b"\xff")] == [b"\x00", b"\x04", b"\x05"]
        assert store.get(b"\x02") == b"state"


def test_sync_reports_from_its_own_thread(tmp_path):
    with opened(tmp_path / "s") as store:
        done, heard = threading.Event(), []
        store.sync(lambda error: (heard.append((error, threading.current_thread())), done.set()))
        assert done.wait(5)
        assert heard[0][0] is None
        assert heard[0][1] is not threading.current_thread()


def test_a_view_is_the_state_of_its_call_through_writes_and_compactions(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(b"k%03d" % number, b"old") for number in range(500)])
        view = store.view()
        for round_ in range(3):
            batch = store.batch()
            batch.delete_range(b"k100", b"k200")
            for number in range(300, 600):
                batch.put(b"k%03d" % number, b"new %d" % round_)
            store.write(batch)
            store._db.state_family.flush()
        store._db.state_family.compact_range(None, None)
        expected = [(b"k%03d" % number, b"old") for number in range(500)]
        assert list(view.scan(b"k", b"l")) == expected
        assert list(view.scan(b"k150", b"k160")) == expected[150:160]
        assert (view.get(b"k150"), view.get(b"k599"), view.get(b"zzz")) == (b"old", None, None)
        view.close()
        view.close()
        with pytest.raises(StorageError, match="closed"):
            view.get(b"k150")


def test_a_store_can_be_closed_and_opened_again_while_somebody_holds_a_view(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(b"a", b"1")])
        view = store.view()
        half = view.scan(b"", b"z")
        next(half)
    with opened(tmp_path / "s") as store:
        assert store.get(b"a") == b"1"
    with pytest.raises(StorageError, match="closed"):
        next(half)


# -- whose it is, and how far


def test_a_store_has_a_name_of_its_own_for_good(tmp_path):
    with opened(tmp_path / "s") as store, opened(tmp_path / "t") as other:
        assert (store.is_new, other.is_new) == (True, True)
        assert len(store.store_id) == 32
        assert store.store_id != other.store_id
        name = store.store_id
    with opened(tmp_path / "s") as store:
        assert (store.store_id, store.is_new) == (name, False)
    shutil.rmtree(tmp_path / "s")
    with opened(tmp_path / "s") as store:
        assert store.is_new
        assert store.store_id != name


def test_a_store_that_went_back_in_time_can_become_another_one(tmp_path):
    with opened(tmp_path / "s") as store:
        name = store.store_id
        batch = store.batch()
        store.reborn(batch, 41)
        store.write(batch)
        assert store.store_id != name
        name = store.store_id
    with opened(tmp_path / "s") as store:
        assert (store.store_id, store.is_new) == (name, False)
        assert store.next_incarnation() == 42


def test_the_position_counts_and_is_durable_with_the_batch_it_came_with(tmp_path):
    with opened(tmp_path / "s") as store:
        assert store.position == 0
        for number in (1, 2, 3):
            batch = store.batch()
            batch.put(b"n", b"%d" % number)
            assert store.advance(batch) == number
            store.write(batch)
        store.advance(store.batch())  # and that one is never written
    for _ in range(2):
        with opened(tmp_path / "s") as store:
            assert store.position == 3
            assert store.get(b"n") == b"3"


def test_each_life_has_the_next_incarnation_and_it_can_be_raised_and_never_lowered(tmp_path):
    for life in (1, 2):
        with opened(tmp_path / "s") as store:
            assert store.next_incarnation() == life
    with opened(tmp_path / "s") as store:
        batch = store.batch()
        store.raise_incarnation(batch, 17)
        store.write(batch)
        for lower in (16, 17):
            with pytest.raises(AssertionError):
                store.raise_incarnation(store.batch(), lower)
    with opened(tmp_path / "s") as store:
        assert store.next_incarnation() == 18


def test_marks_of_peers_the_bootstrap_plan_and_pointers_come_back(tmp_path):
    marks = {"a": PeerMark(1, 2**63, "id"), "ähm": PeerMark(0, 0, ""), "b/c": PeerMark(2**40, 5, "x")}
    pointers = [ReplicaPointer(0, 1, 1, "active"), ReplicaPointer(7, 2, 3, "retired"), ReplicaPointer(65_536, 9, 12, "building")]
    with opened(tmp_path / "s") as store:
        assert (store.peer_marks(), store.bootstrap_plan(), store.replica_pointers()) == ({}, None, [])
        batch = store.batch()
        for host, mark in marks.items():
            store.put_peer_mark(batch, host, mark)
        for pointer in (ReplicaPointer(7, 1, 1, "active"), *reversed(pointers)):
            store.put_pointer(batch, pointer)
        store.put_bootstrap_plan(batch, b"plan")
        store.write(batch)
        with pytest.raises(AssertionError, match="no state"):
            store.put_pointer(store.batch(), ReplicaPointer(1, 1, 1, "lost"))
    with opened(tmp_path / "s") as store:
        assert store.peer_marks() == marks
        assert store.bootstrap_plan() == b"plan"
        assert store.replica_pointers() == pointers
        assert [store.replica_pointer(partition) for partition in (0, 1, 7)] == [pointers[0], None, pointers[1]]


def test_what_is_no_pointer_is_refused_as_corrupt(tmp_path):
    with opened(tmp_path / "s") as store:
        put(store, [(keys.pointer_key(3), b"junk")])
        with pytest.raises(CorruptLogError, match="replica/"):
            store.replica_pointers()


def test_dropping_a_generation_drops_all_of_it_and_nothing_else(tmp_path):
    with opened(tmp_path / "s") as store:
        prefixes = [keys.replica_prefix(*which) for which in ((0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (1, 2**32 - 1))]
        for prefix in prefixes:
            rows = [(prefix + suffix, b"v") for suffix in (b"", b"\0", b"s" * 20, b"\xff" * 30)]
            put(store, rows, rows)
        pairs, log = list(store.scan(b"", b"\xff")), list(store.scan_log(b"", b"\xff"))
        for dropped in (prefixes[2], prefixes[5]):
            batch = store.batch()
            store.drop_generation(batch, int.from_bytes(dropped[:4], "big"), int.from_bytes(dropped[4:], "big"))
            store.write(batch)
            pairs, log = ([pair for pair in rows if not pair[0].startswith(dropped)] for rows in (pairs, log))
            assert (list(store.scan(b"", b"\xff")), list(store.scan_log(b"", b"\xff"))) == (pairs, log)
        assert len(pairs) == 16
    with opened(tmp_path / "s") as store:
        assert list(store.scan(b"", b"\xff")) == pairs


def test_a_generation_is_never_given_out_twice(tmp_path):
    with opened(tmp_path / "s") as store:
        batch = store.batch()
        store.put_pointer(batch, ReplicaPointer(1, 1, 5, "active"))
        store.put_half_built(batch, 1, 8)
        store.write(batch)
        assert [store.new_generation(partition) for partition in (1, 1, 2, 1, 2)] == [9, 10, 1, 11, 2]


# -- a disk that fails


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"NO TEST OF A FULL DISK: tmpfs cannot be mounted here: {mounted.stderr!r}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_use_of_the_store_and_loses_nothing_that_was_synced(small_disk):
    ballast = small_disk / "ballast"
    acknowledged = []
    with opened(small_disk / "s") as store:
        put(store, [(b"before", b"1")])
        ballast.write_bytes(b"x" * (6 << 20))

        def fill():
            for number in range(100):
                put(store, [(b"n%d" % number, bytes(200_000))])
                acknowledged.append(number)

        with pytest.raises(DiskFullError):
            fill()
        ballast.unlink()
        assert store.has_failed
        for call in (lambda: store.get(b"before"), lambda: put(store, [(b"a", b"b")]), store.sync_now, lambda: store.scan(b"a", b"b")):
            with pytest.raises(StorageError):
                call()
        done, heard = threading.Event(), []
        store.sync(lambda error: (heard.append(error), done.set()))
        assert done.wait(5)
        assert isinstance(heard[0], StorageError)
    assert acknowledged
    with opened(small_disk / "s") as store:
        assert store.get(b"before") == b"1"
        assert all(store.get(b"n%d" % number) == bytes(200_000) for number in acknowledged)
        put(store, [(b"after", b"2")])
