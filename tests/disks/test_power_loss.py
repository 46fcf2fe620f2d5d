"""The power goes, of one host or of all at once, in the middle of load: what was acknowledged is there afterwards, once.

Hosts are real processes, their data directories are disks that lose what was not synced (`power_loss`). Every run shows that something
was lost, and one of them that the loss is found if a host only says that it syncs.

``ACTORGRID_DISK_ROUNDS=20 pytest tests/disks/test_power_loss.py --seed=7`` loses the power more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from actorgrid.storage.store import Store, StoreIdentity
from tests.disks import fuse, host_without_sync
from tests.disks.disk_grid import DiskGrid, Trial, keep_copies
from tests.disks.power_loss import PAGE_BYTES, LossyDisk, Survival, power_off

ROUNDS = int(os.environ.get("ACTORGRID_DISK_ROUNDS", "2"))
#: About that of a disk behind a network; under load there is always something that is not synced yet.
SYNC_S = 0.012
CALLERS = {"writer": 60, "mixed": 8, "follower": 6}
WRITES_BEFORE = 400
HEALTHY_WITHIN_S = 40.0
MORE_ROUNDS_MAX = 3

needs_fuse = pytest.mark.skipif(bool(fuse.reason_unusable()), reason=f"NO POWER LOSS CAN BE TESTED HERE: {fuse.reason_unusable()}")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 30 * ROUNDS)]


# -- the disk itself


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LossyDisk]:
    with LossyDisk(tmp_path / "disk", sync_s=0.0) as disk:
        yield disk


def lose_and_return(disk: LossyDisk, survival: Survival, seed: object) -> Counter[str]:
    counts = power_off([disk], survival, seed)[0]
    disk.power_on()
    return counts


def sync_names(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@needs_fuse
def test_a_synced_byte_stays_and_an_unsynced_one_goes(disk: LossyDisk) -> None:
    path = disk.path / "file"
    with path.open("wb") as file:
        file.write(b"synced")
        file.flush()
        os.fdatasync(file.fileno())
        file.write(b", not synced")
    sync_names(disk.path)
    assert path.read_bytes() == b"synced, not synced"
    assert lose_and_return(disk, "nothing", 1)["dropped_bytes"] == len(b", not synced")
    assert path.read_bytes() == b"synced"


@needs_fuse
def test_a_name_that_was_never_synced_may_go_with_all_that_is_in_it(disk: LossyDisk) -> None:
    found = set()
    for seed in range(20):
        directory = disk.path / f"directory-{seed}"
        directory.mkdir()
        (directory / "file").touch()
        sync_names(directory)  # of what is in it
        lose_and_return(disk, "nothing", seed)
        found.add(directory.exists())
    assert found == {True, False}


@needs_fuse
def test_a_rename_is_there_or_not_and_never_half(disk: LossyDisk) -> None:
    (disk.path / "old").write_bytes(b"old")
    (disk.path / "new").write_bytes(b"new")
    for name in ("old", "new"):
        with (disk.path / name).open("rb") as file:
            os.fsync(file.fileno())
    sync_names(disk.path)
    seen = set()
    for seed in range(20):
        (disk.path / "new").rename(disk.path / "old")
        lose_and_return(disk, "nothing", seed)
        seen.add((disk.path / "old").read_bytes())
        if not (disk.path / "new").exists():
            (disk.path / "new").write_bytes(b"new")
            (disk.path / "old").write_bytes(b"old")
            for name in ("old", "new"):
                with (disk.path / name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_names(disk.path)
    assert seen == {b"old", b"new"}


@needs_fuse
@pytest.mark.parametrize("survival", ["prefix", "pages"])
def test_a_part_of_what_was_not_synced_may_stay(disk: LossyDisk, survival: Survival) -> None:
    path = disk.path / "file"
    left = set()
    for seed in range(30):
        with path.open("wb") as file:
            file.write(b"s" * 1000)
            file.flush()
            os.fsync(file.fileno())
            for number in range(4):
                file.write(bytes([65 + number]) * PAGE_BYTES)
                file.flush()
        sync_names(disk.path)
        counts = lose_and_return(disk, survival, seed)
        assert counts["dropped_bytes"] + counts["kept_bytes"] == 4 * PAGE_BYTES
        content = path.read_bytes()
        assert content[:1000] == b"s" * 1000
        left.add((counts["kept_bytes"], bytes(PAGE_BYTES) in content[: content.rfind(b"D") + 1]))
    assert len(left) > 5, left
    holes = any(has_hole for _, has_hole in left)
    assert holes == (survival == "pages"), "a page is missing before one that is there, in that mode alone"


# -- the store on such a disk


def fill(store: Store, batches: range, rng: random.Random) -> None:
    for number in batches:
        batch = store.batch()
        batch.append_log(number.to_bytes(8, "big"), rng.randbytes(rng.randint(50, 3000)))
        store.advance(batch)
        store.write(batch)


def open_after_power_loss(disk: LossyDisk, survival: Survival, seed: int) -> tuple[int, int]:
    """A store with synced and unsynced batches after a power loss: how many were synced, how many are there."""
    rng = random.Random(seed)
    path, identity = disk.path / f"store-{seed}", StoreIdentity("grid", "host", 4)
    store = Store(path, identity)
    sync_names(disk.path)
    synced = rng.randint(1, 40)
    fill(store, range(synced), rng)
    store.sync_now()
    fill(store, range(synced, synced + rng.randint(1, 40)), rng)
    power_off([disk], survival, seed)
    store.close()
    disk.power_on()
    store = Store(path, identity)  # whatever parts of the end are there: it never looks like damage
    found = [int.from_bytes(key, "big") for key, _ in store.scan_log(bytes(8), bytes([1] + 7 * [0]))]
    assert found == list(range(store.position)), "what is there is a prefix of what was written"
    store.close()
    return synced, len(found)


@needs_fuse
@pytest.mark.parametrize("survival", ["nothing", "prefix"])
def test_a_store_has_what_was_synced_after_a_power_loss(disk: LossyDisk, survival: Survival) -> None:
    for seed in range(6):
        synced, found = open_after_power_loss(disk, survival, seed)
        assert found >= synced
        assert survival != "nothing" or found == synced


@needs_fuse
def test_a_store_opens_after_a_power_loss_whatever_pages_the_disk_had_written(disk: LossyDisk) -> None:
    for seed in range(12):
        synced, found = open_after_power_loss(disk, "pages", seed)
        assert found >= synced


# -- a grid on such disks


@contextlib.asynccontextmanager
async def grid_on_disks(
    directory: Path, *, seed: int, program: str = "", switch: Path | None = None
) -> AsyncIterator[tuple[Trial, dict[str, LossyDisk]]]:
    with contextlib.ExitStack() as stack:
        grid = DiskGrid(directory / "grid")
        disks = {name: stack.enter_context(LossyDisk(host.data_dir, sync_s=SYNC_S)) for name, host in grid.hosts.items()}
        for host in grid.hosts.values():
            host.program = program or host.program
            host.environment = {host_without_sync.SWITCH: str(switch)} if switch else {}
        try:
            async with grid, Trial(grid, directory / "load", seed=seed, callers=CALLERS, think_s=0.001) as trial:
                yield trial, disks
        except BaseException:
            keep_copies(list(grid.hosts.values()))
            raise


async def lose_power(trial: Trial, disks: dict[str, LossyDisk], names: list[str], survival: Survival, seed: object) -> Counter[str]:
    """The hosts `names` lose their power at once and get it back; returns what their disks lost."""
    counts: Counter[str] = Counter()

    def at_once() -> None:
        counts.update(sum(power_off([disks[name] for name in names], survival, seed), Counter()))

    await trial.hosts.kill_now(names, at_once)
    for name in names:
        disks[name].power_on()
        trial.hosts.revive(name)
    print(f"power of {', '.join(names)} lost after {trial.load.acknowledged_writes} writes, {survival} survives: {dict(counts)}")
    return counts


async def rounds_of_power_loss(directory: Path, seed: int, survivals: tuple[Survival, ...], *, at_once: bool) -> Trial:
    rng = random.Random(f"{seed}/power")
    total: Counter[str] = Counter()
    async with grid_on_disks(directory, seed=seed) as (trial, disks):
        rounds = ROUNDS if at_once else max(1, ROUNDS // 2)
        for number in range(rounds + MORE_ROUNDS_MAX):
            if number >= rounds and total["wal_dropped_bytes"]:
                break  # else nothing of importance was unsynced at those moments, or it survived: once more
            await trial.more_writes(WRITES_BEFORE)
            await asyncio.sleep(rng.random())
            names = list(disks) if at_once else [rng.choice(list(disks))]
            total += await lose_power(trial, disks, names, survivals[number % len(survivals)], f"{seed}/{number}")
            await trial.hosts.wait_healthy(HEALTHY_WITHIN_S)
        await trial.more_writes(WRITES_BEFORE)
        assert total["wal_dropped_bytes"] > 0, f"no power loss took anything that matters: {dict(total)}"
        await trial.judge(floor=2 * WRITES_BEFORE)
        trial.show()
        assert not trial.hosts.own_exits, trial.hosts.own_exits
        assert not any(host.stores_aside for host in trial.hosts.hosts.values()), "a store was put aside, and nothing was wrong with it"
    return trial


@needs_fuse
def test_the_whole_grid_loses_power_and_nothing_that_was_acknowledged(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    trial = asyncio.run(rounds_of_power_loss(tmp_path, pytestconfig.getoption("--seed"), ("pages", "nothing", "prefix"), at_once=True))
    trial.check()


@needs_fuse
def test_one_host_after_another_loses_power_and_nothing_that_was_acknowledged(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    trial = asyncio.run(rounds_of_power_loss(tmp_path, pytestconfig.getoption("--seed"), ("pages", "prefix", "nothing"), at_once=False))
    trial.check()


@needs_fuse
def test_hosts_that_only_say_that_they_sync_lose_acknowledged_changes(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The planted bug: without it the two tests above would prove nothing."""
    seed = pytestconfig.getoption("--seed")
    switch = tmp_path / "skip-sync"

    async def run() -> tuple[Trial, str]:
        async with grid_on_disks(tmp_path, seed=seed, program="tests.disks.host_without_sync", switch=switch) as (trial, disks):
            await trial.more_writes(WRITES_BEFORE)
            switch.touch()
            await trial.more_writes(WRITES_BEFORE)
            await trial.stop_load()
            counts = await lose_power(trial, disks, list(disks), "nothing", seed)
            switch.unlink()
            assert counts["wal_dropped_bytes"] > 0
            await trial.hosts.wait_healthy(HEALTHY_WITHIN_S)
            await trial.judge(floor=2 * WRITES_BEFORE)
            return trial

    trial = asyncio.run(run())
    exactly_once = trial.verdicts[0]
    assert not exactly_once, "acknowledged changes were never on a disk, and nobody found that"
    assert any("is lost" in each for each in exactly_once.details), exactly_once.details
    print(exactly_once)
