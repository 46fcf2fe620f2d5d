"""One caller, one call at a time: the grid, a bare round trip, and etcd, in turns of half a second.

How fast a lone call is depends on how deep the processors sleep between calls, and so on what else the machine does: minutes apart, the
bare round trip alone differs by a factor of two. Held against each other are therefore the turns of one round only.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from bench.bench import Bench
from bench.book import Book
from bench.load import Load, closed_loop
from bench.peers import MissingPeerError, Peer, PeerError, known
from bench.results import Missing, Row
from bench.target import Target
from bench.turns import Line, median_ratio, take_turns
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
        await take_turns(lines, rounds=rounds, turn_s=ROUND_S, warm_up_s=ROUND_S)
    found = [line.fill_in() for line in lines]
    for place, line in theirs.items():
        operation, name = BESIDE[place]
        mine = ours[operation]
        mine.row.figures[name] = median_ratio(mine.runs, line.runs, lambda run: run.p50_ms)
    ours["write"].row.faults = await bench.judge(target, workloads["write"], books["write"], before)
    bench.rows += found


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


def _of_grid(bench: Bench, target: Target, workload: Workload, book: Book) -> Line:
    call = workload.call(target.client)

    async def load(duration_s: float) -> Load:
        return await closed_loop(call, in_flight=1, duration_s=duration_s, book=book if workload.changes else None, timeline=False)

    return Line(bench.row(target, workload, "one", workload.kind, in_flight=1), load, target.pids)


def _of_peer(peer: Peer, operation: str) -> Line:
    async def load(duration_s: float) -> Load:
        return await peer.load(operation, in_flight=1, duration_s=duration_s)

    row = Row(
        scenario="one", operation=operation, system=peer.name, durability=f"{peer.what}; {peer.durability}", actors=peer.actors, in_flight=1
    )
    return Line(row, load, peer.pids)
