"""Rows of other systems: the same operations at the same concurrency, in the same run; of many callers in turns with a grid."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.bench import Bench, quiet_collector
from bench.beside import GridBeside, times_of
from bench.load import Load
from bench.machine import CpuMeter, MachineWatch
from bench.measure import measure, points_of, run_of
from bench.peers import MissingPeerError, Peer, known
from bench.ratios import LIMIT_SYSTEM
from bench.results import OURS, Faults, Mark, Missing, Row
from bench.scenarios.faults import callers
from bench.turns import Line, TurnError, take_turns

#: Turns for each run of a row: each takes that part of the run's time.
ROUNDS = 3
#: Long enough to see the end of a gap of several seconds.
FAULT_S = 8.0
KILL_AFTER_S = 2.0
#: Enough for etcd to make all keys, and for most peers.
FILLERS = 256
FILL_S = 2.0


def choose(text: str) -> list[str]:
    """Names of the peers that are asked for: ``all``, ``none``, or names separated by commas.

    :raises ValueError: one is not known
    """
    names = list(known())
    if text in ("", "none"):
        return []
    if text == "all":
        return names
    wanted = [name.strip() for name in text.split(",")]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"no peer {', '.join(unknown)}; known are {', '.join(names)}, all, none")
    return wanted


async def measure_peer(
    bench: Bench, name: str, scenarios: Iterable[str], *, on_error: Callable[[Missing], None], beside: GridBeside | None = None
) -> None:
    """Add the rows of one peer; what cannot be measured is told to `on_error`, and is no row.

    :param beside: takes turns with it where there is more than one caller
    """
    peer = known()[name]()
    wanted = set(scenarios)
    operations = [each for each in peer.operations if each in wanted or each == "echo"]
    is_faulty = peer.faults and "failover" in wanted
    if not operations and not is_faulty:
        return
    bench.say(f"starting {name}")
    directory = Path(tempfile.mkdtemp(prefix=f"actorgrid-bench-{name}-"))
    try:
        await peer.start(directory / "data")
        try:
            if "read" in operations and "write" in peer.operations and "write" not in operations:
                # So that reads find something; a run with writes has them before.
                await peer.load("write", in_flight=FILLERS, duration_s=FILL_S)
            for operation in operations:
                for in_flight in bench.options.concurrency:
                    if beside is not None and not beside.is_broken and in_flight > 1:
                        try:
                            await _row_in_turns(bench, peer, operation, in_flight, beside)
                            continue
                        except TurnError as error:
                            if error.system != OURS:
                                raise
                            beside.is_broken = True
                            on_error(without_grid(error))
                    await _row(bench, peer, operation, in_flight)
            if "write" in peer.operations and is_faulty:
                await _fault_row(bench, peer)
        finally:
            await peer.stop()
    except MissingPeerError as error:
        on_error(Missing(name, str(error)))
    except Exception as error:  # noqa: BLE001 - another system may fail in whatever way, and the rows of all others stay
        on_error(Missing(name, f"failed: {type(error).__name__}: {error}"))
    finally:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def without_grid(error: Exception) -> Missing:
    """What is told of a grid that takes no turns with peers."""
    return Missing("the grid beside the peers", f"{type(error).__name__}: {error}"[:600])


def _row_of(peer: Peer, scenario: str, operation: str, in_flight: int) -> Row:
    return Row(
        scenario=scenario,
        operation=operation,
        system=peer.name,
        durability=f"{peer.what}; {peer.durability}" if peer.what else peer.durability,
        actors=peer.actors,
        in_flight=in_flight,
    )


async def _row(bench: Bench, peer: Peer, operation: str, in_flight: int) -> None:
    options = bench.options
    bench.say(f"{peer.name}: {operation}, {in_flight:,} in flight")
    row = _row_of(peer, operation, operation, in_flight)

    async def load(duration_s: float) -> Load:
        return await peer.load(operation, in_flight=in_flight, duration_s=duration_s)

    with quiet_collector():
        await measure(row, load, pids=peer.pids, duration_s=options.duration_s, runs=options.runs, warm_up_s=options.warm_up_s)
    bench.rows.append(row)


async def _row_in_turns(bench: Bench, peer: Peer, operation: str, in_flight: int, beside: GridBeside) -> None:
    bench.say(f"{peer.name}: {operation}, {in_flight:,} in flight, in turns with a grid")

    async def load(duration_s: float) -> Load:
        return await peer.load(operation, in_flight=in_flight, duration_s=duration_s)

    theirs = Line(_row_of(peer, operation, operation, in_flight), load, peer.pids)
    ours = {each: await beside.line(each, in_flight) for each in (("write", "read") if operation == LIMIT_SYSTEM else (operation,))}
    turn_s = bench.options.duration_s / ROUNDS
    await take_turns([theirs, *ours.values()], rounds=ROUNDS * bench.options.runs, turn_s=turn_s, warm_up_s=bench.options.warm_up_s)
    row = theirs.fill_in()
    row.beside = {each: times_of(line, theirs) for each, line in ours.items()}
    bench.rows.append(row)


async def _fault_row(bench: Bench, peer: Peer) -> None:
    """Kill one of its nodes under load. It comes last: the node does not come back."""
    in_flight = callers(bench)
    bench.say(f"{peer.name}: failover, {in_flight} in flight")
    row = _row_of(peer, "failover", "write", in_flight)
    await peer.load("write", in_flight=in_flight, duration_s=bench.options.warm_up_s)
    watch, meter, began_s = MachineWatch(), CpuMeter(peer.pids()), time.monotonic()
    loading = asyncio.create_task(peer.load("write", in_flight=in_flight, duration_s=max(FAULT_S, bench.options.duration_s)))
    try:
        await asyncio.sleep(KILL_AFTER_S)
        meter.sample()
        await peer.kill_one()
        killed_s = time.monotonic() - began_s
    finally:
        load = await loading
    row.fill([run_of(load, meter.used_s(), watch)])
    row.failed, row.errors, row.latencies = load.failed, load.errors, load.latencies.encode()
    row.timeline, row.marks = points_of(load.timeline), [Mark(killed_s, "SIGKILL of one node")]
    verdict = await peer.verdict()
    row.faults = Faults(
        acknowledged=verdict.acknowledged,
        failed=load.failed,
        lost=verdict.lost,
        doubled=verdict.doubled,
        longest_gap_ms=load.longest_gap_s * 1e3,
    )
    bench.rows.append(row)
