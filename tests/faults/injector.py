"""Injects one planned fault into a running grid, heals it, and writes down what it did.

The target is the host with the most primaries two times out of three, else any. Every fault begins at a random moment of lease and beat.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
import re
import time
from typing import Any

import msgspec

from tests.faults import disks
from tests.faults.grid_processes import GridProcesses, Observation, Supervision, paused
from tests.faults.network import Link, NetworkCuts, Way, links_between
from tests.faults.plan import PlannedFault

LEASE_S = 1.5
BEAT_S = 0.25
#: Longer than any lease and election: a grid that can do wrong while its quorum is gone has the time to do it.
WRONG_WITHIN_S = 4.0
#: What a host says in its log when it finds that the disk is not what it was, and mends that.
NOTICED = re.compile(r"disk went back|replica retired|is put aside|history lost")


class FaultRecord(msgspec.Struct, kw_only=True):
    """One fault as it happened.

    :ivar injected_ns: when it began; :ivar healed_ns: when its cause was gone; :ivar healthy_ns: when the grid was whole again, 0 if never
    :ivar evidence: what shows that it did something
    :ivar bit: whether it did; decided by `judge_bites`, for some kinds from the histories
    """

    number: int
    kind: str
    variant: str
    target: str
    at: str
    injected_ns: int = 0
    healed_ns: int = 0
    healthy_ns: int = 0
    evidence: dict[str, Any] = {}
    bit: bool = False
    longest_gap_ns: int = 0
    longest_gap_of_all_ns: int = 0


class Injector:
    """Injects faults one after another. Not more than one at a time, but for those that are planned as pairs."""

    def __init__(self, hosts: GridProcesses, cuts: NetworkCuts | None) -> None:
        self.hosts = hosts
        self.cuts = cuts
        self.records: list[FaultRecord] = []
        self._last_target = ""

    async def inject(self, fault: PlannedFault) -> FaultRecord:
        """Inject and heal; does not wait until the grid is whole.

        :raises Exception: the harness could not do it; what it had begun is healed
        """
        rng = fault.rng
        if not fault.follows:
            await asyncio.sleep(rng.random() * (LEASE_S + BEAT_S))
        before = await self.hosts.observe()
        target = self._target(fault, before, rng)
        record = FaultRecord(
            number=fault.number,
            kind=fault.kind,
            variant=fault.variant,
            target=target,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            injected_ns=time.monotonic_ns(),
            evidence={"primaries": before.primaries_of(target)},
        )
        self.records.append(record)
        self._last_target = target
        await {"kill": self._kill, "stop": self._stop, "cut": self._cut, "disk": self._disk}[fault.kind](fault, record, before, rng)
        record.healed_ns = record.healed_ns or time.monotonic_ns()
        return record

    def _target(self, fault: PlannedFault, before: Observation, rng: random.Random) -> str:
        names = sorted(self.hosts.hosts)
        if fault.variant == "same host again":
            return self._last_target
        if fault.variant == "another host too":
            return rng.choice([name for name in names if name != self._last_target and self.hosts.hosts[name].is_alive])
        alive = [name for name in names if self.hosts.hosts[name].is_alive]
        if fault.kind == "stop":  # of a host that is primary of nothing, nobody notices anything
            alive = [name for name in alive if before.primaries_of(name)] or alive
        return before.hosts_by_primaries(alive)[0] if rng.random() < 2 / 3 else rng.choice(alive)

    # -- kinds

    async def _kill(self, fault: PlannedFault, record: FaultRecord, before: Observation, rng: random.Random) -> None:
        host = self.hosts.hosts[record.target]
        if fault.follows:
            # Within two seconds of the restart, or of the death where it is another host's turn.
            async with asyncio.timeout(30):
                while fault.variant == "same host again" and not host.is_alive:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(2 * rng.random())
            record.injected_ns = time.monotonic_ns()
        if not host.is_alive:
            record.evidence["skipped"] = "it was dead already"
            return
        supervised = fault.variant == "supervised" or (fault.follows and rng.random() < 0.5)
        supervision = Supervision(1.0 + 0.3 * rng.random(), tells=True) if supervised else Supervision(0.3 + 4 * rng.random(), tells=False)
        exits = len(self.hosts.exits)
        record.evidence |= {"pid": self.hosts.kill(record.target, supervision), "restart_after_s": round(supervision.restart_after_s, 3)}
        async with asyncio.timeout(30):
            while len(self.hosts.exits) == exits:
                await asyncio.sleep(0.005)
        # It is down now; the supervisor starts it again, and a kill that follows may come before that.
        record.evidence["exit_code"] = next((each.code for each in self.hosts.exits if each.pid == record.evidence["pid"]), None)

    async def _stop(self, fault: PlannedFault, record: FaultRecord, before: Observation, rng: random.Random) -> None:
        seconds = LEASE_S + (rng.random() - 0.5) * 4 * BEAT_S if fault.variant == "about the lease" else 1 + 5 * rng.random()
        record.evidence["seconds"] = round(seconds, 3)
        async with paused(self.hosts, record.target):
            record.injected_ns = time.monotonic_ns()
            await asyncio.sleep(seconds)
            seen = await self.hosts.observe()
        record.healed_ns = time.monotonic_ns()
        record.evidence["primaries_elsewhere"] = _moved(before, seen, record.target)

    async def _cut(self, fault: PlannedFault, record: FaultRecord, before: Observation, rng: random.Random) -> None:
        assert self.cuts is not None, "cuts are planned only where they can be made"
        hosts, target = self.hosts.hosts, record.target
        others = [name for name in sorted(hosts) if name != target]
        peers = others if fault.variant == "isolated" else [rng.choice(others)]
        seconds = 1 + 5 * rng.random()
        way: Way = "one_way" if fault.variant == "one_way" else "two_way"
        pairs = [(hosts[target].endpoint, hosts[peer].endpoint) for peer in peers]
        if way == "one_way" and rng.random() < 0.5:
            pairs = [(b, a) for a, b in pairs]
            record.evidence["direction"] = f"{peers[0]} -> {target}"
        record.evidence |= {"seconds": round(seconds, 3), "peers": peers}
        links = {key: link for a, b in pairs for key, link in links_between(a, b).items()}
        try:
            for a, b in pairs:
                self.cuts.cut(a, b, way)
            record.injected_ns = time.monotonic_ns()
            await asyncio.sleep(max(0.1, seconds - 0.2))
            unanswered = _unanswered(pairs)
            seen = await self.hosts.observe()
            await asyncio.sleep(0.1)
        finally:
            dropped = self.cuts.heal()
            record.healed_ns = time.monotonic_ns()
        left = {key for a, b in pairs for key in links_between(a, b)}
        record.evidence |= {
            "packets_dropped": dropped,
            "links_before": len(links),
            "links_lost": len(set(links) - left),
            "links_unanswered": unanswered,
            "primaries_elsewhere": _moved(before, seen, target),
            "primaries_changed": _changed(before, seen),
        }

    async def _disk(self, fault: PlannedFault, record: FaultRecord, before: Observation, rng: random.Random) -> None:
        hosts, target = self.hosts, record.target
        host = hosts.hosts[target]
        what, _, shape = fault.variant.partition(", ")
        near, far = rng.sample([name for name in sorted(hosts.hosts) if name != target], 2) if len(hosts.hosts) > 2 else ("", "")
        record.evidence["peers"] = [near, far]
        down: list[str] = []
        try:
            if what == "old":
                await hosts.kill_for_good(target)
                down.append(target)
                record.evidence["copy"] = await asyncio.to_thread(disks.copy, host.data_dir, host.kept_dir)
                hosts.revive(down.pop())
                await hosts.wait_healthy()
                await asyncio.sleep(3 + 3 * rng.random())
            if shape == "with a lagging peer":
                await hosts.kill_for_good(near)
                down.append(near)
                await asyncio.sleep(WRONG_WITHIN_S)
            log_bytes = host.log_path.stat().st_size
            await hosts.kill_for_good(target)
            down.append(target)
            if what == "emptied":
                record.evidence["disk"] = await asyncio.to_thread(disks.empty, host.data_dir)
            elif what == "cut":
                record.evidence["disk"] = disks.cut(host.data_dir, rng)
            else:
                record.evidence["disk"] = await asyncio.to_thread(disks.put_back, host.data_dir, host.kept_dir)
            if shape == "with a lagging peer":
                await hosts.kill_for_good(far)
                down.append(far)
                for name in (target, near):
                    hosts.revive(name)
                    down.remove(name)
                await asyncio.sleep(WRONG_WITHIN_S)
            else:
                hosts.revive(target)
                down.remove(target)
                if shape == "with a kill":
                    await asyncio.sleep(rng.random())
                    hosts.kill(near, Supervision(1.0, tells=rng.random() < 0.5))
        finally:
            for name in down:
                hosts.revive(name)
        record.healed_ns = time.monotonic_ns()
        record.evidence["log_from"] = log_bytes

    def look_after(self, record: FaultRecord, seen: Observation) -> None:
        """Evidence that is there only when the grid is whole again."""
        if record.kind == "disk" and "log_from" in record.evidence:
            with self.hosts.hosts[record.target].log_path.open("rb") as log:
                log.seek(record.evidence["log_from"])
                lines = log.read(4 << 20).decode(errors="replace").splitlines()
            found = [line[:300] for line in lines if NOTICED.search(line)]
            record.evidence["noticed"] = len(found)
            record.evidence["noticed_first"] = found[:2]
            record.evidence["copies_installed"] = seen.counter(record.target, "copies_installed")


def _moved(before: Observation, seen: Observation, target: str) -> int:
    """Partitions whose primary was `target`, and that others serve now."""
    now = seen.primaries
    return sum(partition in now and now[partition].host != target for partition in before.primaries_of(target))


def _changed(before: Observation, seen: Observation) -> int:
    now = seen.primaries
    return sum(
        partition in now and (now[partition].host, now[partition].epoch) != (was.host, was.epoch)
        for partition, was in before.primaries.items()
    )


def _unanswered(pairs: list[Any]) -> int:
    found: list[Link] = []
    with contextlib.suppress(OSError):
        found = [link for a, b in pairs for link in links_between(a, b).values()]
    return sum(link.unanswered > 0 for link in found)
