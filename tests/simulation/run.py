"""One plan, from beginning to end: what happened, what was broken, and a digest that is the same for the same plan."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import actorgrid
from actorgrid.errors import StorageError
from actorgrid.host import host, peers
from actorgrid.replication.liveness import Times
from actorgrid.settings import ClientSettings, HostSettings
from actorgrid.testing.simulation import SimCluster, SimulationError
from tests.faults import checkers
from tests.faults.apps.fault_ledger import Ledger
from tests.simulation.callers import Callers
from tests.simulation.deeds import Deeds
from tests.simulation.judge import Judge
from tests.simulation.plan import Plan

#: After the last fault the grid has so long until it serves everything again, and every caller was answered.
LIVE_WITHIN_S = 30.0
WHOLE_WITHIN_S = 60.0
LINEARIZABLE_SAMPLE = 6
LOOK_S = 0.1


@dataclasses.dataclass(slots=True)
class Result:
    """What became of one plan.

    :ivar broken: what was found wrong; empty: nothing
    :ivar cpu_s: what it took of one core
    """

    seed: int
    broken: str
    digest: str
    counts: Counter[str]
    simulated_s: float
    cpu_s: float
    events: int
    tail: list[str]


@contextlib.contextmanager
def slower_times(factor: float) -> Iterator[None]:
    """All times of leases and elections, longer by `factor`: their order stays."""
    usual = Times()
    names = ("beat_ns", "support_ns", "election_low_ns", "election_high_ns", "stagger_ns", "resend_ns", "swap_ns")
    changed = Times(**{name: int(getattr(usual, name) * factor) for name in names})
    with mock.patch.object(host, "Times", return_value=changed), mock.patch.object(peers, "SILENCE_S", peers.SILENCE_S * factor):
        yield


@contextlib.contextmanager
def knobs_of(plan: Plan, *, bare: bool) -> Iterator[tuple[HostSettings, ClientSettings]]:
    """Settings and constants as the plan has them; if it runs bare, constants stay as they are."""
    settings: dict[str, Any] = {}
    client: dict[str, Any] = {}
    with contextlib.ExitStack() as undo:
        for name, value in plan.knobs:
            head, _, last = name.rpartition(".")
            if bare and head not in ("setting", "client"):
                continue
            if name == "times":
                undo.enter_context(slower_times(value))
            elif head in ("setting", "client"):
                kind = HostSettings if head == "setting" else ClientSettings
                (settings if head == "setting" else client)[last] = type(kind.__dataclass_fields__[last].default)(value)
            else:
                module = importlib.import_module(head)
                undo.enter_context(mock.patch.object(module, last, type(getattr(module, last))(value)))
        yield HostSettings(**settings), ClientSettings(**{"connect_timeout_s": 1.0, **client})


def run(plan: Plan, *, logs: int = logging.WARNING, keep_tail: bool = True, bare: bool = False) -> Result:
    """Run `plan`.

    :param bare: change no constants and look at no step, only at the end: what a compiled build, whose constants and classes cannot be
        changed, always does. Digests of bare runs are the same in both builds
    """
    began_s = time.process_time()
    bare = bare or actorgrid.__compiled__
    with knobs_of(plan, bare=bare) as (settings, client_settings):
        cluster = SimCluster(
            plan.seed,
            [Ledger],
            hosts=plan.hosts,
            partitions=plan.partitions,
            replicas=plan.replicas,
            settings=settings,
            client_settings=client_settings,
            clocks=plan.clocks,
            zones=plan.zones,
            supervised=plan.supervised,
            logs=logs,
        )
        broken = ""
        judge = Judge(cluster)
        with cluster, contextlib.nullcontext() if bare else judge.watching():
            try:
                _Run(cluster, plan, judge).whole()
            except SimulationError as error:
                broken = str(error)
            except Exception:
                broken = traceback.format_exc()
        for each in cluster.hosts.values():
            cluster.world.counts.update({f"disk: {name}": count for name, count in each.disk.counts.items()})
    world = cluster.world
    return Result(
        plan.seed,
        broken,
        world.digest,
        world.counts,
        world.now_ns / 1e9,
        time.process_time() - began_s,
        world.events,
        list(world.tail) if keep_tail else [],
    )


class _Run:
    def __init__(self, cluster: SimCluster, plan: Plan, judge: Judge) -> None:
        self.cluster = cluster
        self.plan = plan
        self.callers = Callers(cluster, plan)
        self.deeds = Deeds(cluster, self.callers)
        self.deeds.before_damage = judge.disk_is_damaged
        judge.is_damaged = lambda name: name in self.deeds.damaged
        judge.retired = self.deeds.has_retired
        self.judge = judge

    def whole(self) -> None:
        cluster, plan = self.cluster, self.plan
        cluster.begin()
        began_s = cluster.now_s
        self.callers.start()
        for step in plan.steps:
            self._until(began_s + step.at_s)
            self.deeds.do(step)
        self._until(began_s + plan.calm_s)
        cluster.world.note("CALM")
        self.deeds.calm()
        self._lives()
        self._ends()

    def _until(self, at_s: float) -> None:
        """Let time pass, and look from time to time whether something went wrong."""
        while (left_s := at_s - self.cluster.now_s) > 1e-6:
            self.cluster.run_for(min(0.25, left_s))

    def _lives(self) -> None:
        """The liveness phase: no fault any more, and everything has to go on."""
        cluster, callers = self.cluster, self.callers
        cluster.run_until(cluster.all_serve, LIVE_WITHIN_S, "every partition is served again", every_s=LOOK_S)
        for node in list(self.deeds.drained):
            self.deeds.do_undrain(node)
        self.deeds.do_unfreeze()
        callers.may_not_rest = True
        before = dict(callers.answered)
        cluster.run_until(
            lambda: all(callers.answered[name] > before.get(name, 0) for name in callers.alive),
            LIVE_WITHIN_S,
            "every caller is answered again",
            every_s=LOOK_S,
        )
        callers.may_not_rest = False
        cluster.run_until(self._is_whole_again, WHOLE_WITHIN_S, "every partition has all its voters in sync again", every_s=LOOK_S)

    def _is_whole_again(self) -> bool:
        return self.cluster.all_serve() and not self.deeds.asking and self.deeds.is_whole()

    def _ends(self) -> None:
        cluster, callers = self.cluster, self.callers
        callers.is_over = True
        cluster.run_until(lambda: callers.all_ended, cluster.client_settings.timeout_s + 5, "all callers end", every_s=LOOK_S)
        after = callers.read_back()
        cluster.run_until(self._replicas_are_equal, LIVE_WITHIN_S, "all replicas are equal", every_s=LOOK_S)
        records = sorted(callers.records, key=lambda record: record.began_ns)
        verdicts = [
            checkers.judge_exactly_once(records, after),
            *checkers.judge_order(records, after),
            checkers.judge_money(records, after),
            checkers.judge_linearizability(records, after, [], sample=LINEARIZABLE_SAMPLE, seed=self.plan.seed)
            if any(record.actor.startswith("h") for record in records)
            else None,
        ]
        for verdict in verdicts:
            if verdict is not None and not verdict.kept:
                raise SimulationError(f"{verdict}\n" + "\n".join(verdict.details), cluster.world)
        unexpected = [record.error for record in records if record.error and record.error.split(":")[0] not in EXPECTED_ERRORS]
        if unexpected:
            raise SimulationError(f"a caller was told {unexpected[0]}", cluster.world)
        cluster.world.counts["calls answered"] += sum(callers.answered.values())
        cluster.world.counts["calls of unknown outcome"] += sum(record.outcome == "unknown" for record in records)
        cluster.stop()

    def _replicas_are_equal(self) -> bool:
        found: dict[int, list[tuple[int, str]]] = {}
        for each in self.cluster.hosts.values():
            if each.host is not None:
                try:
                    rows = each.host.digests()
                except StorageError:  # damage that nobody had read until now: the host ends, and what it had is built anew
                    if each.name not in self.deeds.damaged:
                        raise
                    return False
                for row in rows:
                    found.setdefault(row["id"], []).append((row["applied_lsn"], row["digest"]))
        return all(len(set(rows)) == 1 and len(rows) >= self.plan.replicas for rows in found.values())


#: What callers may be told in a run of faults; anything else is a defect. `ActorError` is what a nested call's failure becomes.
EXPECTED_ERRORS = checkers.EXPECTED_ERRORS | {"ActorError"}
