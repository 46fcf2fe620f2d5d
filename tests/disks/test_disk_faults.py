"""Disks that are full, fail, hang, lie, or are not the ones they were: found, never served, rebuilt from the peers, and nothing is lost.

Hosts are real processes; clients in another one change and read all the time. Each test shows that the fault bit.

``ACTORGRID_DISK_ROUNDS=10 pytest tests/disks/test_disk_faults.py --seed=7`` damages more disks, each time in another place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from actorgrid import grid
from actorgrid.errors import ActorGridError, TransientError
from actorgrid.storage.store import Store, StoreIdentity
from tests import wal_files
from tests.disks import damage
from tests.disks.disk_grid import APPS, DiskGrid, DiskHost, Timer, Trial, until
from tests.faults.grid_processes import Observation, Supervision

sys.path.insert(0, str(APPS))
from disk_actors import Board  # type: ignore[import-not-found]

ROUNDS = int(os.environ.get("ACTORGRID_DISK_ROUNDS", "1"))
FLOOR = 200
#: Of the kinds of damage as many, drawn anew by each seed; with more rounds all of them, in each round.
DAMAGES_IN_THE_SLICE = 3
RESTART = Supervision(restart_after_s=0.7)
#: A lease of 1.5 s that runs out, an election of 2 to 2.5 s, and what two busy cores add.
TAKEN_OVER_WITHIN_S = 7.0
STALL_S = 8.0
WRONG_WITHIN_S = 4.0

no_root = "" if os.geteuid() == 0 else "mounting needs root"
needs_mounts = pytest.mark.skipif(bool(no_root), reason=f"NO FULL DISK CAN BE TESTED HERE: {no_root}")
needs_strace = pytest.mark.skipif(
    bool(damage.reason_no_strace()), reason=f"NEITHER FAILING NOR SLOW SYNCS CAN BE TESTED HERE: {damage.reason_no_strace()}"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(150 + 60 * ROUNDS)]


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    value: int = pytestconfig.getoption("--seed")
    return value


@contextlib.asynccontextmanager
async def under_load(directory: Path, seed: int, *, small_disks: bool = False, probe: bool = False) -> AsyncIterator[Trial]:
    """A grid under load; at the end everything is judged."""
    with contextlib.ExitStack() as stack:
        hosts = DiskGrid(directory / "grid")
        for host in hosts.hosts.values():
            host.supervision = RESTART
            if small_disks:
                stack.enter_context(damage.small_disk(host.data_dir))
        async with hosts, Trial(hosts, directory / "load", seed=seed, probe=probe) as trial:
            yield trial
            await trial.more_writes(FLOOR)
            await hosts.wait_healthy()
            await trial.judge(floor=FLOOR)
            trial.show()
            trial.check()


def busiest(seen: Observation) -> str:
    return seen.hosts_by_primaries(["host-1", "host-2", "host-3"])[0]


async def wait_until_ended(host: DiskHost) -> int:
    """Its process ends by itself; with which code."""
    pid = host.pid
    assert host.process is not None
    process = host.process
    await until(lambda: process.poll() is not None, 20, f"{host.name} (pid {pid}) ends")
    return process.returncode


# -- no space


@needs_mounts
def test_a_host_with_a_full_disk_leaves_says_why_and_catches_up_when_there_is_space(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        async with under_load(tmp_path, seed, small_disks=True) as trial:
            host = trial.hosts.hosts[busiest(await trial.hosts.observe())]
            said_before = host.log_bytes
            taken = damage.fill_up(host.data_dir)
            assert await wait_until_ended(host) == 1
            assert any("No space left" in line for line in host.said("out of duty", said_before))
            timer = Timer()
            await trial.more_writes(FLOOR)
            print(f"{host.name} ended, {taken} bytes were taken; the others made {FLOOR} changes within {timer.seconds:.2f} s")
            await until(lambda: bool(host.said("cannot start", said_before)), 10, "it says why it does not start")
            assert any("No space left" in line for line in host.said("cannot start", said_before))
            damage.give_space(host.data_dir)
            timer = Timer()
            await trial.hosts.wait_healthy()
            print(f"whole again {timer.seconds:.2f} s after there was space")
            assert {each.host for each in trial.hosts.own_exits} == {host.name}

    asyncio.run(run())


@needs_mounts
def test_with_all_disks_full_callers_are_told_and_the_grid_comes_back_when_there_is_space(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        async with under_load(tmp_path, seed, small_disks=True) as trial, grid.connect(trial.hosts.seeds) as client:
            await client.get(Board, "before").put(1)
            for host in trial.hosts.hosts.values():
                host.supervision = Supervision(restart_after_s=3.0)  # so that there are not too many starts that fail
                damage.fill_up(host.data_dir)
            # The last one has nothing to write without the others, and may stay.
            await until(lambda: len({each.host for each in trial.hosts.own_exits}) >= 2, 20, "hosts leave")
            for name in {each.host for each in trial.hosts.own_exits}:
                assert any("No space left" in line for line in trial.hosts.hosts[name].said("out of duty"))
            await asyncio.sleep(2.0)  # nor does it begin anything once it has not heard the others for a while
            hurried = client.with_options(timeout_s=2.0)
            with pytest.raises(TransientError) as told:  # nothing happened
                await hurried.get(Board, "meanwhile").put(2)
            print(f"a caller was told: {told.value}")
            with pytest.raises(ActorGridError):
                await hurried.get(Board, "before").read()
            for host in trial.hosts.hosts.values():
                damage.give_space(host.data_dir)
            timer = Timer()
            await trial.hosts.wait_healthy()
            print(f"whole again {timer.seconds:.2f} s after there was space")
            assert await client.get(Board, "before").read() == 1
            assert await client.get(Board, "meanwhile").read() == 0

    asyncio.run(run())


# -- calls that fail or take long


@needs_strace
def test_a_host_whose_sync_fails_once_leaves_and_comes_back(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        async with under_load(tmp_path, seed) as trial:
            host = trial.hosts.hosts[busiest(await trial.hosts.observe())]
            said_before = host.log_bytes
            with damage.Tampered(host.pid, "pwritev2:error=EIO:when=1", tmp_path / "strace") as tampered:
                assert await wait_until_ended(host) == 1
                assert len(tampered.hits) == 1, tampered.hits
            assert any("Input/output error" in line for line in host.said("out of duty", said_before))
            timer = Timer()
            await trial.hosts.wait_healthy()
            print(f"whole again {timer.seconds:.2f} s after {host.name} had ended")
            assert not host.stores_aside, "a sync that failed says nothing about what was synced before"

    asyncio.run(run())


@needs_strace
def test_a_primary_whose_disk_hangs_longer_than_its_leases_is_followed_by_others(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        async with under_load(tmp_path, seed, probe=True) as trial:
            before = await trial.hosts.observe()
            host = trial.hosts.hosts[busiest(before)]
            owned = set(before.primaries_of(host.name))
            timer = Timer()
            with damage.Tampered(host.pid, f"pwritev2:delay_enter={STALL_S * 1e6:.0f}:when=1", tmp_path / "strace") as tampered:

                def is_taken_over(seen: Observation) -> bool:
                    return owned <= {partition for partition, replica in seen.primaries.items() if replica.host != host.name}

                await trial.hosts.wait_for("others are primary of all it was primary of", is_taken_over, TAKEN_OVER_WITHIN_S)
                print(f"{len(owned)} partitions were taken over {timer.seconds:.2f} s after the disk of {host.name} began to hang")
                await trial.more_writes(FLOOR)
                assert timer.seconds < STALL_S, "the disk was still hanging"
                await until(lambda: bool(tampered.hits), STALL_S + 5, "the disk answers again")
            assert not trial.hosts.own_exits, trial.hosts.own_exits

    asyncio.run(run())


# -- damaged, lost, old


class Found:
    """How a host finds out about its disk."""

    ASIDE = "put aside"  # by RocksDB's checksums: the store is replaced
    WENT_BACK = "went back in time"  # by what the peers remember (I6)
    RETIRED = "replica retired"  # by the log's own checksums: one replica
    EMPTIED = "host listens .* replicas=0"  # by itself: there is nothing


Damage = Callable[[DiskHost, random.Random], str]


def _old(host: DiskHost, rng: random.Random) -> str:
    shutil.rmtree(host.data_dir)
    shutil.copytree(host.kept_dir, host.data_dir)
    return "put back an older copy"


def _emptied(host: DiskHost, rng: random.Random) -> str:
    shutil.rmtree(host.data_dir)
    host.data_dir.mkdir()
    return "emptied"


def _flip_log_record(host: DiskHost, rng: random.Random) -> str:
    return damage.flip_in_log_record(host.store, 1 + rng.randrange(16), rng)


#: name -> (what is done, how it may be found)
DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a flipped bit in the write-ahead log": (
        lambda host, rng: wal_files.flip(host.store, rng, but_the_last=1),
        (Found.ASIDE, Found.WENT_BACK),
    ),
    "a flipped bit in each table": (lambda host, rng: damage.flip_in_tables(host.store, rng), (Found.ASIDE,)),
    "a flipped bit in the manifest": (lambda host, rng: damage.flip_in_manifest(host.store, rng), (Found.ASIDE, Found.WENT_BACK)),
    "a flipped bit in a log record": (_flip_log_record, (Found.RETIRED,)),
    "the write-ahead log is gone": (lambda host, rng: wal_files.delete(host.store), (Found.WENT_BACK,)),
    "the write-ahead log is cut": (lambda host, rng: wal_files.cut(host.store, rng), (Found.WENT_BACK,)),
    "emptied": (_emptied, (Found.EMPTIED,)),
    "an older copy is put back": (_old, (Found.WENT_BACK,)),
}


async def damage_one(trial: Trial, name: str, host: DiskHost, rng: random.Random) -> None:
    """Stop `host`, damage its disk, start it, and wait until it has found that out and the grid is whole."""
    hosts = trial.hosts
    inflict, ways = DAMAGES[name]
    hosts.exits.clear()  # those of this damage must not be too many
    if inflict is _old:
        await hosts.kill_now([host.name])
        shutil.rmtree(host.kept_dir, ignore_errors=True)
        shutil.copytree(host.data_dir, host.kept_dir)
        hosts.revive(host.name)
        await hosts.wait_healthy()
    await trial.more_writes(FLOOR)
    await hosts.kill_now([host.name])
    if name == "a flipped bit in each table":
        # What was in the write-ahead log is in a table once it has started again.
        hosts.revive(host.name)
        await hosts.wait_healthy()
        await hosts.kill_now([host.name])
    done = inflict(host, rng)
    aside, said_before = len(host.stores_aside), host.log_bytes
    timer = Timer()
    hosts.revive(host.name)
    await hosts.wait_healthy()
    # Reads everything that is in the tables.
    await hosts.digests()

    def found() -> list[str]:
        return [line for way in ways for line in host.said("", said_before) if re.search(way, line)]

    await until(lambda: bool(found()), 15, f"{host.name} finds out: {done}")
    await hosts.wait_healthy()
    lines = found()
    print(f"{name}: {done} of {host.name}; whole again within {timer.seconds:.2f} s; {len(lines)} times: {lines[0][24:200]}")
    assert len(host.stores_aside) == aside + any(Found.ASIDE in line for line in lines)
    if ways == (Found.RETIRED,):
        assert len(lines) == 1, f"that record alone was wrong: {lines}"


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_disk_that_is_not_what_it_was_is_found_out_and_its_replicas_are_rebuilt(tmp_path: Path, seed: int, number: int) -> None:
    async def run() -> None:
        rng = random.Random(f"{seed}/{number}/damage")
        async with under_load(tmp_path, seed) as trial:
            hosts = trial.hosts
            for name in rng.sample(sorted(DAMAGES), len(DAMAGES) if ROUNDS > 1 else DAMAGES_IN_THE_SLICE):
                await damage_one(trial, name, hosts.hosts[rng.choice(sorted(hosts.hosts))], rng)

    asyncio.run(run())


def test_the_disk_of_another_host_or_grid_is_refused_and_harmless(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        async with under_load(tmp_path, seed) as trial:
            hosts = trial.hosts
            a, b = hosts.hosts["host-1"], hosts.hosts["host-2"]
            await hosts.kill_now([a.name, b.name])
            damage.swap(a.data_dir, b.data_dir)
            for host, other in ((a, b), (b, a)):
                said_before = host.log_bytes
                host.spawn()
                host.is_wanted = False
                assert await wait_until_ended(host) == 2
                (line,) = host.said("cannot start", said_before)
                assert f"holds data of host '{other.name}', this host was started for '{host.name}'" in line, line
            print(f"refused: {line}")
            damage.swap(a.data_dir, b.data_dir)
            # Not its own, but of a host of that name in another grid.
            aside = a.data_dir.with_name("host-1.right")
            a.data_dir.rename(aside)
            Store(a.store, StoreIdentity("another-grid", a.name, hosts.partition_count)).close()
            said_before = a.log_bytes
            a.spawn()
            a.is_wanted = False
            assert await wait_until_ended(a) == 2
            (line,) = a.said("cannot start", said_before)
            assert "holds data of grid 'another-grid'" in line, line
            shutil.rmtree(a.data_dir)
            aside.rename(a.data_dir)
            for host in (a, b):
                hosts.revive(host.name)
            await hosts.wait_healthy()

    asyncio.run(run())


# -- more than one fault


def test_an_old_disk_and_a_host_that_is_down_do_not_make_a_quorum(tmp_path: Path, seed: int) -> None:
    """A has an old disk, B is down, and C has missed what A and B made together: A must not help C to win an election."""

    async def run() -> None:
        rng = random.Random(f"{seed}/double")
        async with under_load(tmp_path, seed) as trial, grid.connect(trial.hosts.seeds) as client:
            hosts = trial.hosts
            a, b, c = (hosts.hosts[name] for name in rng.sample(sorted(hosts.hosts), 3))
            await hosts.kill_now([a.name])
            shutil.copytree(a.data_dir, a.kept_dir)
            hosts.revive(a.name)
            await hosts.wait_healthy()
            await trial.more_writes(FLOOR)  # C hears of them
            await hosts.kill_now([c.name])
            await trial.more_writes(FLOOR)  # A and B alone have these
            await client.get(Board, "only on A and B").put(7)
            await hosts.kill_now([a.name, b.name])
            shutil.rmtree(a.data_dir)
            shutil.copytree(a.kept_dir, a.data_dir)
            said_before = a.log_bytes
            hosts.revive(a.name)
            hosts.revive(c.name)
            await until(lambda: bool(a.said(Found.WENT_BACK, said_before)), 20, f"{a.name} finds out that its disk is old")
            await hosts.wait_for("A and C answer", lambda now: len(now.statuses) == 2)
            # Longer than any lease and election: a grid that can do wrong without B has the time to do it.
            timer, looks = Timer(), 0
            while timer.seconds < WRONG_WITHIN_S or looks < 5:
                now = await hosts.observe()
                assert not now.primaries, now.primaries
                looks += len(now.statuses) == 2
                assert timer.seconds < 10 * WRONG_WITHIN_S, "A and C were there, and looked at"
                await asyncio.sleep(0.1)
            hurried = client.with_options(timeout_s=1.5)
            for make in (lambda: hurried.get(Board, "meanwhile").put(8), lambda: hurried.get(Board, "only on A and B").read()):
                with pytest.raises(TransientError) as told:  # nothing happened
                    await make()
                print(f"a caller was told: {type(told.value).__name__}: {told.value}")
            timer = Timer()
            hosts.revive(b.name)
            await hosts.wait_healthy()
            print(f"whole again {timer.seconds:.2f} s after B was started")
            assert await client.get(Board, "only on A and B").read() == 7
            assert await client.get(Board, "meanwhile").read() == 0

    asyncio.run(run())


def test_without_a_write_quorum_nothing_is_changed_or_read_but_where_age_does_not_matter(tmp_path: Path, seed: int) -> None:
    async def run() -> None:
        rng = random.Random(f"{seed}/quorum")
        async with under_load(tmp_path, seed) as trial, grid.connect(trial.hosts.seeds) as client:
            hosts = trial.hosts
            boards = [f"board-{number}" for number in range(24)]
            for number, board in enumerate(boards):
                assert await client.get(Board, board).put(number) == number
                await client.get(Board, board).look()
            await asyncio.sleep(1.5)  # until the secondaries have applied that
            gone = rng.sample(sorted(hosts.hosts), 2)
            await hosts.kill_now(gone)
            await asyncio.sleep(2.0)  # the leases of the last one run out
            hurried = client.with_options(timeout_s=2.0)

            async def outcome(call: object) -> str:
                try:
                    await call  # type: ignore[misc]
                except TransientError as error:  # nothing happened
                    return f"{type(error).__name__}: {error}"
                return "answered"

            calls = {
                "look": [hurried.get(Board, board).look() for board in boards],
                "put": [hurried.get(Board, board).put(100) for board in boards],
                "read": [hurried.get(Board, board).read() for board in boards],
            }
            told = {what: [await outcome(call) for call in several] for what, several in calls.items()}
            for what, several in told.items():
                print(f"{what}: {Counter(each.split(':')[0] for each in several)}, for example: {several[0]}")
            assert set(told["look"]) == {"answered"}, sorted(set(told["look"]))
            for what in ("put", "read"):
                # Where the primary was on a host that is gone, the client still says that it cannot connect to it.
                names = {each.split(":")[0] for each in told[what]}
                assert "NoWriteQuorumError" in names, sorted(set(told[what]))
                assert names <= {"NoWriteQuorumError", "HostUnavailableError"}, sorted(set(told[what]))
            assert [await hurried.get(Board, board).look() for board in boards] == list(range(len(boards)))
            timer = Timer()
            hosts.revive(gone[0])
            await trial.more_writes(FLOOR)
            print(f"changes again {timer.seconds:.2f} s after one had been started")
            assert [await client.get(Board, board).read() for board in boards] == list(range(len(boards)))
            hosts.revive(gone[1])
            await hosts.wait_healthy()

    asyncio.run(run())
