"""A store whose data has gone is not begun anew by itself: the mark beside it remembers that it once was there."""

import shutil

import pytest

from actorgrid.errors import SettingsError
from actorgrid.storage.store import Store, StoreIdentity

IDENTITY = StoreIdentity("grid-1", "host-1", 8)


def open_and_close(path):
    store = Store(path, IDENTITY)
    try:
        return store.get(b"a")
    finally:
        store.close()


def create(path):
    store = Store(path, IDENTITY)
    batch = store.batch()
    batch.put(b"a", b"1")
    store.write(batch)
    store.sync_now()
    store.close()


def test_a_new_store_leaves_its_mark_beside_the_directory(tmp_path):
    create(tmp_path / "store")
    assert (tmp_path / "store.created").exists()


def test_an_emptied_store_is_refused_and_the_mark_is_named(tmp_path):
    create(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    for _ in range(2):  # the first refusal must not make the second an ordinary start
        with pytest.raises(SettingsError, match=r"store\.created"):
            open_and_close(tmp_path / "store")


def test_without_the_mark_an_emptied_store_begins_anew(tmp_path):
    create(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(SettingsError):
        open_and_close(tmp_path / "store")
    (tmp_path / "store.created").unlink()
    assert open_and_close(tmp_path / "store") is None
    assert (tmp_path / "store.created").exists()


def test_a_store_that_is_put_back_opens_again(tmp_path):
    create(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(SettingsError):
        open_and_close(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert open_and_close(tmp_path / "store") == b"1"


def test_a_store_from_before_there_were_marks_gets_one(tmp_path):
    create(tmp_path / "store")
    (tmp_path / "store.created").unlink()
    assert open_and_close(tmp_path / "store") == b"1"
    assert (tmp_path / "store.created").exists()
