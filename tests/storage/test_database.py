"""What RocksDB is told, seen from outside."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from actorgrid.storage import database as database_module
from actorgrid.storage.database import BACKGROUND_NICENESS, SYNCS_BETWEEN_LOOKS, THREADS, RocksDatabase


@pytest.mark.skipif(sys.platform != "linux", reason="a niceness for each thread is Linux's")
def test_threads_that_flush_give_way_to_those_that_answer(tmp_path: Path) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)
    try:
        deadline_s = time.monotonic() + 30
        while not (found := _niceness_of_flushes()):
            batch = database.new_batch()
            batch.put(b"k", b"v")
            database.write(batch)
            database.state_family.flush()
            assert time.monotonic() < deadline_s, "RocksDB has no thread that flushes"
        for _ in range(SYNCS_BETWEEN_LOOKS):
            database.sync_now()
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        assert set(_niceness_of_flushes()) == {min(own + BACKGROUND_NICENESS, 19)}, found
    finally:
        database.close()


def test_the_log_waits_for_a_change_of_state_or_a_reader(tmp_path: Path) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)

    def write(number: int, *, changes_state: bool = False) -> None:
        batch = database.new_batch()
        batch.put(b"r%d" % number, b"record", database.log_handle)
        batch.put_mark(b"position", b"%d" % number)
        if changes_state:
            batch.put(b"s", b"%d" % number)
        database.write(batch)

    def has() -> list[int]:
        return [number for number in range(10) if database.log_family.get(b"r%d" % number) is not None]

    try:
        write(0)
        write(1)
        assert (has(), database.get(b"position")) == ([], None)
        write(2, changes_state=True)  # the state is never ahead of its log
        assert (has(), database.get(b"position"), database.get(b"s")) == ([0, 1, 2], b"2", b"2")
        write(3)
        assert database.get_log(b"r3") == b"record"
        write(4)
        cursor = database.log_cursor()
        cursor.seek(b"r4")
        assert cursor.valid()
        del cursor
        batch = database.new_batch()
        batch.put(b"r5", bytes(database_module.LATE_BYTES_MAX + 1), database.log_handle)
        database.write(batch)
        assert has() == [0, 1, 2, 3, 4, 5]
        for number in range(database_module.WRITES_BETWEEN_LOOKS):
            write(6 + number % 4)
        assert has() == list(range(10))
    finally:
        database.close()


@pytest.mark.parametrize("is_written_on", [False, True])
def test_what_did_not_get_into_rocksdb_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written_on: bool) -> None:
    """A panic in RocksDB's binding is no `Exception`, so a loop may go on after it."""
    database = RocksDatabase(tmp_path / "d", salvage=False)

    class Panic(BaseException):
        pass

    def write(number: int) -> None:
        batch = database.new_batch()
        batch.put(b"r%d" % number, b"record", database.log_handle)
        database.write(batch)

    def fail(*_: object, **__: object) -> None:
        raise Panic

    try:
        for number in range(5):
            write(number)
        database.sync_now()
        with monkeypatch.context() as patch:
            patch.setattr(database_module, "RocksBatch", fail)
            with pytest.raises(Panic):
                database.get_log(b"r1")
            batch = database.new_batch()
            batch.put(b"s", b"state")
            with pytest.raises(Panic):
                database.write(batch)
        if is_written_on:
            for number in range(5, 8):
                write(number)
            database.sync_now()
            assert [database.get_log(b"r%d" % number) for number in range(8)] == [b"record"] * 8
            assert database.get(b"s") == b"state"
    finally:
        database.close()
    database = RocksDatabase(tmp_path / "d", salvage=False)
    try:
        count = 8 if is_written_on else 5
        assert [database.get_log(b"r%d" % number) for number in range(count)] == [b"record"] * count
    finally:
        database.close()


def test_what_waits_goes_in_in_its_order(tmp_path: Path) -> None:
    database = RocksDatabase(tmp_path / "d", salvage=False)
    try:
        for has_range in (False, True):
            for key, value in ((b"b", b"1"), (b"a", b"1"), (b"b", b"2")):
                batch = database.new_batch()
                batch.put(key, value, database.log_handle)
                if has_range:
                    batch.delete_range(b"a", b"b", database.log_handle)
                database.write(batch)
            batch = database.new_batch()
            batch.delete(b"c", database.log_handle)
            batch.put(b"c", b"3", database.log_handle)
            database.write(batch)
            found = [database.get_log(key) for key in (b"a", b"b", b"c")]
            assert found == [None if has_range else b"1", b"2", b"3"]
    finally:
        database.close()


def test_a_look_at_threads_that_fails_is_no_failure_of_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = tmp_path / "threads"
    (threads / "1").mkdir(parents=True)
    (threads / "1" / "comm").write_bytes(b"caf\xc3")  # cut in the middle of a character, as the system cuts names
    (threads / "2").mkdir()
    database = RocksDatabase(tmp_path / "d", salvage=False)
    try:
        for where in (threads, tmp_path / "nowhere"):
            monkeypatch.setattr(database_module, "THREADS", where)
            for _ in range(SYNCS_BETWEEN_LOOKS):
                database.sync_now()
    finally:
        database.close()


def _niceness_of_flushes() -> list[int]:
    found = []
    for thread in os.listdir(THREADS):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (THREADS / thread / "comm").read_bytes().startswith(b"rocksdb:high"):
                found.append(os.getpriority(os.PRIO_PROCESS, int(thread)))
    return found
