"""The write-ahead log alone, and below the database: what was synced is there, in order, once; damage is named and never served."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from actorgrid.errors import CorruptLogError
from actorgrid.storage import wal as module
from actorgrid.storage.database import RocksDatabase
from actorgrid.storage.wal import BLOCK_BYTES, SEGMENT_BYTES, WriteAheadLog

Found = list[tuple[int, bytes]]


def payload(number: int, size: int = 40) -> bytes:
    return random.Random(number).randbytes(size)


def opened(directory: Path, *, durable: int = 0, salvage: bool = False) -> tuple[WriteAheadLog, Found]:
    """The log, ready to be written to, and what was found in it."""
    log = WriteAheadLog(directory, salvage=salvage)
    found = [(number, bytes(data)) for number, data in log.recover(durable, salvage=salvage)]
    log.release(durable)
    log.begin(found[-1][0] + 1 if found else durable + 1)
    return log, found


def write(log: WriteAheadLog, numbers: Iterable[int], *, size: int = 40, together: bool = False) -> None:
    for number in numbers:
        log.append(number, payload(number, size))
        if not together:
            log.sync()
    log.sync()


def crash(log_or_store: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(log_or_store, copy))


def after(directory: Path, *, durable: int = 0, salvage: bool = False) -> Found:
    log, found = opened(directory, durable=durable, salvage=salvage)
    log.close()
    return found


def records(numbers: Iterable[int], size: int = 40) -> Found:
    return [(number, payload(number, size)) for number in numbers]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.config.getoption("--seed"))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    size = 64 * 1024
    monkeypatch.setattr(module, "SEGMENT_BYTES", size)
    return size


# -- what is there


def test_what_was_synced_is_found_and_what_was_not_is_not(tmp_path: Path) -> None:
    log, found = opened(tmp_path / "wal")
    assert log.is_new
    assert found == []
    write(log, range(1, 4))
    write(log, range(4, 9), together=True)
    log.append(9, b"not synced")
    assert after(crash(tmp_path / "wal", tmp_path / "crashed")) == records(range(1, 9))
    log.close()
    assert after(tmp_path / "wal") == [*records(range(1, 9)), (9, b"not synced")]


def test_only_what_tables_lack_is_given(tmp_path: Path) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, range(1, 21), together=True)
    for durable in (0, 1, 13, 19, 20, 21, 30):
        crashed = crash(tmp_path / "wal", tmp_path / "crashed")
        assert after(crashed, durable=durable) == records(range(durable + 1, 21))
        assert after(crashed, durable=durable) == records(range(durable + 1, 21))
    log.close()


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 300_000, SEGMENT_BYTES - 1, SEGMENT_BYTES, 9_000_000])
def test_payloads_of_any_size(tmp_path: Path, size: int) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, [1])
    write(log, range(2, 5), size=size, together=size < SEGMENT_BYTES)
    write(log, [5])
    assert after(crash(tmp_path / "wal", tmp_path / "crashed")) == [*records([1]), *records(range(2, 5), size), *records([5])]
    log.release(5)
    write(log, range(6, 9), size=SEGMENT_BYTES // 2)  # two segments more
    log.close()
    assert {path.stat().st_size for path in (tmp_path / "wal").iterdir()} == {SEGMENT_BYTES}, "one of another size is not kept"


def test_one_life_after_another_goes_on_where_the_last_one_ended(tmp_path: Path, rng: random.Random) -> None:
    last, durable = 0, 0
    for _ in range(30):
        log, found = opened(tmp_path / "wal", durable=durable)
        assert found == records(range(durable + 1, last + 1))
        more = rng.randint(0, 5)
        write(log, range(last + 1, last + 1 + more), together=rng.random() < 0.5)
        last += more
        durable = rng.choice((durable, durable, rng.randint(durable, last)))
        log.release(durable)
        if rng.random() < 0.5:
            log.close()
        else:
            crash(tmp_path / "wal", tmp_path / "next")
            log.close()
            crash(tmp_path / "next", tmp_path / "wal")


@pytest.mark.pure
def test_segments_are_used_again_and_nothing_of_their_last_use_comes_back(tmp_path: Path, small_segments: int, rng: random.Random) -> None:
    log, _ = opened(tmp_path / "wal")
    last = durable = 0
    used = set()
    for step in range(400):
        more = rng.randint(1, 6)
        size = rng.choice((10, 300, 1500))
        for number in range(last + 1, last + 1 + more):
            log.append(number, b"%d " % number * size)
        log.sync()
        last += more
        if rng.random() < 0.3:
            durable = rng.randint(durable, last)
            log.release(durable)
        used.update(path.name for path in (tmp_path / "wal").iterdir())
        if step % 10 == 9:
            found = after(crash(tmp_path / "wal", tmp_path / "crashed"), durable=durable)
            assert [number for number, _ in found] == list(range(durable + 1, last + 1))
            assert all(set(data.split()) == {b"%d" % number} for number, data in found)
    log.close()
    assert len(used) < 40, "segments that are free are used before new ones are made"


# -- what crashes leave


def sectors_of_both(old: bytes, new: bytes, rng: random.Random) -> bytes:
    parts = []
    for begin in range(0, len(new), 512):
        parts.append(rng.choice((old, new))[begin : begin + 512])
    return b"".join(parts)


def test_a_write_that_was_cut_off_leaves_all_of_it_or_nothing(tmp_path: Path, rng: random.Random) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, range(1, 4))
    before = crash(tmp_path / "wal", tmp_path / "before")
    write(log, range(4, 10), size=rng.choice((60, 3000, 20_000)), together=True)
    whole = after(crash(tmp_path / "wal", tmp_path / "whole"))
    name = "00000001"
    outcomes = set()
    for _ in range(40):
        torn = crash(before, tmp_path / "torn")
        old, new = (before / name).read_bytes(), (tmp_path / "wal" / name).read_bytes()
        (torn / name).write_bytes(sectors_of_both(old, new, rng) if rng.random() < 0.9 else new)
        found = after(torn)
        outcomes.add(len(found))
        assert found in (records(range(1, 4)), whole)
        log_after, again = opened(torn)
        assert again == found
        write(log_after, [len(found) + 1])
        log_after.close()
        assert after(torn) == [*found, *records([len(found) + 1])]
    assert 3 in outcomes
    log.close()


@pytest.mark.pure
def test_the_beginning_of_a_segment_may_be_cut_off_anywhere(tmp_path: Path, small_segments: int, rng: random.Random) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, range(1, 40), size=9000)
    log.release(39)
    write(log, range(40, 80), size=9000)
    for number in range(80, 140):
        before = crash(tmp_path / "wal", tmp_path / "before")
        log.append(number, payload(number, 9000))
        log.release(number - 5)
        log.sync()
        old = {path.name: path.read_bytes() for path in before.iterdir()}
        for path in (tmp_path / "wal").iterdir():
            new = path.read_bytes()
            if path.name in old and new[:BLOCK_BYTES] != old[path.name][:BLOCK_BYTES]:
                for cut in (1, 30, 48, 49, 500, 2048, 2060, 2090, 2096, 4000, rng.randrange(BLOCK_BYTES)):
                    torn = crash(before, tmp_path / "torn")
                    (torn / path.name).write_bytes(new[:cut] + old[path.name][cut:])
                    assert [each for each, _ in after(torn, durable=number - 6)] == list(range(number - 5, number))
                log.close()
                return
    pytest.fail("no segment was used a second time")


# -- damage


def _damage(directory: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(directory.iterdir()))
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "flip", "zeros", "noise", "cut", "delete"))
    at = rng.randrange(len(data)) if rng.random() < 0.2 else rng.randrange(len(bytes(data).rstrip(b"\0")) or 1)
    sector = at // 512 * 512
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[sector : sector + 512] = bytes(512)
    elif kind == "noise":
        data[sector : sector + 512] = rng.randbytes(512)
    elif kind == "cut":
        del data[at:]
    path.unlink()
    if kind != "delete":
        path.write_bytes(data)
    return f"{kind} at {at} of {path.name}"


@pytest.mark.pure
def test_whatever_happens_to_its_files_no_record_is_wrong_and_none_but_the_last_is_missed(
    tmp_path: Path, small_segments: int, rng: random.Random
) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, range(1, 60), size=3000)
    log.close()
    written = records(range(1, 60), 3000)
    refused = 0
    for _ in range(150):
        damaged = crash(tmp_path / "wal", tmp_path / "damaged")
        done = _damage(damaged, rng)
        copy = crash(damaged, tmp_path / "copy")
        try:
            found = after(copy)
        except CorruptLogError:
            refused += 1
        else:
            # The last one may have been cut off while it was written, for all the log can know; a file may be one that was not used yet.
            assert found in (written, written[:-1]) or not found or "delete" in done, done
            assert found == written[: len(found)], done
        salvaged, found = opened(damaged, salvage=True)
        assert found == written[: len(found)], done
        write(salvaged, range(len(found) + 1, len(found) + 4), size=77)
        assert after(crash(damaged, tmp_path / "copy")) == [*found, *records(range(len(found) + 1, len(found) + 4), 77)], done
        salvaged.close()
    assert refused > 75


# -- what the system says


def test_an_error_is_told_and_nothing_is_written_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = opened(tmp_path / "wal")
    write(log, [1])

    def no_space(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", no_space)
        log.append(2, b"2")
        with pytest.raises(OSError, match="No space left"):
            log.sync()
    log.append(3, b"3")
    with pytest.raises(OSError, match="earlier sync"):
        log.sync()
    log.close()
    assert after(tmp_path / "wal") == records([1])


@pytest.mark.pure
def test_a_segment_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path, small_segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = opened(tmp_path / "wal")
    deadline = time.monotonic() + 10
    before: dict[Path, int] = {}
    while list(before.values()) != 2 * [small_segments]:  # the next one is made beside
        before = {path: path.stat().st_size for path in sorted((tmp_path / "wal").iterdir())}
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def no_space(file: int, size: int) -> None:
        os.write(file, bytes(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_fill_with_zeros", no_space)
    with pytest.raises(OSError, match="No space left"):
        write(log, range(1, 100), size=3000)
    log.close()
    assert sorted((tmp_path / "wal").iterdir()) == list(before)
    found = [number for number, _ in WriteAheadLog(tmp_path / "wal").recover(0, salvage=False)]
    assert found == list(range(1, len(found) + 1))
    assert len(found) > 30


@pytest.mark.parametrize("when", ["opened", "written"])
def test_a_file_system_without_direct_writes_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    real_open, real_write = os.open, os.pwritev
    refused = []

    def open_(path: str, flags: int, *mode: int, **more: int) -> int:
        if when == "opened" and flags & os.O_DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode, **more)

    def pwritev(file: int, buffers: list[memoryview], offset: int) -> int:
        if when == "written" and not refused:
            refused.append(str(file))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(file, buffers, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwritev", pwritev)
    log, _ = opened(tmp_path / "wal")
    write(log, range(1, 9))
    log.close()
    assert len(refused) == 1
    assert after(tmp_path / "wal") == records(range(1, 9))


def test_one_thread_appends_while_two_others_sync(tmp_path: Path) -> None:
    log, _ = opened(tmp_path / "wal")
    appended, durable, is_over = [0], [0], threading.Event()

    def sync() -> None:
        while not is_over.is_set():
            so_far = appended[0]
            log.sync()
            durable[0] = max(durable[0], so_far)

    threads = [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        log.append(appended[0] + 1, b"%d" % (appended[0] + 1))
        appended[0] += 1
        time.sleep(0)
    promised = durable[0]
    copy = crash(tmp_path / "wal", tmp_path / "crashed")
    is_over.set()
    for thread in threads:
        thread.join()
    log.close()
    assert after(tmp_path / "wal") == [(number, b"%d" % number) for number in range(1, appended[0] + 1)]
    found = after(copy) if promised else []
    assert len(found) >= promised > 0
    assert found == [(number, b"%d" % number) for number in range(1, len(found) + 1)]


# -- below the database


def put(database: RocksDatabase, number: int) -> None:
    batch = database.new_batch()
    batch.put(b"s%d" % (number % 7), b"%d" % number)
    batch.put(b"l%06d" % number, b"%d" % number, database.log_handle)
    if number % 10 == 0:
        batch.delete_range(b"l", b"l%06d" % (number - 5), database.log_handle)
        batch.delete(b"s3")
    database.write(batch)


def contents(path: Path) -> tuple[Found, Found]:
    """Of both families, without the numbers of batches."""
    database = RocksDatabase(path, salvage=False)
    families = []
    for cursor in (database.cursor(), database.log_cursor()):
        cursor.seek(b"")
        pairs = []
        while cursor.valid() and cursor.key() < b"\xff":
            pairs.append((cursor.key(), cursor.value()))
            cursor.next()
        families.append(pairs)
    del cursor
    database.close()
    return families[0], families[1]  # type: ignore[return-value]


@pytest.mark.parametrize("flushed", ["", "state", "log", "state log", "log state"])
def test_each_family_gets_what_its_own_tables_lack(tmp_path: Path, flushed: str) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)
    plain = RocksDatabase(tmp_path / "plain", salvage=False)
    for number in range(1, 60):
        put(database, number)
        put(plain, number)
        if number in (23, 44):
            for family in flushed.split():
                getattr(database, f"{family}_family").flush()
    database.sync_now()
    put(database, 60)
    crash(tmp_path / "d", tmp_path / "crashed")
    database.close()
    plain.close()
    for _ in range(2):
        assert contents(tmp_path / "crashed") == contents(tmp_path / "plain")


def test_after_a_sync_that_failed_both_families_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)
    plain = RocksDatabase(tmp_path / "plain", salvage=False)
    for number in range(1, 30):
        put(database, number)
        put(plain, number)
    database.sync_now()

    def fails(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fails)
        put(database, 30)
        with pytest.raises(OSError, match="Input/output"):
            database.sync_now()
    crash(tmp_path / "d", tmp_path / "crashed")
    database.close()
    plain.close()
    assert contents(tmp_path / "crashed") == contents(tmp_path / "plain")
    plain = RocksDatabase(tmp_path / "plain", salvage=False)
    put(plain, 30)
    plain.close()
    assert contents(tmp_path / "d") == contents(tmp_path / "plain"), "what was closed had tables of everything"


def test_tables_free_segments_while_the_database_is_in_use(tmp_path: Path) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)
    most = 0
    for number in range(2400):
        batch = database.new_batch()
        batch.put(b"s%d" % (number % 50), os.urandom(100_000))
        database.write(batch)
        if number % 4 == 0:
            database.sync_now()
            most = max(most, len(list((tmp_path / "d" / "wal").iterdir())))
    database.close()
    assert len(contents(tmp_path / "d")[0]) == 50
    # 240 MB were written, which are 60 segments; four buffers of 64 MiB may be waiting for their tables.
    assert most < 58
