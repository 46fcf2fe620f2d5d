"""SIGKILL of hosts at random moments under load, some with the loss of their disk: no caller notices, nothing acknowledged is lost, nothing
happens twice, replicas stay equal (I2, I6, I9, I10, I13)."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from actorgrid import grid
from actorgrid.cluster.local import LocalGrid
from actorgrid.testing.exactly_once import ExactlyOnceOracle

APPS = Path(__file__).parent.parent / "apps"
KILLS = 22
#: Every so many kills the host's data directory is lost, too: when the grid is whole, since two lost disks at a time are one too many.
DISK_LOST_EVERY = 6
CALLERS = 48
ACTORS = 60
TRAFFIC_FLOOR = 2_000

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


class Load:
    """Callers that change, transfer and read until told to stop."""

    def __init__(self, client: grid.Client, oracle: ExactlyOnceOracle, ledger: type, seed: int) -> None:
        self.client = client
        self.oracle = oracle
        self.ledger = ledger
        self.seed = seed
        self.stopping = False
        self.calls = 0
        self.slowest_s = 0.0
        self.stale_reads: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self.caller(number))

    async def caller(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        known: dict[str, int] = {}
        while not self.stopping:
            actor = f"ledger-{rng.randrange(ACTORS)}"
            proxy = self.client.get(self.ledger, actor)
            token = f"{number}.{self.calls}"
            kind = rng.random()
            began = time.monotonic()
            if kind < 0.6:
                known[actor] = version = await proxy.change(token)
                self.oracle.acknowledged(actor, token, version)
            elif kind < 0.8:
                to = f"ledger-{rng.randrange(ACTORS)}"
                # Always from the lower to the higher name: chains that wait for each other in a ring would only time out.
                source, target = min(actor, to), max(actor, to)
                if source == target:
                    continue
                version = await self.client.get(self.ledger, source).transfer(token, target, 1 + rng.randrange(9))
                self.oracle.acknowledged(source, token, version)
            else:
                version = await proxy.read_version()
                if version < known.get(actor, 0):
                    self.stale_reads.append(f"{actor}: read {version} after {known[actor]} was acknowledged")
            self.calls += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)


@pytest.fixture(name="ledger")
def _ledger(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.syspath_prepend(str(APPS))
    import ledger

    return ledger.Ledger


def test_hosts_killed_at_random_moments_under_load_lose_nothing_and_repeat_nothing(
    ledger: type, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed")
    rng = random.Random(seed)
    oracle = ExactlyOnceOracle()

    async def campaign(local: LocalGrid) -> Load:
        async with grid.connect(local.address) as client:
            load = Load(client, oracle, ledger, seed)
            running = asyncio.create_task(load.run())
            killed: list[int] = []
            disks_lost = 0
            while len(killed) < KILLS:
                loses_disk = len(killed) % DISK_LOST_EVERY == DISK_LOST_EVERY - 1
                if loses_disk:
                    await asyncio.to_thread(local.wait_until_whole)
                # Some of them meet a host that has just come back, or one that is still recovering while another is already down.
                await asyncio.sleep(rng.choice([0.2, 1.0, 2.0, 3.0]) * rng.random())
                alive = {name: pid for name, pid in sorted(local.host_pids().items()) if pid not in killed}
                if not alive:
                    await asyncio.sleep(0.2)  # all three are down: that happens too
                    continue
                name = rng.choice(list(alive))
                if loses_disk:
                    local.lose_disk(name)
                    disks_lost += 1
                else:
                    local.kill_host(name)
                killed.append(alive[name])
                assert not running.done(), "a caller saw an exception"
            await asyncio.sleep(3)
            load.stopping = True
            await running
            assert disks_lost == KILLS // DISK_LOST_EVERY
            return load

    with LocalGrid(nodes=3, app=["ledger"], app_path=[APPS], data=tmp_path / "grid", partitions=16) as local:
        load = asyncio.run(campaign(local))
        local.wait_until_whole()
        history, balances, versions = asyncio.run(_read_back(local, ledger))
        digests = local.read_digests()
    # Credits are changes of their own, known by their transfer's token.
    for actor, pairs in history.items():
        for token, version in pairs:
            if token.endswith("+"):
                oracle.acknowledged(actor, token, version)
    report = oracle.judge(history)
    print(f"seed={seed} kills={KILLS} calls={load.calls} slowest_s={load.slowest_s:.2f} {report}")
    assert report, "\n".join(report.violations[:20])
    assert sum(balances.values()) == 0, "a transfer was lost or doubled"
    assert all(versions[actor] == len(pairs) for actor, pairs in history.items()), "field and collection disagree"
    credits = sorted(token for pairs in history.values() for token, _ in pairs if token.endswith("+"))
    assert len(credits) == len(set(credits)), "a nested change happened twice"
    assert load.stale_reads == []
    assert {number for number, by_host in digests.items() if len(by_host) != 3 or len(set(by_host.values())) != 1} == set()
    assert load.calls > TRAFFIC_FLOOR, "too little traffic to mean anything"


async def _read_back(local: LocalGrid, ledger: type) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int], dict[str, int]]:
    history, balances, versions = {}, {}, {}
    async with grid.connect(local.address) as client:
        for number in range(ACTORS):
            actor = f"ledger-{number}"
            proxy = client.get(ledger, actor)
            balances[actor], history[actor], recent = await proxy.read_all()
            versions[actor] = await proxy.read_version()
            in_order = [token for token, _ in sorted(history[actor], key=lambda pair: pair[1])]
            assert recent == in_order[-5:], "a list changed in place disagrees with the collection"
    return history, balances, versions
