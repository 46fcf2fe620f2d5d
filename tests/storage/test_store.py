"""The store on real files: whose it is, what it keeps, and what it says when the disk does not (I12)."""

import contextlib
import shutil
import subprocess
import threading

import pytest

from actorgrid.errors import CorruptLogError, DiskFullError, SettingsError, StorageError
from actorgrid.storage.store import Store, StoreIdentity

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
    (StoreIdentity("grid-1", "host-1", 8, format_version=2), ["format"]),
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


# -- damaged files


def write_log_files(path):
    """A store at `path` as a crash leaves it: everything synced is in the write-ahead log, which is returned."""
    running = path.with_name("running")
    with opened(running) as store:
        for number in range(50):
            put(store, [(b"key%d" % number, b"v" * 300)])
        shutil.copytree(running, path)  # a clean close would write tables
    return max(path.glob("*.log"), key=lambda file: file.stat().st_size)


def test_a_flipped_byte_in_synced_data_is_an_error_and_not_a_silent_loss(tmp_path):
    file = write_log_files(tmp_path / "s")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(CorruptLogError), opened(tmp_path / "s"):
        pass


def test_a_torn_tail_is_accepted_and_everything_before_it_is_there(tmp_path):
    file = write_log_files(tmp_path / "s")
    file.write_bytes(file.read_bytes()[:-100])
    with opened(tmp_path / "s") as store:
        assert all(store.get(b"key%d" % number) == b"v" * 300 for number in range(49))
        assert store.get(b"key49") is None


# -- a disk that fails


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, check=False)
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
