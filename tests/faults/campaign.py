"""``python -m tests.faults.campaign``: the proof that the grid keeps its promises while its hosts are killed, stopped, cut off and robbed.

Four client processes change, transfer and read without pause; a fifth asks every host directly, primary or not. Faults come one after
another at random moments; after each one the grid must become whole again in bounded time. Afterwards every actor is read, every
replica's digest compared, and the histories are judged. On failure all data, logs and histories are kept, and the command that repeats
the plan is printed; the moments themselves are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from rich import progress as bar
from rich.console import Console
from rich.table import Table

from actorgrid import grid
from actorgrid.errors import ActorGridError
from actorgrid.settings import ClientSettings
from tests.faults import checkers, network
from tests.faults.checkers import Gaps, ReadBack, Verdict
from tests.faults.grid_processes import Exit, GridProcesses, NotHealthyError
from tests.faults.history import Record, partition_of_actor
from tests.faults.history import load as load_records
from tests.faults.injector import FaultRecord, Injector
from tests.faults.load import Ledger, LoadProcesses
from tests.faults.plan import KINDS, make_plan
from tests.faults.progress import Progress

#: Acknowledged writes per second of the whole campaign, faults included, below which it proves nothing.
TRAFFIC_FLOOR_PER_S = 30
DIGESTS_WITHIN_S = 60.0
HEALTHY_WITHIN_S = 60.0
READ_BACK_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CampaignSettings:
    """What a campaign is told.

    :ivar warm_up_s: load alone before the first fault and after the last
    :ivar between_s: load alone after each recovery
    :ivar seconds_max: no further fault is begun after this; a campaign cut short is a failed one
    """

    seed: int
    kills: int = 50
    stops: int = 20
    cuts: int = 20
    disks: int = 10
    hosts: int = 3
    partitions: int = 16
    replica_set_size: int = 3
    processes: int = 4
    callers: dict[str, int] | None = None
    think_s: float = 0.03
    warm_up_s: float = 3.0
    between_s: float = 1.0
    seconds_max: float = 3_600.0
    lin_sample: int = 100

    def command(self, module: str = "tests.faults.campaign") -> str:
        """What repeats this campaign."""
        counts = f"--kills {self.kills} --stops {self.stops} --cuts {self.cuts} --disks {self.disks}"
        shape = f"--hosts {self.hosts} --partitions {self.partitions} --replicas {self.replica_set_size}"
        return f".venv/bin/python -m {module} --seed {self.seed} {counts} {shape}"


class Outcome(msgspec.Struct, kw_only=True):
    """What is left of a campaign: enough to judge it again. Written to ``outcome.json`` beside the histories."""

    settings: dict[str, Any]
    faults: list[FaultRecord]
    began_ns: int
    ended_ns: int
    planned: int
    #: why it came to an early end, or the empty string
    problem: str = ""
    after: dict[str, ReadBack] = {}
    digests: dict[int, dict[str, tuple[int, str, str]]] = {}
    unexpected: list[str] = []
    own_exits: list[str] = []
    told: list[dict[str, Any]] = []
    cuts_skipped: str = ""
    digests_skipped: str = ""


@dataclasses.dataclass(slots=True)
class Report:
    """The judged campaign."""

    settings: CampaignSettings
    outcome: Outcome
    verdicts: list[Verdict]
    gaps: Gaps
    directory: Path

    @property
    def kept(self) -> bool:
        return all(self.verdicts)

    def __bool__(self) -> bool:
        return self.kept

    def of(self, name: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """For each kind of fault: injected, bit, and the longest gap a caller saw around each, in seconds."""
        rows = []
        for kind in KINDS:
            for variant in [None, *sorted({each.variant for each in self.outcome.faults if each.kind == kind})]:
                faults = [each for each in self.outcome.faults if each.kind == kind and variant in (None, each.variant)]
                if not faults:
                    continue
                gaps = [each.longest_gap_ns / 1e9 for each in faults]
                whole = [(each.healthy_ns - each.injected_ns) / 1e9 for each in faults if each.healthy_ns]
                rows.append(
                    {
                        "kind": kind,
                        "variant": variant or "all",
                        "injected": len(faults),
                        "bit": sum(each.bit for each in faults),
                        "gap_p50_s": round(checkers.percentile(gaps, 0.5), 2),
                        "gap_p99_s": round(checkers.percentile(gaps, 0.99), 2),
                        "gap_max_s": round(max(gaps), 2),
                        "whole_again_max_s": round(max(whole, default=0.0), 2),
                    }
                )
        return rows

    def as_json(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "command": self.settings.command(),
            "environment": environment(),
            "seconds": round((self.outcome.ended_ns - self.outcome.began_ns) / 1e9, 1),
            "settings": self.outcome.settings,
            "problem": self.outcome.problem,
            "cuts_skipped": self.outcome.cuts_skipped,
            "digests_skipped": self.outcome.digests_skipped,
            "kinds": self.rows(),
            "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            "own_exits": self.outcome.own_exits,
            "faults": [msgspec.to_builtins(each) for each in self.outcome.faults],
        }

    def print(self, console: Console) -> None:
        table = Table(title="faults: injected, bit, and the longest time that any one caller waited for an acknowledged change around it")
        for column in ("kind", "variant", "injected", "bit", "gap p50 s", "gap p99 s", "gap max s", "whole again max s"):
            table.add_column(column, justify="left" if column in ("kind", "variant") else "right")
        for row in self.rows():
            table.add_row(*(str(value) for value in row.values()), style="bold" if row["variant"] == "all" else "")
        console.print(table)
        for verdict in self.verdicts:
            console.print(str(verdict), style="green" if verdict else "bold red", highlight=False, markup=False)
            for detail in verdict.details[:5]:
                console.print(f"    {detail}", highlight=False, soft_wrap=True, markup=False)
        if self.outcome.cuts_skipped:
            console.print(f"CUTS WERE SKIPPED: {self.outcome.cuts_skipped}", style="bold yellow")
        if self.outcome.digests_skipped:
            console.print(f"DIGESTS WERE NOT COMPARED: {self.outcome.digests_skipped}", style="bold yellow")
        seconds = (self.outcome.ended_ns - self.outcome.began_ns) / 1e9
        console.print(f"{seconds:.0f} s, {len(self.outcome.faults)} faults, seed {self.settings.seed}; {environment()}", highlight=False)
        if not self:
            console.print(f"kept: {self.directory}\nrepeat: {self.settings.command()}", style="bold", highlight=False, soft_wrap=True)


def environment() -> str:
    """The machine, in one line, for figures."""
    return (
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


class Campaign:
    """One campaign: `run` it once.

    :param directory: for data, logs and histories; made if it is not there
    :param watch: told (faults done, what goes on, acknowledged writes) now and then
    """

    def __init__(self, settings: CampaignSettings, directory: Path, watch: Callable[[int, str, int], None] | None = None) -> None:
        self.settings = settings
        self.directory = directory
        self.watch = watch or (lambda done, what, writes: None)
        self.plan = make_plan(settings.seed, kills=settings.kills, stops=settings.stops, cuts=settings.cuts, disks=settings.disks)
        self.cuts_skipped = network.reason_unusable() if settings.cuts else ""
        if self.cuts_skipped:
            self.plan = [fault for fault in self.plan if fault.kind != "cut"]

    async def run(self) -> Report:
        """Start the grid and the load, inject every fault, heal, judge."""
        if not any(fault.kind == "cut" for fault in self.plan):
            return await self._run(None)
        with network.NetworkCuts() as cuts:
            return await self._run(cuts)

    async def _run(self, cuts: network.NetworkCuts | None) -> Report:
        settings = self.settings
        outcome = Outcome(settings=dataclasses.asdict(settings), faults=[], began_ns=0, ended_ns=0, planned=len(self.plan))
        outcome.cuts_skipped = self.cuts_skipped
        async with GridProcesses(
            self.directory / "grid", hosts=settings.hosts, partitions=settings.partitions, replica_set_size=settings.replica_set_size
        ) as hosts:
            load = LoadProcesses(
                self.directory / "load",
                hosts,
                seed=settings.seed,
                processes=settings.processes,
                callers=settings.callers,
                think_s=settings.think_s,
            )
            outcome.began_ns = time.monotonic_ns()
            try:
                async with load, Progress(self.directory / "load", hosts) as progress:
                    await self._inject_all(hosts, load, cuts, progress, outcome)
            finally:
                outcome.ended_ns = time.monotonic_ns()
                outcome.own_exits = [_show_exit(each, outcome.faults) for each in hosts.own_exits]
                outcome.told = hosts.told
            outcome.unexpected = [f"client {status.process}: {each}" for status in load.statuses() for each in status.unexpected]
            self.watch(len(outcome.faults), "reading every actor", 0)
            records = load.records()
            try:
                if outcome.problem:
                    await hosts.wait_healthy(10.0)
                outcome.after = await read_back(hosts, records)
                outcome.digests, outcome.digests_skipped = await self._digests(hosts)
            except (NotHealthyError, ActorGridError, ExceptionGroup) as error:
                outcome.problem = outcome.problem or f"reading back: {error!r}"
        (self.directory / "outcome.json").write_bytes(msgspec.json.encode(outcome))
        self.watch(len(outcome.faults), "judging", 0)
        return judge(settings, outcome, records, self.directory)

    async def _inject_all(
        self, hosts: GridProcesses, load: LoadProcesses, cuts: network.NetworkCuts | None, progress: Progress, outcome: Outcome
    ) -> None:
        injector = Injector(hosts, cuts)
        outcome.faults = injector.records
        deadline = time.monotonic() + self.settings.seconds_max
        try:
            await asyncio.sleep(self.settings.warm_up_s)
            for number, fault in enumerate(self.plan):
                if time.monotonic() > deadline:
                    outcome.problem = f"{number} of {len(self.plan)} faults after {self.settings.seconds_max:g} s"
                    break
                load.check_alive()
                self.watch(number, f"{fault.kind}: {fault.variant}", load.acknowledged_writes)
                record = await injector.inject(fault)
                if number + 1 < len(self.plan) and self.plan[number + 1].follows:
                    continue
                self.watch(number, f"{fault.kind}: {fault.variant}, healing", load.acknowledged_writes)
                seen = await hosts.wait_healthy(HEALTHY_WITHIN_S)
                record.evidence["progress_s"] = round(await progress.demand(), 3)
                now = time.monotonic_ns()
                for each in injector.records:
                    if not each.healthy_ns:
                        each.healthy_ns = now
                injector.look_after(record, seen)
                await asyncio.sleep(self.settings.between_s)
            await asyncio.sleep(self.settings.warm_up_s)
            await hosts.wait_healthy(HEALTHY_WITHIN_S)
            await progress.demand()
        except (NotHealthyError, TimeoutError, RuntimeError, AssertionError) as error:
            outcome.problem = f"after {len(injector.records)} faults: {type(error).__name__}: {error}"

    async def _digests(self, hosts: GridProcesses) -> tuple[dict[int, dict[str, tuple[int, str, str]]], str]:
        """Digests when nothing changes any more: replicas are given some time to get to the same position."""
        deadline = time.monotonic() + DIGESTS_WITHIN_S
        while True:
            found = await hosts.digests()
            if not found:
                return {}, "no host answers the verb digests"
            equal = checkers.judge_digests(found, partitions=self.settings.partitions, replicas=_replicas(self.settings))
            if equal or time.monotonic() > deadline:
                return found, ""
            await asyncio.sleep(0.5)


async def read_back(hosts: GridProcesses, records: Sequence[Record]) -> dict[str, ReadBack]:
    """Everything that every actor keeps."""
    names = sorted({record.actor for record in records} | {record.to for record in records if record.kind == "transfer"})
    after: dict[str, ReadBack] = {}
    async with grid.connect(hosts.seeds, settings=ClientSettings(timeout_s=60.0)) as client:

        async def some(part: Sequence[str]) -> None:
            for name in part:
                after[name] = ReadBack(*await client.get(Ledger, name).read_all())

        async with asyncio.TaskGroup() as group:
            for number in range(READ_BACK_AT_ONCE):
                group.create_task(some(names[number::READ_BACK_AT_ONCE]))
    return dict(sorted(after.items()))


def judge(settings: CampaignSettings, outcome: Outcome, records: Sequence[Record], directory: Path) -> Report:
    """All verdicts on a campaign that is over."""
    gaps = Gaps(records)
    judge_bites(settings, outcome, records, gaps)
    windows = [(each.injected_ns, each.healthy_ns or outcome.ended_ns) for each in outcome.faults]
    seconds = (outcome.ended_ns - outcome.began_ns) / 1e9
    verdicts = [
        Verdict(
            "whole again after every fault",
            not outcome.problem and len(outcome.faults) == outcome.planned,
            {"injected": len(outcome.faults), "planned": outcome.planned},
            (outcome.problem,) if outcome.problem else (),
        )
    ]
    if outcome.after or not records:
        verdicts += [
            checkers.judge_exactly_once(records, outcome.after),
            *checkers.judge_order(records, outcome.after),
            checkers.judge_linearizability(records, outcome.after, windows, sample=settings.lin_sample, seed=settings.seed),
            checkers.judge_money(records, outcome.after),
        ]
    else:
        why = "nothing could be read back, so nothing is known of what was lost"
        verdicts.append(Verdict("every actor was read back", kept=False, numbers={"actors": 0}, details=(why,)))
        verdicts.append(checkers.judge_linearizability(records, {}, windows, sample=settings.lin_sample, seed=settings.seed))
    if not outcome.digests_skipped or settings.replica_set_size > 1:
        verdicts.append(checkers.judge_digests(outcome.digests, partitions=settings.partitions, replicas=_replicas(settings)))
    verdicts += [
        *checkers.judge_errors(records, outcome.unexpected),
        checkers.judge_traffic(records, int(seconds * TRAFFIC_FLOOR_PER_S)),
        _judge_own_exits(outcome),
        _judge_bitten(outcome),
    ]
    return Report(settings, outcome, verdicts, gaps, directory)


def _replicas(settings: CampaignSettings) -> int:
    return min(settings.replica_set_size, settings.hosts)


def judge_bites(settings: CampaignSettings, outcome: Outcome, records: Sequence[Record], gaps: Gaps) -> None:
    """Decide for each fault whether it did something, and how long callers waited around it."""
    writes = [record for record in records if record.is_acknowledged_write]
    probes = [record for record in records if record.kind == "direct"]
    for each in outcome.faults:
        evidence = each.evidence
        until = each.healthy_ns or outcome.ended_ns
        each.longest_gap_ns = gaps.longest_ns(each.injected_ns, until)
        each.longest_gap_of_all_ns = gaps.longest_of_all_ns(each.injected_ns, until)
        if each.kind == "kill":
            each.bit = evidence.get("exit_code") == -9
        elif each.kind == "disk":
            each.bit = bool(evidence.get("noticed") or evidence.get("copies_installed"))
        else:
            owned = set(evidence.get("primaries", ()))
            elsewhere = [
                record
                for record in writes
                if record.began_ns > each.injected_ns
                and 0 < record.ended_ns < each.healed_ns
                and partition_of_actor(record.actor, settings.partitions) in owned
            ]
            first_ns = min((record.ended_ns for record in elsewhere), default=0)
            evidence["acknowledged_meanwhile"] = gaps.count(each.injected_ns, each.healed_ns)
            # While this host could not serve, others changed what it had been primary of: only now can a read of it be stale.
            evidence["changed_elsewhere"] = len(elsewhere)
            evidence["asked_for_it"] = sum(
                bool(first_ns) and record.to == each.target and first_ns < record.began_ns < each.healed_ns for record in probes
            )
            if each.kind == "stop":
                each.bit = bool(owned) and evidence["acknowledged_meanwhile"] > 0
            else:
                effects = ("links_lost", "links_unanswered", "primaries_changed")
                each.bit = evidence.get("packets_dropped", 0) > 0 and any(evidence.get(effect) for effect in effects)


def _judge_own_exits(outcome: Outcome) -> Verdict:
    wrong = [each for each in outcome.own_exits if "disk" not in each]
    return Verdict(
        "no host ended by itself", not wrong, {"wrong": len(wrong), "after_disk_faults": len(outcome.own_exits) - len(wrong)}, tuple(wrong)
    )


def _show_exit(each: Exit, faults: Sequence[FaultRecord]) -> str:
    at = next((fault for fault in reversed(faults) if fault.injected_ns < each.at_ns), None)
    return f"{each.host} pid {each.pid} ended with {each.code} after fault {f'{at.number}, {at.kind}, {at.variant}' if at else 'none'}"


def _judge_bitten(outcome: Outcome) -> Verdict:
    """Every kind of fault did something, most of the time; a stop needs luck with its target, and a cut with what is under way."""
    numbers: dict[str, Any] = {}
    wrong = []
    for kind in KINDS:
        faults = [each for each in outcome.faults if each.kind == kind]
        if not faults:
            continue
        bit = sum(each.bit for each in faults)
        numbers[kind] = f"{bit}/{len(faults)}"
        if bit * 2 < len(faults):
            wrong.append(f"{kind}: {bit} of {len(faults)} did anything")
    return Verdict("faults bit", not wrong, numbers, tuple(wrong))


# -- the program


def arguments(description: str, **defaults: int) -> argparse.ArgumentParser:
    """The options that all programs of this directory have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    for name, default in {"kills": 50, "stops": 20, "cuts": 20, "disks": 10, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--minutes-max", type=float, default=60.0, help="no further fault is begun after this")
    parser.add_argument(
        "--directory", type=Path, default=None, help="for data and histories; default: a new one under the temporary directory"
    )
    parser.add_argument("--json", type=Path, default=None, help="where the report goes; default: report.json in the directory")
    parser.add_argument("--keep", action="store_true", help="keep data and histories of a campaign without findings too")
    return parser


def clean_up_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: hosts are killed, stopped ones go on first, and every cut is healed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def settings_of(options: argparse.Namespace, **changes: Any) -> CampaignSettings:
    """Settings from the options of the command line."""
    given = {
        "seed": options.seed if options.seed is not None else secrets.randbelow(1 << 32),
        "kills": options.kills,
        "stops": options.stops,
        "cuts": options.cuts,
        "disks": options.disks,
        "hosts": options.hosts,
        "partitions": options.partitions,
        "replica_set_size": options.replicas,
        "seconds_max": options.minutes_max * 60,
    }
    return CampaignSettings(**{**given, **changes})


class Watch:
    """A progress bar: faults done, what goes on, acknowledged writes."""

    def __init__(self, console: Console, total: int) -> None:
        self._writes = 0
        self._progress = bar.Progress(
            bar.SpinnerColumn(),
            bar.TextColumn("{task.fields[what]:<44}"),
            bar.BarColumn(),
            bar.MofNCompleteColumn(),
            bar.TextColumn("{task.fields[writes]:>12,} writes"),
            bar.TimeElapsedColumn(),
            bar.TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=total, what="starting", writes=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, what: str, writes: int) -> None:
        self._writes = max(self._writes, writes)
        self._progress.update(self._task, completed=done, what=what[:44], writes=self._writes)


def run_and_report(settings: CampaignSettings, options: argparse.Namespace, console: Console) -> Report:
    """Run a campaign with a progress bar, print and write the report, and clean up what nobody needs."""
    directory = options.directory or Path(tempfile.mkdtemp(prefix=f"actorgrid-faults-{settings.seed}-"))
    directory.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(settings, directory)
    console.print(f"seed {settings.seed}, {len(campaign.plan)} faults, in {directory}", highlight=False)
    if campaign.cuts_skipped:
        console.print(f"CUTS ARE SKIPPED: {campaign.cuts_skipped}", style="bold yellow")
    with Watch(console, len(campaign.plan)) as watch:
        campaign.watch = watch
        try:
            report = asyncio.run(campaign.run())
        except (NotHealthyError, TimeoutError, RuntimeError) as error:
            watch.__exit__()
            console.print(f"the grid or the load did not start: {error}", style="bold red", highlight=False, markup=False)
            console.print(f"kept: {directory}\nrepeat: {settings.command()}", style="bold", highlight=False, soft_wrap=True)
            sys.exit(1)
    report.print(console)
    path = options.json or directory / "report.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report.as_json()), indent=1))
    console.print(f"report: {path}", highlight=False)
    if report and not options.keep and options.directory is None:
        for name in ("grid", "load", "outcome.json"):
            part = directory / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        if path.parent != directory:
            directory.rmdir()
    return report


def judge_again(directory: Path, console: Console) -> Report:
    """Judge a kept campaign once more, after a judge has been changed."""
    outcome = msgspec.json.decode((directory / "outcome.json").read_bytes(), type=Outcome)
    records = load_records(sorted((directory / "load").glob("history-*.jsonl")))
    report = judge(CampaignSettings(**outcome.settings), outcome, records, directory)
    report.print(console)
    return report


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--judge", type=Path, default=None, metavar="DIRECTORY", help="judge a kept campaign again, and do nothing else")
    options = parser.parse_args()
    console = Console()
    clean_up_on_sigterm()
    report = judge_again(options.judge, console) if options.judge else run_and_report(settings_of(options), options, console)
    sys.exit(0 if report else 1)


if __name__ == "__main__":
    main()
