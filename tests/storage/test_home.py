"""The data directory of a host: what becomes of a store that is damaged, with copies elsewhere and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage_harness import IDENTITY, crash, opened

from actorgrid.errors import CorruptLogError
from actorgrid.storage.home import StoreHome
from actorgrid.storage.store import Store


def _put(store: Store, key: bytes, value: bytes) -> None:
    batch = store.batch()
    batch.put(key, value)
    store.write(batch)
    store.sync_now()


def _destroy(data_dir: Path) -> None:
    for manifest in (data_dir / "store").glob("MANIFEST-*"):
        manifest.unlink()


def _asides(data_dir: Path) -> list[str]:
    return sorted(path.name for path in data_dir.glob("store.corrupt*"))


def test_a_damaged_store_is_put_aside_under_the_next_free_name_if_there_are_copies(tmp_path: Path) -> None:
    names = []
    for number in range(1, 4):
        store = StoreHome(tmp_path).open(IDENTITY, has_copies=True)
        assert store.is_new
        names.append(store.store_id)
        store.close()
        _destroy(tmp_path)
        with pytest.raises(CorruptLogError):
            StoreHome(tmp_path).open(IDENTITY, has_copies=False)
        StoreHome(tmp_path).open(IDENTITY, has_copies=True).close()
        assert _asides(tmp_path) == [f"store.corrupt.{each}" for each in range(1, number + 1)]
        _destroy(tmp_path)
        (tmp_path / "store").rename(tmp_path / f"gone {number}")
    assert len(set(names)) == 3


def test_a_condemned_store_is_put_aside_once_and_only_if_there_are_copies(tmp_path: Path) -> None:
    store = StoreHome(tmp_path).open(IDENTITY, has_copies=True)
    _put(store, b"k", b"old")
    store.close()
    StoreHome(tmp_path).condemn("")
    store = StoreHome(tmp_path).open(IDENTITY, has_copies=False)
    assert store.get(b"k") == b"old"
    store.close()
    store = StoreHome(tmp_path).open(IDENTITY, has_copies=True)
    assert (store.is_new, store.get(b"k")) == (True, None)
    _put(store, b"k", b"new")
    store.close()
    store = StoreHome(tmp_path).open(IDENTITY, has_copies=True)
    assert store.get(b"k") == b"new"
    store.close()
    assert _asides(tmp_path) == ["store.corrupt.1"]
    with opened(tmp_path / "store.corrupt.1") as aside:
        assert aside.get(b"k") == b"old"


def test_a_log_that_is_damaged_in_the_middle_is_taken_up_to_there_if_there_are_copies(tmp_path: Path) -> None:
    store = StoreHome(tmp_path / "running").open(IDENTITY, has_copies=True)
    for number in range(20):
        _put(store, b"k%02d" % number, b"v" * 50)
    (tmp_path / "crashed").mkdir()
    log = crash(tmp_path / "running" / "store", tmp_path / "crashed" / "store")
    store.close()
    data = bytearray(log.read_bytes())
    data[data.index(b"k10")] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptLogError):
        StoreHome(tmp_path / "crashed").open(IDENTITY, has_copies=False)
    store = StoreHome(tmp_path / "crashed").open(IDENTITY, has_copies=True)
    assert [key for key, _ in store.scan(b"k", b"l")] == [b"k%02d" % number for number in range(10)]
    store.close()
    assert not _asides(tmp_path / "crashed")


def test_what_cannot_be_condemned_for_want_of_a_directory_is_left(tmp_path: Path) -> None:
    StoreHome(tmp_path / "gone").condemn("it is damaged")
    assert not (tmp_path / "gone").exists()
