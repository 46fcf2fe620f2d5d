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
