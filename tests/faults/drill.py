"""``python -m tests.faults.drill``: hosts come, go, are drained, restarted and killed under load. Does anybody notice?

Client processes change, transfer and read without pause. Meanwhile operators do what operators do, by the commands they have. For every
move that placement makes, the gap is the time that the slowest call to that partition took of those that were under way during the move;
a step's rate is compared with that of the steady time before it, and so are its gaps, with windows of the same length without any move.
Afterwards every actor is read back and judged as in `tests.faults.campaign`: nothing lost, nothing twice, nothing stale, replicas equal.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import dataclasses
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from actorgrid.cli.placement import EndedMoves
from actorgrid.errors import ActorGridError
from bench.machine import MachineWatch
from tests.faults import checkers
from tests.faults.campaign import clean_up_on_sigterm, environment, read_back
from tests.faults.checkers import Verdict, percentile
from tests.faults.grid_processes import GridProcesses, Supervision
from tests.faults.history import Record, partition_of_actor
from tests.faults.load import LoadProcesses

STEP_TIMEOUT_S = 120.0
LOOK_S = 0.1
HOSTS_MAX = 6
SHORT_STEPS = 4
CANCELLED_AFTER_S = 0.8
#: Calls that begin so soon after a move belong to it.
AFTER_S = 0.05
CALL_MAX_NS = 35 * 10**9


@dataclasses.dataclass
class Step:
    """One thing that operators did. Times are monotonic ns.

    :ivar busy: the part of all processors that was in use
    """

    name: str
    began_ns: int = 0
    ended_ns: int = 0
    moves: int = 0
    swaps: int = 0
    calls_per_s: float = 0.0
    part_of_before: float = 0.0
    failed: int = 0
    busy: float = 0.0
    estimated_s: float = 0.0
    gap_p50_ms: float = 0.0
    gap_p99_ms: float = 0.0
    gap_max_ms: float = 0.0


@dataclasses.dataclass
class Drilled:
    """Everything that is known when it is over."""

    steps: list[Step]
    moves: list[dict[str, Any]]
    records: list[Record]
    verdicts: list[Verdict]
    steady_per_s: float
    steady_busy: float
    gaps_ms: dict[str, list[float]]


class Operator:
    """Does what a person with the command line does."""

    def __init__(self, hosts: GridProcesses) -> None:
        self.hosts = hosts
        self.moves: dict[int, dict[str, Any]] = {}  # by number
        self.estimated_s = 0.0  # what the drains begun since this was set to 0 were to take, together
        #: Date less monotonic clock, ms: the manager tells dates.
        self._offset_ms = time.time_ns() / 1e6 - time.monotonic_ns() / 1e6

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask any host that answers, again while the manager is moving."""
        deadline = time.monotonic() + 20
        while True:
            for name, host in self.hosts.hosts.items():
                if host.is_alive and not host.is_stopped:
                    try:
                        return await self.hosts.ask(name, verb, arguments, timeout_s=3.0)
                    except ActorGridError as error:
                        last = error
            if time.monotonic() > deadline:
                raise last
            await asyncio.sleep(0.1)

    async def watch_moves(self) -> None:
        """Collect what managers have had done, for ever: each knows only its own."""
        ended = EndedMoves()
        while True:
            try:
                answer = await self.ask("moves", since=ended.since)
                for move in ended.take(answer["moves"]):
                    began_ns = int((move["at_ms"] - self._offset_ms) * 1e6)
                    self.moves[move["number"]] = {**move, "began_ns": began_ns}
            except ActorGridError:
                pass
            await asyncio.sleep(0.3)

    async def drain(self, node: str, intent: str) -> None:
        """Ask how long it would take, and begin it."""
        self.estimated_s += max(0.0, (await self.ask("drain", node=node, intent=intent, estimate=True))["estimate_s"])
        await self.ask("drain", node=node, intent=intent)

    async def drained(self, node: str) -> dict[str, Any]:
        return await self._until(lambda: self.ask("drain_status", node=node), lambda row: row["state"] == "done", f"{node} is drained")

    async def known(self, host: str) -> Any:
        def is_so(answer: Any) -> bool:
            return any(host in row["hosts"] and row["state"] == "up" for row in answer["nodes"])

        return await self._until(lambda: self.ask("nodes"), is_so, f"{host} is known")

    async def balanced(self) -> Any:
        def is_so(answer: Any) -> bool:
            counts = [(row["replicas"], row["primaries"]) for row in answer["nodes"] if row["intent"] == "none" and row["state"] == "up"]
            spreads = [max(column) - min(column) for column in zip(*counts, strict=True)]
            return bool(answer["is_balanced"]) and max(spreads) <= 1

        return await self._until(lambda: self.ask("nodes"), is_so, "the grid is balanced")

    async def _until(self, ask: Callable[[], Awaitable[Any]], is_so: Callable[[Any], bool], what: str) -> Any:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not is_so(answer := await ask()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {STEP_TIMEOUT_S:g} s: {what}; {str(answer)[:600]}")
            await asyncio.sleep(LOOK_S)
        return answer

    async def restart(self, name: str) -> None:
        """SIGTERM, and the supervisor starts it again."""
        host = self.hosts.hosts[name]
        host.kill_expected = True
        host.supervision = Supervision(restart_after_s=0.5, tells=False)
        process = host.process
        host.signal(signal.SIGTERM)
        await self._until_host(lambda: host.process is not process and host.is_alive)
        await self.hosts.wait_answering()

    async def _until_host(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError("a host did not come back")
            await asyncio.sleep(0.02)

    async def kill_manager(self) -> str:
        """SIGKILL of the host that has the manager; it comes back."""
        name = str((await self.ask("nodes"))["manager"])
        self.hosts.kill(name, Supervision(restart_after_s=1.5, tells=True))
        await asyncio.sleep(0.3)
        return name


Action = Callable[[], Awaitable[None]]


def operations(operator: Operator, added: str, interlude: Action) -> list[tuple[str, Action]]:
    """What operators do, in order.

    :param added: the host that joins
    :param interlude: what happens in the middle of each
    """
    hosts = operator.hosts

    async def add() -> None:
        await hosts.add(added)
        await operator.known(added)
        await interlude()
        await operator.balanced()

    async def drain(node: str, intent: str) -> None:
        await operator.drain(node, intent)
        await interlude()
        await operator.drained(node)

    async def take_back(*nodes: str) -> None:
        for node in nodes:
            await operator.ask("undrain", node=node)
        await interlude()
        await operator.balanced()

    async def restart() -> None:
        await drain("node-2", "restart")
        await operator.restart("host-2")
        await operator.ask("undrain", node="node-2")
        await operator.balanced()

    async def cancel() -> None:
        await operator.drain("node-3", "remove_node")
        await asyncio.sleep(CANCELLED_AFTER_S)
        await take_back("node-3")

    async def two() -> None:
        await operator.drain("node-1", "remove_node")
        await drain("node-2", "remove_node")
        await operator.drained("node-1")

    return [
        (f"add {added}", add),
        ("drain node-1, remove_node", lambda: drain("node-1", "remove_node")),
        ("take node-1 back", lambda: take_back("node-1")),
        ("drain and restart node-2", restart),
        ("cancel a drain half-way", cancel),
        ("drain two at once", two),
        ("take both back", lambda: take_back("node-1", "node-2")),
    ]


def steps_of(operator: Operator, *, short: bool) -> list[tuple[str, Action]]:
    """All operations, the first ones only, or all of them and then once more with the manager's host killed in the middle of each."""

    async def nothing() -> None: ...

    async def kill() -> None:
        await asyncio.sleep(0.4)
        await operator.kill_manager()
        await operator.hosts.wait_answering()

    once = operations(operator, "host-4", nothing)
    if short:
        return once[:SHORT_STEPS]
    # Two can be away at once since there are five nodes; with four it would be `write_quorum` that stops the second.
    calm = [*once[:5], ("add host-5", operations(operator, "host-5", nothing)[0][1]), *once[5:]]
    return [*calm, *((f"{name}, manager killed", action) for name, action in operations(operator, "host-6", kill))]


class Misfortune:
    """Random operations, one after another, never more at a time than a partition survives; at the end everything is taken back."""

    def __init__(self, operator: Operator, seed: int) -> None:
        self._operator = operator
        self._rng = random.Random(f"{seed}/operations")
        self._wanted = ""  # the node that somebody wants something of

    async def one(self) -> str:
        """Do something; what it was."""
        operator, hosts, rng = self._operator, self._operator.hosts, self._rng
        names = list(hosts.hosts)
        name = rng.choice(names)
        node = name.replace("host", "node")
        what = rng.choice(("drain", "undrain", "kill", "stop", "restart", "add", "pause"))
        if what == "add" and len(names) < HOSTS_MAX:
            added = f"host-{len(names) + 1}"
            await hosts.add(added)
            await operator.known(added)
        elif what == "drain" and not self._wanted and len(names) > 3:
            what = f"drain {node} {(intent := rng.choice(('pause', 'restart', 'remove_node', 'remove_data')))}"
            self._wanted = node
            await operator.ask("drain", node=node, intent=intent)
        elif what == "undrain" and self._wanted:
            what = f"undrain {self._wanted}"
            await operator.ask("undrain", node=self._wanted)
            self._wanted = ""
        elif what == "kill":
            what = f"kill {name}"
            hosts.kill(name, Supervision(restart_after_s=rng.choice((0.5, 1.5, 3.0)), tells=rng.random() < 0.5))
        elif what == "stop":
            what = f"stop {name}"
            hosts.pause(name)
            try:
                await asyncio.sleep(0.5 + 3 * rng.random())
            finally:
                hosts.resume(name)
        elif what == "restart":
            what = f"restart {name}"
            await operator.restart(name)
        else:
            what = "wait"
        await asyncio.sleep(rng.choice((0.2, 1.0, 3.0, 6.0)))
        # One trouble at a time: what was killed is back before the next.
        await hosts.wait_answering()
        return what

    async def end(self) -> None:
        """Nothing is wanted any more, and the grid comes to rest, balanced."""
        if self._wanted:
            await self._operator.ask("undrain", node=self._wanted)
        await self._operator.balanced()


async def drill(
    directory: Path,
    *,
    seed: int,
    partitions: int,
    callers: int,
    think_s: float,
    short: bool,
    console: Console,
    random_s: float = 0.0,
) -> Drilled:
    """Everything, from an empty directory to verdicts."""
    steps: list[Step] = []
    async with GridProcesses(directory / "grid", partitions=partitions, settings={"placement_quiet_s": 2.0}) as hosts:
        operator = Operator(hosts)
        per_process = max(2, callers // 4)
        load = LoadProcesses(
            directory / "load", hosts, seed=seed, callers={"mixed": per_process}, probe=False, think_s=think_s, cold_actors=16 * partitions
        )
        problem, steady_busy = "", 0.0

        async def take(name: str, action: Callable[[], Awaitable[str | None]]) -> None:
            """One step; its name is what `action` says that it did, else `name`."""
            load.check_alive()
            operator.estimated_s = 0.0
            step = Step(name, began_ns=time.monotonic_ns())
            steps.append(step)
            watch = MachineWatch()
            step.name = await action() or name
            step.ended_ns = time.monotonic_ns()
            step.busy = watch.stop().busy
            step.estimated_s = operator.estimated_s
            console.print(f"{step.name}: {(step.ended_ns - step.began_ns) / 1e9:.1f} s", highlight=False)

        async with load:
            watching = asyncio.create_task(operator.watch_moves())
            try:
                await operator.balanced()
                watch = MachineWatch()
                await asyncio.sleep(6)
                steady_busy = watch.stop().busy
                misfortune, ends_at = Misfortune(operator, seed), time.monotonic() + random_s
                while time.monotonic() < ends_at:
                    await take("something at random", misfortune.one)
                if random_s:
                    await misfortune.end()
                for name, action in [] if random_s else steps_of(operator, short=short):
                    await take(name, action)
                    await asyncio.sleep(2)
            except (TimeoutError, ActorGridError, RuntimeError, AssertionError) as error:
                problem = f"{steps[-1].name if steps else 'before'}: {type(error).__name__}: {error}"
            finally:
                await asyncio.sleep(0.5)
                watching.cancel()
        records = load.records()
        after = await read_back(hosts, records)
        deadline = time.monotonic() + 30
        while (
            not (equal := checkers.judge_digests(await hosts.digests(), partitions=partitions, replicas=3)) and time.monotonic() < deadline
        ):
            await asyncio.sleep(0.5)
        unexpected = [f"client {status.process}: {each}" for status in load.statuses() for each in status.unexpected]
        verdicts = [
            Verdict("every step came to its end", not problem, {"steps": len(steps)}, (problem,) if problem else ()),
            checkers.judge_exactly_once(records, after),
            *checkers.judge_order(records, after),
            checkers.judge_money(records, after),
            equal,
            *checkers.judge_errors(records, unexpected),
        ]
    moves = sorted(operator.moves.values(), key=lambda move: move["began_ns"])
    steady, gaps = fill_in(steps, moves, records, partitions)
    return Drilled(steps, moves, records, verdicts, steady, steady_busy, gaps)


class Slowest:
    """The slowest call to a partition among those under way at some time."""

    def __init__(self, records: Sequence[Record], partitions: int) -> None:
        self._calls: dict[int, list[tuple[int, int]]] = defaultdict(list)
        known: dict[str, int] = {}
        for record in records:
            if record.outcome == "ok":
                partition = known.setdefault(record.actor, partition_of_actor(record.actor, partitions))
                self._calls[partition].append((record.began_ns, record.ended_ns))
        for calls in self._calls.values():
            calls.sort()

    def of(self, partition: int, since_ns: int, until_ns: int) -> float:
        """In ms; 0 if there was none."""
        calls = self._calls[partition]
        last = bisect.bisect(calls, (until_ns, 0))
        # What took longer than this would be a broken promise by itself, and is found there.
        first = bisect.bisect(calls, (since_ns - CALL_MAX_NS, 0))
        return max((ended - began for began, ended in calls[first:last] if ended >= since_ns), default=0) / 1e6


def fill_in(
    steps: Sequence[Step], moves: Sequence[dict[str, Any]], records: Sequence[Record], partitions: int
) -> tuple[float, dict[str, list[float]]]:
    """Rates and gaps of every step, from what callers saw; the steady rate, and all gaps by kind of move."""
    all_ends = sorted(record.ended_ns for record in records if record.outcome == "ok")
    slowest = Slowest(records, partitions)
    failed = sorted(record.began_ns for record in records if record.outcome in ("refused", "unknown"))
    first_ns = steps[0].began_ns if steps else 0
    steady = _count(all_ends, first_ns - 5 * 10**9, first_ns) / 5
    gaps: dict[str, list[float]] = {"build": [], "swap": [], "remove": []}
    gaps["nothing"] = [
        slowest.of(partition, first_ns - (each + 1) * 10**8, first_ns - each * 10**8)
        for partition in range(1, partitions + 1)
        for each in range(0, 40, 4)
    ]
    for step in steps:
        step.ended_ns = step.ended_ns or time.monotonic_ns()
        inside = [move for move in moves if step.began_ns <= move["began_ns"] <= step.ended_ns and move["outcome"] == "done"]
        step.moves = sum(move["what"] == "build" for move in inside)
        step.swaps = sum(move["what"] == "swap" for move in inside)
        step.calls_per_s = _count(all_ends, step.began_ns, step.ended_ns) / ((step.ended_ns - step.began_ns) / 1e9)
        step.part_of_before = step.calls_per_s / steady if steady else 0.0
        step.failed = _count(failed, step.began_ns, step.ended_ns)
        found = []
        for move in inside:
            if move["what"] in gaps and move["partition"]:
                gap = slowest.of(move["partition"], move["began_ns"], move["began_ns"] + int((move["seconds"] + AFTER_S) * 1e9))
                gaps[move["what"]].append(gap)
                found.append(gap)
        if found:
            step.gap_p50_ms, step.gap_p99_ms, step.gap_max_ms = (percentile(found, share) for share in (0.5, 0.99, 1.0))
    return steady, gaps


def _count(sorted_ns: Sequence[int], since_ns: int, until_ns: int) -> int:
    return bisect.bisect(sorted_ns, until_ns) - bisect.bisect(sorted_ns, since_ns)


def show(drilled: Drilled, console: Console) -> None:
    """Tables of steps, gaps and verdicts."""
    columns = ["step", "s", "estimate", "builds", "swaps", "calls/s", "of before", "CPUs", "not ok", "gap p50 ms", "p99 ms", "max ms"]
    table = Table(
        *columns,
        title=f"under load, {drilled.steady_per_s:,.0f} calls/s and {drilled.steady_busy:.0%} of the processors before; {environment()}",
    )
    for step in drilled.steps:
        table.add_row(
            step.name,
            f"{(step.ended_ns - step.began_ns) / 1e9:.1f}",
            f"{step.estimated_s:.1f}" if step.estimated_s else "",
            str(step.moves),
            str(step.swaps),
            f"{step.calls_per_s:,.0f}",
            f"{step.part_of_before:.2f}",
            f"{step.busy:.0%}" if step.busy else "",
            str(step.failed),
            f"{step.gap_p50_ms:.1f}",
            f"{step.gap_p99_ms:.1f}",
            f"{step.gap_max_ms:.1f}",
        )
    console.print(table)
    for what, gaps in drilled.gaps_ms.items():
        if gaps:
            p50, p99 = percentile(gaps, 0.5), percentile(gaps, 0.99)
            console.print(
                f"{what}: {len(gaps)} times, slowest call to their partition p50 {p50:.1f}, p99 {p99:.1f}, max {max(gaps):.1f} ms",
                highlight=False,
            )
    for verdict in drilled.verdicts:
        console.print(str(verdict), highlight=False, markup=False)
        for detail in verdict.details[:5]:
            console.print(f"  {detail}", highlight=False, markup=False)


def plot(drilled: Drilled, path: Path) -> None:
    """Calls/s and latency over time, with the steps and the moves marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ok = [record for record in drilled.records if record.outcome == "ok"]
    origin_ns = min(record.began_ns for record in ok)
    rates: dict[int, int] = defaultdict(int)
    slowest: dict[int, float] = defaultdict(float)
    for record in ok:
        slot = (record.ended_ns - origin_ns) // 250_000_000
        rates[slot] += 1
        slowest[slot] = max(slowest[slot], (record.ended_ns - record.began_ns) / 1e6)
    slots = sorted(rates)[1:-1]
    seconds = [slot / 4 for slot in slots]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(14, 8))
    above.plot(seconds, [4 * rates[slot] for slot in slots], linewidth=1)
    above.set_ylabel("calls/s")
    above.set_ylim(bottom=0)
    below.plot(seconds, [slowest[slot] for slot in slots], linewidth=1)
    below.set_ylabel("slowest call, ms")
    below.set_yscale("log")
    below.set_xlabel("seconds")
    for number, step in enumerate(drilled.steps):
        for axis in (above, below):
            axis.axvspan((step.began_ns - origin_ns) / 1e9, (step.ended_ns - origin_ns) / 1e9, alpha=0.12 if number % 2 else 0.2)
        above.text((step.began_ns - origin_ns) / 1e9, above.get_ylim()[1], step.name, rotation=30, fontsize=8, va="bottom")
    for what, colour in (("build", "tab:green"), ("swap", "tab:red")):
        at = [(move["began_ns"] - origin_ns) / 1e9 for move in drilled.moves if move["what"] == what]
        below.plot(at, [1.0] * len(at), "|", color=colour, label=what)
    below.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--callers", type=int, default=1024, help="in all four client processes")
    parser.add_argument("--think", type=float, default=0.5, help="mean pause of a caller, seconds")
    parser.add_argument("--short", action="store_true", help="the first four steps")
    parser.add_argument("--random-minutes", type=float, default=0.0, help="random operations for so long, instead of the steps")
    parser.add_argument("--plot", type=Path, default=None, help="PNG")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    clean_up_on_sigterm()
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    directory = Path(tempfile.mkdtemp(prefix="actorgrid-drill-"))
    console.print(f"seed {options.seed}, in {directory}", highlight=False)
    drilled = asyncio.run(
        drill(
            directory,
            seed=options.seed,
            partitions=options.partitions,
            callers=options.callers,
            think_s=options.think,
            short=options.short,
            console=console,
            random_s=options.random_minutes * 60,
        )
    )
    show(drilled, console)
    if options.plot is not None:
        plot(drilled, options.plot)
    if options.json is not None:
        found = {"steps": drilled.steps, "moves": drilled.moves, "gaps_ms": drilled.gaps_ms, "steady_per_s": drilled.steady_per_s}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    sys.exit(0 if all(drilled.verdicts) else 1)


if __name__ == "__main__":
    main()
