"""One caller, one call at a time: the grid, a bare round trip, and etcd, in turns of half a second.

How fast a lone call is depends on how deep the processors sleep between calls, and so on what else the machine does: minutes apart, the
bare round trip alone differs by a factor of two. Held against each other are therefore the turns of one round only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.bench import Bench, quiet_collector
from bench.book import Book
from bench.load import Load, closed_loop
from bench.machine import CpuMeter, MachineWatch
from bench.measure import run_of
from bench.peers import MissingPeerError, Peer, PeerError, known
from bench.results import Missing, Row, Run
from bench.target import Target
from bench.workload import Workload

ROUND_S = 0.5
#: Or as many as ``--runs`` says.
ROUNDS = 7
#: Peers and the operations of theirs that take part, with the operation of the grid that they are held against, and the ratio's name.
BESIDE = {
    ("etcd-3", "write"): ("write", "p50_of_etcd_put"),
    ("etcd-3", "read"): ("read", "p50_of_etcd_get"),
    ("echo", "echo"): ("read", "p50_of_bare_round_trip"),
}


@dataclasses.dataclass(slots=True)
class _Line:
    """One system's turns of one operation."""

    row: Row
    load: Callable[[float], Awaitable[Load]]
    pids: Callable[[], list[int]]
    runs: list[Run] = dataclasses.field(default_factory=list)

    async def turn(self, *, counts: bool) -> None:
        watch, meter = MachineWatch(), CpuMeter(self.pids())
        load = await self.load(ROUND_S)
        used_s = meter.used_s()
        if not load.calls:
            raise RuntimeError(f"{self.row.system}: no call was answered; errors: {load.errors or 'none'}")
        if counts:
            self.runs.append(run_of(load, used_s, watch))
            self.row.failed += load.failed


async def one(bench: Bench) -> None:
    target = await bench.grids.of(bench.shape())
    workloads = {kind: Workload(kind=kind, actors=bench.actors) for kind in ("write", "read")}
    books = {kind: workload.book() for kind, workload in workloads.items()}
    await workloads["write"].prepare(target.client)
    before = await workloads["write"].read_back(target.client)
    async with contextlib.AsyncExitStack() as stack:
        peers = {name: await _started(bench, stack, name) for name in dict.fromkeys(name for name, _ in BESIDE)}
        ours = {kind: _of_grid(bench, target, workload, books[kind]) for kind, workload in workloads.items()}
        theirs = {
            (name, operation): _of_peer(peer, operation)
            for name, peer in peers.items()
            for name_of_line, operation in BESIDE
            if peer is not None and name == name_of_line
        }
        lines = [*ours.values(), *theirs.values()]
        rounds = max(ROUNDS, bench.options.runs)
        bench.say(f"one: {', '.join(f'{each.row.system} {each.row.operation}' for each in lines)}, {rounds} rounds")
        with quiet_collector():
            for number in range(rounds + 1):
                for line in lines:
                    await line.turn(counts=number > 0)
    for line in lines:
        line.row.fill(line.runs)
    for place, line in theirs.items():
        operation, name = BESIDE[place]
        mine = ours[operation]
        mine.row.figures[name] = statistics.median(a.p50_ms / b.p50_ms for a, b in zip(mine.runs, line.runs, strict=True))
    ours["write"].row.faults = await bench.judge(target, workloads["write"], books["write"], before)
    bench.rows += [line.row for line in lines]


async def _started(bench: Bench, stack: contextlib.AsyncExitStack, name: str) -> Peer | None:
    """A peer that runs until the stack is closed; None if it cannot be had, which is told."""
    peer = known()[name]()
    directory = tempfile.mkdtemp(prefix=f"actorgrid-bench-{name}-")
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    try:
        await peer.start(Path(directory) / "data")
    except (MissingPeerError, PeerError) as error:
        bench.missing.append(Missing(f"one: {name}", str(error)))
        return None
    stack.push_async_callback(peer.stop)
    return peer


def _of_grid(bench: Bench, target: Target, workload: Workload, book: Book) -> _Line:
    call = workload.call(target.client)

    async def load(duration_s: float) -> Load:
        return await closed_loop(call, in_flight=1, duration_s=duration_s, book=book if workload.changes else None, timeline=False)

    return _Line(bench.row(target, workload, "one", workload.kind, in_flight=1), load, target.pids)


def _of_peer(peer: Peer, operation: str) -> _Line:
    async def load(duration_s: float) -> Load:
        return await peer.load(operation, in_flight=1, duration_s=duration_s)

    row = Row(
        scenario="one", operation=operation, system=peer.name, durability=f"{peer.what}; {peer.durability}", actors=peer.actors, in_flight=1
    )
    return _Line(row, load, peer.pids)
