"""What RocksDB is told, seen from outside."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

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
        assert set(_niceness_of_flushes()) == {BACKGROUND_NICENESS}, found
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < BACKGROUND_NICENESS
    finally:
        database.close()


def _niceness_of_flushes() -> list[int]:
    named = [thread for thread in os.listdir(THREADS) if (THREADS / thread / "comm").read_text().startswith("rocksdb:high")]
    return [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in named]
