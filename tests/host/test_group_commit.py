"""Where a sync is waited for: a little on a quick disk in the loop itself, all else in a thread (decision 17)."""

import asyncio

import pytest
from host_harness import raw_client, run, serving

from actorgrid import ambient
from actorgrid.errors import StorageError
from actorgrid.host.commit import HERE_WRITERS_MAX, PACED_FROM_WRITERS, PATIENCE_S, GroupCommit
from actorgrid.storage.database import QUICK_NS, RocksDatabase
from actorgrid.storage.store import QUICK_SYNC_BYTES, Store, StoreIdentity


class Disk:
    """A store that notes what is asked of it. Its thread never ends a sync."""

    position = 0

    def __init__(self, told, *, quick=True, error=None):
        self.told, self.sync_is_quick, self.error = told, quick, error

    def batch(self):
        return object()

    def advance(self, batch):
        self.position += 1

    def write(self, batch):
        self.told.append("write")

    def sync(self, done):
        self.told.append("sync in a thread")

    def sync_now(self):
        self.told.append("sync here")
        if self.error is not None:
            raise self.error


class Writer:
    def __init__(self, told):
        self.told = told

    def write(self, batch, now_ns): ...
    def written(self): ...
    def begin_sync(self): ...

    def synced(self, now_ns):
        self.told.append("synced")


async def committed(writers, told, disk):
    """What a commit of so many replicas does, in order, and the errors it tells of."""
    errors = []
    commit = GroupCommit(asyncio.get_running_loop(), disk, errors.append, lambda batch: None)
    commit.send_now = lambda: told.append("send")
    for _ in range(writers):
        commit.mark(Writer(told))
    await asyncio.sleep(0.02)
    return commit, errors


def test_a_little_on_a_quick_disk_is_synced_on_the_spot_after_the_others_were_sent_theirs():
    async def main():
        told = []
        commit, errors = await committed(1, told, Disk(told))
        assert told == ["send", "write", "send", "sync here", "synced", "send"]
        assert (commit.syncs_total, commit.synced_position, errors) == (1, 1, [])
        assert not commit.stuck_ns(ambient.monotonic_ns() + 10**9)
        commit.mark(Writer(told))
        await asyncio.sleep(0.02)
        assert commit.syncs_total == 2

    asyncio.run(main())


def test_what_nobody_waits_for_goes_with_the_next_batch_or_after_a_while_by_itself():
    async def main():
        told = []
        commit = GroupCommit(asyncio.get_running_loop(), Disk(told), lambda error: None, lambda batch: None)
        patient, urgent = Writer(told), Writer(told)
        assert commit.open_batch(patient, may_wait=True) is commit.open_batch(patient, may_wait=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert told == []
        commit.mark(urgent)
        await asyncio.sleep(0.001)
        assert told == ["write", "sync here", "synced", "synced"]
        commit.open_batch(patient, may_wait=True)
        await asyncio.sleep(4 * PATIENCE_S)
        assert told[4:] == ["write", "sync here", "synced"]

    asyncio.run(main())


def test_what_rides_along_sends_nobody_to_the_thread_and_paces_nobody():
    async def main():
        told = []
        commit = GroupCommit(asyncio.get_running_loop(), Disk(told), lambda error: None, lambda batch: None)
        for _ in range(2 * PACED_FROM_WRITERS):
            commit.open_batch(Writer(told), may_wait=True)
        commit.mark(Writer(told))
        await asyncio.sleep(0.001)
        assert (told.count("sync here"), commit._paced_until_ns) == (1, 0)

    asyncio.run(main())


def test_the_end_of_a_sync_does_not_begin_one_that_nobody_waits_for():
    async def main():
        told, done = [], []
        disk = Disk(told, quick=False)
        disk.sync = done.append
        commit = GroupCommit(asyncio.get_running_loop(), disk, lambda error: None, lambda batch: None)
        commit.mark(Writer(told))
        await asyncio.sleep(0.001)
        commit.open_batch(Writer(told), may_wait=True)
        done.pop()(None)
        await asyncio.sleep(0.001)
        assert (told, done, commit.syncs_total) == (["write", "synced"], [], 1)
        await asyncio.sleep(4 * PATIENCE_S)
        assert (told, len(done)) == (["write", "synced", "write"], 1)

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["write", "written", "begin_sync", "synced"])
@pytest.mark.parametrize("quick", [True, False])
def test_what_comes_while_a_batch_is_written_is_not_forgotten(moment, quick):
    async def main():
        told = []
        disk = Disk(told, quick=quick)
        disk.sync = lambda done: asyncio.get_running_loop().call_soon(done, None)
        commit = GroupCommit(asyncio.get_running_loop(), disk, lambda error: None, lambda batch: None)
        first, second = Writer(told), Writer(told)
        setattr(first, moment, lambda *args: commit.mark(second) if commit.syncs_total < 2 and told.count("write") < 2 else None)
        commit.mark(first)
        await asyncio.sleep(0.02)
        assert told.count("write") == 2, told
        assert commit.syncs_total == 2

    asyncio.run(main())


@pytest.mark.parametrize(("writers", "quick"), [(HERE_WRITERS_MAX + 1, True), (1, False)])
def test_many_replicas_and_a_slow_disk_leave_the_loop_free(writers, quick):
    async def main():
        told = []
        commit, _ = await committed(writers, told, Disk(told, quick=quick))
        assert [each for each in told if each != "send"] == ["write", "sync in a thread"]
        assert commit.stuck_ns(ambient.monotonic_ns()) > 0

    asyncio.run(main())


def test_a_sync_that_fails_on_the_spot_ends_the_duty_once_and_tells_nobody_that_it_is_synced():
    async def main():
        told, error = [], StorageError("the disk is gone")
        commit, errors = await committed(2, told, Disk(told, error=error))
        assert errors == [error]
        assert "synced" not in told
        commit.mark(Writer(told))
        await asyncio.sleep(0.02)
        assert told.count("write") == 1

    asyncio.run(main())


class Clock:
    """A clock that a sync moves on by what the test says it takes."""

    def __init__(self, monkeypatch, database):
        self.now_ns = 10**12
        self.sync_ns = 0
        monkeypatch.setattr(ambient, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(database, "_wal", self)

    def sync(self):
        self.now_ns += self.sync_ns
        return True


@pytest.mark.pure
def test_a_disk_is_quick_only_after_several_quick_syncs_and_no_more_after_a_very_slow_one(tmp_path, monkeypatch):
    database = RocksDatabase(tmp_path / "d", salvage=False)
    wal = database._wal
    clock = Clock(monkeypatch, database)
    try:
        for sync_ns in (QUICK_NS * 10, QUICK_NS * 40):
            clock.sync_ns = sync_ns
            database.sync_now()
            assert not database.is_quick
            clock.sync_ns = QUICK_NS // 4
            syncs = 0
            while not database.is_quick:
                database.sync_now()
                syncs += 1
            assert 3 < syncs < 100
        clock.sync_ns = QUICK_NS * 2
        for _ in range(100):
            database.sync_now()
        assert not database.is_quick
    finally:
        monkeypatch.setattr(database, "_wal", wal)
        database.close()


def test_much_is_never_synced_on_the_spot(tmp_path):
    store = Store(tmp_path / "s", StoreIdentity("grid", "host", 8))
    try:
        store._db._sync_ns = 0
        assert store.sync_is_quick
        batch = store.batch()
        batch.put(b"key", bytes(QUICK_SYNC_BYTES + 1))
        store.write(batch)
        assert not store.sync_is_quick
        store.sync_now()
        store._db._sync_ns = 0
        assert store.sync_is_quick
    finally:
        store.close()


def test_a_lone_callers_changes_are_durable_and_answered_whichever_way_they_are_synced(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,):
            store = host._store
            asked = {"thread": 0, "here": 0}

            def counted(name, function):
                def call(*args):
                    asked[name] += 1
                    return function(*args)

                return call

            sync_now = store.sync_now
            store.sync = counted("thread", store.sync)
            store.sync_now = counted("here", sync_now)
            async with raw_client(host) as client:
                for number in range(1, 41):
                    store._db._sync_ns = 0 if number > 20 else 10**12
                    assert await client.call(number, "add", 1) == number
            assert asked["thread"] >= 20  # each of them calls `sync_now` too, in its thread
            assert asked["here"] - asked["thread"] >= 15

    run(main)
