"""The simulated disk below the real store: the answers of RocksDB, and what kills, losses of power and faults leave."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random

import pytest

from actorgrid.errors import CorruptLogError, DiskFullError, SettingsError, StorageError
from actorgrid.storage import keys
from actorgrid.storage.home import StoreHome
from actorgrid.storage.store import PeerMark, ReplicaPointer, StoreIdentity
from actorgrid.testing.simulation.disk import EIO, ENOSPC, SimDisk

IDENTITY = StoreIdentity("grid-1", "host-1", 8)
EVERYTHING = (b"", b"\xff" * 20)


class Clock:
    """Virtual time, as far as a disk needs it."""

    def __init__(self):
        self.now_s = 0.0
        self._numbers = itertools.count()
        self._events = []

    def after(self, delay_s, callback, *args):
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), callback, args))

    def run(self, until_s=float("inf")):
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, callback, args = heapq.heappop(self._events)
            callback(*args)
        if until_s != float("inf"):
            self.now_s = until_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def disk(clock):
    disk = SimDisk(random.Random(1), clock.after)
    disk.sync_delay_s = lambda: 0.010
    disk.report_delay_s = lambda: 0.001
    return disk


@pytest.fixture
def rng(request):
    return random.Random(request.config.getoption("--seed"))


def opened(disk, *, has_copies=True, identity=IDENTITY):
    return disk.home().open(identity, has_copies=has_copies)


def put(store, key, value, *, record=None, sync=False):
    batch = store.batch()
    batch.put(key, value)
    if record is not None:
        batch.append_log(key, record)
    store.advance(batch)
    store.write(batch)
    if sync:
        store.sync_now()


def numbered(store):
    """The numbers of the keys that `put` was given here."""
    return [int(key[1:]) for key, _ in store.scan(b"n", b"o")]


class Always(random.Random):
    """Draws the same lot each time."""

    def __init__(self, lot):
        super().__init__(0)
        self.lot = lot

    def random(self):
        return self.lot


# -- the same answers as RocksDB


def _random_key(rng):
    return bytes(rng.choice(b"abc") for _ in range(rng.randint(1, 3)))


def _random_changes(rng):
    changes = []
    for _ in range(rng.randint(0, 6)):
        verb = rng.choice(("put", "put", "put", "delete", "delete_range", "append_log", "append_log", "delete_log", "truncate_log"))
        if verb in ("put", "append_log"):
            changes.append((verb, _random_key(rng), rng.randbytes(rng.choice((0, 1, 5, 200)))))
        elif verb in ("delete", "delete_log"):
            changes.append((verb, _random_key(rng)))
        else:
            changes.append((verb, *sorted((_random_key(rng), _random_key(rng)))))
    return changes


def test_the_store_gives_the_same_answers_on_a_simulated_disk_as_on_rocksdb(tmp_path, disk, rng):
    homes = [lambda: StoreHome(tmp_path), disk.home]
    stores = [home().open(IDENTITY, has_copies=True) for home in homes]
    held = []

    def both(ask):
        answers = [ask(store) for store in stores]
        assert answers[0] == answers[1]
        return answers[0]

    def write(changes):
        def apply(store):
            batch = store.batch()
            for verb, *arguments in changes:
                getattr(batch, verb)(*arguments)
            size = batch.size_bytes()
            store.write(batch)
            return size

        both(apply)

    found = 0
    for step in range(1500):
        lot = rng.random()
        low, high = sorted((_random_key(rng), _random_key(rng)))
        if lot < 0.5:
            write(_random_changes(rng))
        elif lot < 0.65:
            key = _random_key(rng)
            both(lambda store, key=key: store.get(key))
        elif lot < 0.8:
            reverse = rng.random() < 0.5
            found += len(both(lambda store, a=(low, high), r=reverse: list(store.scan(*a, reverse=r))))
            found += len(both(lambda store, a=(low, high): list(store.scan_log(*a))))
        elif lot < 0.87:
            held.append([store.view() for store in stores])
        elif lot < 0.9:
            held.append([store.scan(low, high, reverse=step % 2 == 0) for store in stores])
        elif held:
            pair, key = held[rng.randrange(len(held))], _random_key(rng)
            if hasattr(pair[0], "scan"):
                assert pair[0].get(key) == pair[1].get(key)
                assert list(pair[0].scan(low, high)) == list(pair[1].scan(low, high))
            else:
                assert next(pair[0], None) == next(pair[1], None)
        if len(held) > 12:
            for each in held.pop(rng.randrange(len(held))):
                each.close()
        if step % 300 == 299:
            while held:
                for each in held.pop():  # an iterator of RocksDB keeps the database open
                    each.close()
            for store in stores:
                store.close()
            stores[:] = [home().open(IDENTITY, has_copies=True) for home in homes]
    both(lambda store: [pair for pair in store.scan(*EVERYTHING) if not pair[0].startswith(keys.HOST)])
    both(lambda store: [pair for pair in store.scan_log(*EVERYTHING) if not pair[0].startswith(keys.HOST)])
    assert found > 200
    for store in stores:
        store.close()


def test_what_hosts_note_in_the_store_is_there_in_the_next_life(disk):
    store = opened(disk)
    assert store.is_new
    assert store.next_incarnation() == 1
    batch = store.batch()
    store.put_pointer(batch, ReplicaPointer(3, 1, 1, "active"))
    store.put_peer_mark(batch, "b", PeerMark(1, 2, "x"))
    store.put_half_built(batch, 4, 7)
    batch.put(keys.replica_prefix(4, 7) + b"s", b"half")
    store.advance(batch)
    store.write(batch)
    name = store.store_id
    store.close()
    store = opened(disk)
    assert (store.is_new, store.store_id, store.position, store.next_incarnation()) == (False, name, 1, 2)
    assert store.replica_pointers() == [ReplicaPointer(3, 1, 1, "active")]
    assert store.peer_marks() == {"b": PeerMark(1, 2, "x")}
    assert store.get(keys.replica_prefix(4, 7) + b"s") is None


def test_a_store_that_is_open_is_in_use_and_one_of_another_host_is_refused(disk):
    store = opened(disk)
    with pytest.raises(SettingsError, match="in use by another process"):
        opened(disk)
    store.close()
    with pytest.raises(SettingsError, match="host-2"):
        opened(disk, identity=StoreIdentity("grid-1", "host-2", 8))
    opened(disk).close()


def test_nothing_is_copied_for_cursors_that_are_gone(disk):
    store = opened(disk)
    put(store, b"n1", b"")
    before = disk._families[0]
    assert numbered(store) == [1]
    put(store, b"n2", b"")
    assert disk._families[0] is before
    view = store.view()
    put(store, b"n3", b"")
    assert disk._families[0] is not before
    assert [key for key, _ in view.scan(b"n", b"o")] == [b"n1", b"n2"]
    assert numbered(store) == [1, 2, 3]


# -- syncs


def test_a_sync_makes_durable_what_was_written_before_it_began_and_tells_a_little_later(disk, clock):
    store, heard = opened(disk), []
    put(store, b"n1", b"first", record=b"r")
    store.sync(lambda error: heard.append((clock.now_s, error)))
    put(store, b"n2", b"second")
    store.sync(lambda error: heard.append((clock.now_s, error)))
    clock.run(0.009)
    assert (disk.durable_get(False, b"n1"), disk.durable_get(True, b"n1"), disk.visible_get(True, b"n1")) == (None, None, b"r")
    clock.run(0.0105)
    assert (disk.durable_get(False, b"n1"), disk.durable_get(True, b"n1"), disk.durable_get(False, b"n2")) == (b"first", b"r", None)
    assert heard == []
    put(store, b"n1", b"third")
    assert (disk.durable_get(False, b"n1"), disk.visible_get(False, b"n1")) == (b"first", b"third")
    clock.run()
    assert heard == [(pytest.approx(0.011), None), (pytest.approx(0.022), None)]
    assert (disk.durable_get(False, b"n1"), disk.durable_get(False, b"n2")) == (
        b"third",
        b"second",
    )  # the second sync began after the first


def test_a_stalled_disk_ends_its_syncs_when_it_goes_on(disk, clock):
    store, heard = opened(disk), []
    put(store, b"n1", b"v")
    disk.stall()
    for number in range(2):
        store.sync(lambda error, number=number: heard.append((number, error)))
    clock.run(60.0)
    assert heard == []
    assert disk.durable_get(False, b"n1") is None
    assert disk.counts["syncs stalled"] == 1
    disk.resume()
    clock.run()
    assert heard == [(0, None), (1, None)]
    assert disk.durable_get(False, b"n1") == b"v"


def test_closing_ends_the_syncs_under_way_and_makes_everything_durable(disk, clock):
    store, heard = opened(disk), []
    put(store, b"n1", b"v")
    for _ in range(2):
        store.sync(heard.append)
    store.close()
    assert heard == [None, None]
    clock.run()
    assert heard == [None, None]
    disk.lose_power(Always(0.0))
    assert numbered(opened(disk)) == [1]


# -- deaths


def test_a_kill_takes_what_no_sync_had_begun_to_write(disk, clock):
    store = opened(disk)
    put(store, b"n1", b"v", sync=True)
    put(store, b"n2", b"v")
    store.sync(lambda error: None)
    put(store, b"n3", b"v")
    disk.kill()
    assert numbered(opened(disk)) == [1, 2]
    disk.kill()
    disk.lose_power(Always(0.0))
    assert numbered(opened(disk)) == [1]


def test_what_a_sync_had_begun_to_write_stays_after_a_kill_and_nobody_is_called_back(disk, clock):
    store, heard = opened(disk), []
    put(store, b"n1", b"v")
    store.sync(heard.append)
    disk.kill()
    put(store, b"n2", b"of the dead")
    store.sync(heard.append)
    with pytest.raises(StorageError):
        store.get(b"n1")
    store.close()
    after = opened(disk)
    clock.run()
    assert heard == []
    assert numbered(after) == [1]
    assert disk.durable_get(False, b"n1") is None
    after.sync_now()
    assert disk.durable_get(False, b"n1") == b"v"


def test_a_home_of_a_dead_process_opens_and_condemns_nothing(disk):
    home = disk.home()
    home.open(IDENTITY, has_copies=True)
    disk.kill()
    home.condemn("said by a dead one")
    assert disk.condemned is None
    with pytest.raises(StorageError):
        home.open(IDENTITY, has_copies=True)


def test_a_loss_of_power_leaves_what_was_synced_and_a_beginning_of_the_rest(disk, rng):
    kept = []
    for _ in range(200):
        disk.wipe()
        store = opened(disk)
        for number in range(10, 30):
            put(store, b"n%d" % number, b"old", sync=number == 19)
        batch = store.batch()
        batch.delete_range(b"n10", b"n15")
        batch.put(b"n16", b"new")
        store.write(batch)
        view = store.view()
        before = list(view.scan(*EVERYTHING))
        image = disk.image()
        disk.lose_power(rng)
        assert not disk.is_in_use
        store = opened(disk)
        if store.get(b"n16") == b"new":
            assert numbered(store) == list(range(15, 30))
            kept.append(11)
        else:
            kept.append(len(numbered(store)) - 10)
            assert numbered(store) == list(range(10, 20 + kept[-1]))
        assert store.position == min(20, 10 + kept[-1])
        assert len(before) > 10
        disk.kill()
        disk.put_back(image)
        assert numbered(opened(disk)) == list(range(10, 20))
        disk.kill()
    assert kept.count(0) > 60
    assert kept.count(11) > 20
    assert len(set(kept)) > 6
    assert disk.counts["unsynced batches lost"] == sum(11 - number for number in kept)


def test_a_torn_log_is_taken_up_to_the_damage_if_there_are_copies(disk, rng):
    salvaged = 0
    while salvaged < 20:
        disk.wipe()
        store = opened(disk)
        for number in range(10, 30):
            put(store, b"n%d" % number, b"v", sync=number == 19)
        disk.lose_power(rng, tear=True)
        if disk._is_torn:
            salvaged += 1
            with pytest.raises(CorruptLogError, match="Corruption"):
                opened(disk, has_copies=False)
        store = opened(disk)
        found = numbered(store)
        assert found == list(range(10, 10 + len(found)))
        assert 10 <= len(found) == store.position <= 20
        store.close()
        opened(disk, has_copies=False).close()
    assert disk.counts["torn at the end"] > 0
    assert disk.counts["damaged log salvaged"] == disk.counts["torn, to be salvaged"] == salvaged
    assert not disk.asides


def test_a_planted_bug_loses_what_was_said_to_be_synced(disk):
    store = opened(disk)
    disk.loses_syncs = True
    put(store, b"n1", b"v", sync=True)
    disk.lose_power(Always(0.0))
    assert numbered(opened(disk)) == []


# -- faults


@pytest.mark.parametrize(("words", "error"), [(EIO, StorageError), (ENOSPC, DiskFullError)])
def test_a_failed_write_may_have_taken_effect_and_ends_the_use_of_the_store(disk, words, error):
    for lot, effect in ((0.1, []), (0.9, [1])):
        disk.wipe()
        store = opened(disk)
        disk.fail_with(words, Always(lot), times=1)
        with pytest.raises(error) as failed:
            put(store, b"n1", b"v")
        assert type(failed.value) is error
        assert store.has_failed
        with pytest.raises(error):
            store.get(b"n1")
        store.close()
        assert numbered(opened(disk)) == effect
        disk.kill()
    assert (disk.counts["write failed"], disk.counts["write failed and took effect"]) == (2, 1)


@pytest.mark.parametrize("lot", [0.1, 0.9])
def test_a_failed_sync_is_told_and_may_have_made_everything_durable(disk, clock, lot):
    store, heard = opened(disk), []
    put(store, b"n1", b"v")
    disk.fail_with(EIO, Always(lot), times=1)
    store.sync(heard.append)
    store.sync(heard.append)
    clock.run()
    assert [type(error) for error in heard] == [StorageError, StorageError]
    assert "Input/output error" in str(heard[0])
    assert (disk.durable_get(False, b"n1") == b"v") == (lot > 0.5)
    assert disk.counts["sync failed"] == 1


def test_a_disk_fails_until_it_is_healed(disk, rng):
    opened(disk).close()
    disk.fail_with(ENOSPC, rng)
    for _ in range(3):
        store = opened(disk)
        with pytest.raises(DiskFullError):
            put(store, b"n1", b"v")
        disk.kill()
    disk.heal()
    put(opened(disk), b"n1", b"v", sync=True)
    assert disk.durable_get(False, b"n1") == b"v"


# -- damage


def _filled(disk):
    store = opened(disk)
    for number in range(10, 20):
        put(store, b"n%d" % number, b"value %d" % number, record=b"record %d" % number, sync=number < 19)
    return store


@pytest.mark.parametrize("log", [False, True])
def test_a_damaged_pair_is_never_served(disk, rng, log):
    for _ in range(30):
        store = _filled(disk)
        key = disk.flip(rng, log=log)
        assert key not in (b"n19", None)
        assert disk.durable_get(log, key) is None
        with pytest.raises(CorruptLogError, match="checksum"):
            list(store.scan_log(*EVERYTHING) if log else store.scan(*EVERYTHING, reverse=rng.random() < 0.5))
        disk.kill()
        if key.startswith(b"n"):
            store = opened(disk)
            put(store, key, b"whole", record=b"whole", sync=True)
            left = 10 - 1  # the last one was never synced
            assert len(list(store.scan_log(b"n", b"o") if log else store.scan(b"n", b"o"))) == left
            disk.kill()
        disk.wipe()


def test_a_damaged_pair_is_as_damaged_after_a_loss_of_power_and_in_copies(disk, rng):
    store = _filled(disk)
    while disk.flip(rng, log=False) != b"n12":
        disk.kill()
        disk.wipe()
        store = _filled(disk)
    batch = store.batch()
    batch.delete_range(b"n10", b"n19")
    store.write(batch)
    assert numbered(store) == [19]
    disk.lose_power(Always(0.0))
    assert disk.visible_get(False, b"n12") is None
    image = disk.image()
    assert (image.get(False, b"n12"), image.get(False, b"n13"), image.get(True, b"n13")) == (None, b"value 13", b"record 13")
    disk.wipe()
    disk.put_back(image)
    assert disk.flip(rng, log=True) is not None
    assert disk.visible_get(False, b"n12") is None


def test_a_bit_that_flips_undetected_changes_one_bit_of_one_record(disk, rng):
    _filled(disk)
    key = disk.flip_undetected(rng)
    assert key.startswith(b"n")
    changed, whole = disk.durable_get(True, key), b"record " + key[1:]
    assert (int.from_bytes(changed, "big") ^ int.from_bytes(whole, "big")).bit_count() == 1
    disk.kill()
    disk.wipe()
    assert disk.flip_undetected(rng) is None
    assert disk.flip(rng, log=False) is None


def test_a_damaged_store_is_put_aside_and_a_new_one_takes_its_place_if_there_are_copies(disk, rng):
    while disk.flip(rng, log=False) != keys.IDENTITY_KEY:
        disk.kill()
        disk.wipe()
        name = opened(disk).store_id
        disk.kill()
    with pytest.raises(CorruptLogError):
        opened(disk, has_copies=False)
    store = opened(disk)
    assert store.is_new
    assert store.store_id != name
    assert len(disk.asides) == disk.counts["store put aside"] == 1


def test_a_condemned_store_is_put_aside_once(disk):
    home = disk.home()
    store = home.open(IDENTITY, has_copies=True)
    put(store, b"n1", b"v", sync=True)
    home.condemn("a record is damaged")
    disk.kill()
    store = opened(disk)
    assert store.is_new
    assert numbered(store) == []
    put(store, b"n2", b"v", sync=True)
    disk.kill()
    assert numbered(opened(disk)) == [2]
    disk.kill()
    disk.put_back(disk.asides[0])
    assert numbered(opened(disk)) == [1]


# -- other disks


def test_an_emptied_disk_has_another_store_and_an_old_one_its_name_and_a_lower_position(disk):
    store = _filled(disk)
    name, position = store.store_id, store.position
    image = disk.image()
    for number in range(20, 25):
        put(store, b"n%d" % number, b"v", sync=True)
    with pytest.raises(AssertionError, match="running"):
        disk.wipe()
    with pytest.raises(AssertionError, match="running"):
        disk.put_back(image)
    disk.kill()
    for _ in range(2):  # an image can be put back again, whatever was done to what it was made into
        disk.put_back(image)
        store = opened(disk)
        assert (store.store_id, store.position) == (name, position - 1)  # the last batch was not durable
        put(store, b"n30", b"v", sync=True)
        disk.kill()
    disk.wipe()
    store = opened(disk)
    assert store.is_new
    assert store.store_id != name
    disk.kill()
    other = SimDisk(random.Random(2))
    other.put_back(image)
    with pytest.raises(SettingsError, match="host-2"):
        opened(other, identity=StoreIdentity("grid-1", "host-2", 8))


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        rng, clock, heard = random.Random(seed), Clock(), []
        disk = SimDisk(rng, clock.after)
        store = opened(disk)
        store_id = store.store_id
        for number in range(400):
            with contextlib.suppress(StorageError):
                put(store, b"n%d" % rng.randrange(50), b"%d" % number, record=b"%d" % number)
                store.sync(lambda error, number=number: heard.append((number, clock.now_s, str(error))))
                clock.run(clock.now_s + rng.random() * 0.01)
            match rng.randrange(40):
                case 0:
                    disk.lose_power(rng, tear=True)
                case 1:
                    disk.kill()
                case 2:
                    disk.fail_with(EIO, rng, times=1)
                case 3:
                    disk.flip(rng, log=True)
                case _:
                    continue
            disk.kill()
            store = opened(disk)
        clock.run()
        pairs = [pair for pair in disk._families[0].pairs.items() if pair[0] != keys.STORE_ID_KEY]
        assert store_id
        return sorted(pairs), heard, disk.counts

    assert run(3) == run(3)
    assert run(3) != run(4)
