"""The demo: a year of departures through replicated actors; half-way a host dies and its disk is lost; every total is checked at the end.

    make demo        or        .venv/bin/python examples/flights_demo.py --help

It starts a grid of its own with three replicas of each partition and sends four calls for each of 336,776 departures (to the aircraft,
to the airport it leaves, to the one it goes to, to the carrier). While thousands of them are in flight it kills one host process with
SIGKILL, deletes everything that host had on disk, and does nothing about it: no retry, no reconnect, no repair is in this file. Then it
reads every actor back, compares it with the same computed from the file, and compares the state of all replicas. The exit code is 0
only if all of it agrees. Actors: `flights`; data: `flights_data`; what becomes of the host: `flights_loss`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import functools
import itertools
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flights import Aircraft, Airport, Carrier, Departure, Flight, FlightKey
from flights_data import DEPARTURES_IN_ALL, Totals, departures, differences, expected_totals
from flights_loss import Gaps, Loss, directory_bytes, watch_return
from flights_report import Progressed, View, errors_console, print_tables
from rich.console import Console

from actorgrid import grid
from actorgrid.cluster.local import LocalGrid
from actorgrid.errors import ActorGridError
from actorgrid.ids import make_address, partition_of

CALLS_PER_DEPARTURE = 4
#: Keeps all hosts busy, and is answered within a fraction of a second: a longer queue would only be a longer wait for every call in it,
#: also while others take over from a host that died.
IN_FLIGHT_MAX = 4_096
#: Between two looks at the answers: large enough to fill frames, small enough to keep the connections busy.
DEPARTURES_PER_TICK = 64
ACTORS_PER_READ = 500
DIFFERENCES_SHOWN = 20
REPLICAS = 3
YEAR_QUARTERS = [datetime.date(2013, month, 1) for month in (1, 4, 7, 10)] + [datetime.date(2014, 1, 1)]


# The replay


class Replay:
    """Sends the calls of every departure, with a bound on how many are in flight, and keeps count of the answers."""

    def __init__(self, client: grid.Client) -> None:
        self._client = client
        partitions = client.partition_map.partition_count
        # Which partition an actor is in, for the gaps alone: the client finds that out by itself.
        self._partition_of = functools.cache(lambda kind, name: partition_of(make_address(kind.__name__, name), partitions))
        self.gaps = Gaps()
        self._answer_came = asyncio.Event()
        self._failure: BaseException | None = None
        self.in_flight = 0
        self.answered = 0
        self.longest_call_s = 0.0

    async def run(self, rows: Iterable[Departure], *, in_flight_max: int, at: dict[int, Callable[[], None]]) -> None:
        """Send everything and wait for every answer.

        :param at: what to do just before the departure of that number is sent
        :raises ActorGridError: a call failed; the first one that did
        """
        client, place = self._client, self._partition_of
        for number, departure in enumerate(rows):
            if number in at:
                at[number]()
            now = time.monotonic()
            for call, partition in (
                (client.call(Aircraft.count, departure.aircraft, departure), place(Aircraft, departure.aircraft)),
                (client.call(Airport.count, departure.origin, departure), place(Airport, departure.origin)),
                (client.call(Airport.expect, departure.destination, departure.origin), place(Airport, departure.destination)),
                (client.call(Carrier.count, departure.carrier, departure), place(Carrier, departure.carrier)),
            ):
                call.add_done_callback(functools.partial(self._on_answer, now, partition))
            self.in_flight += CALLS_PER_DEPARTURE
            if number % DEPARTURES_PER_TICK == 0:
                await asyncio.sleep(0)  # calls leave at the end of a tick of the loop, in one frame for each host
            await self._wait_until_at_most(in_flight_max - CALLS_PER_DEPARTURE)
        await self._wait_until_at_most(0)

    async def _wait_until_at_most(self, in_flight: int) -> None:
        while self.in_flight > in_flight and self._failure is None:
            self._answer_came.clear()
            await self._answer_came.wait()
        if self._failure is not None:
            raise self._failure

    def _on_answer(self, sent_at: float, partition: int, call: asyncio.Future[int]) -> None:
        self.in_flight -= 1
        self.gaps.answered(partition)
        self.longest_call_s = max(self.longest_call_s, time.monotonic() - sent_at)
        if not call.cancelled():
            error = call.exception()
            self.answered += error is None
            self._failure = self._failure or error
        self._answer_came.set()

    def progressed(self) -> Progressed:
        """How far it is."""
        return Progressed(self.answered // CALLS_PER_DEPARTURE, self.answered, self.in_flight)


@dataclasses.dataclass
class Outcome:
    """What the replay has to report."""

    seconds: float
    changes: int
    longest_call_s: float
    losses: list[Loss]
    gaps: Gaps


async def replay_with_loss(client: grid.Client, local_grid: LocalGrid, rows_max: int, *, with_loss: bool, view: View) -> Outcome:
    """Replay, lose a host half-way, and show how it goes."""
    replay = Replay(client)
    losses: list[Loss] = []
    tasks: list[asyncio.Task[None]] = []
    began = time.monotonic()

    async def follow(loss: Loss) -> None:
        await asyncio.to_thread(local_grid.lose_disk, loss.host)
        await watch_return(local_grid, loss, lambda: replay.answered, view.say)

    def lose_a_host() -> None:
        host = local_grid.hosts[len(local_grid.hosts) // 2].name
        info = client.partition_map.host_named(host)
        partitions = [int(each) for each in client.partition_map.partitions_of(info)] if info is not None else []
        assert replay.in_flight, "nothing is in flight: this loss would show nothing"
        assert partitions, f"{host} is primary of nothing: this loss would show nothing"
        loss = Loss(
            host,
            local_grid.host_pids()[host],
            partitions,
            directory_bytes(local_grid, host),
            replay.in_flight,
            replay.answered,
            time.monotonic() - began,
            at=time.monotonic(),
        )
        losses.append(loss)
        replay.gaps.watch(partitions)
        view.say(
            f"after {loss.replayed_s:.1f} s: killing {host} (pid {loss.pid_before}, primary of {len(partitions)} partitions) with SIGKILL "
            f"and deleting its disk ({loss.lost_bytes / 1e6:.0f} MB); {loss.in_flight:,} calls are in flight"
        )
        tasks.append(asyncio.create_task(follow(loss)))

    async with view.showing(replay.progressed, rows_max):
        try:
            # In flight at most a quarter of all, so that half-way is half-way also in a short run.
            in_flight_max = min(IN_FLIGHT_MAX, rows_max * CALLS_PER_DEPARTURE // 4)
            await replay.run(departures(rows_max), in_flight_max=in_flight_max, at={rows_max // 2: lose_a_host} if with_loss else {})
            seconds = time.monotonic() - began
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
    return Outcome(seconds, replay.answered, replay.longest_call_s, losses, replay.gaps)


# Reading back


async def read_totals(client: grid.Client, actors: Totals) -> Totals:
    """Every actor's tally and map, from the grid.

    :param actors: whose keys are the actors to read
    """
    found = Totals()
    for ids in _batches(actors.aircraft):
        found.aircraft |= dict(zip(ids, await client.map(Aircraft.read_tally, [(each,) for each in ids]), strict=True))
        flights: dict[str, dict[FlightKey, Flight]] = {each: {} for each in ids}
        for first, end in itertools.pairwise(YEAR_QUARTERS):
            pages = await client.map(Aircraft.read_flights, [(each, first, end) for each in ids])
            for each, page in zip(ids, pages, strict=True):
                flights[each].update(page)
        found.aircraft_flights |= flights
    for ids in _batches(actors.airports):
        names = [(each,) for each in ids]
        found.airports |= dict(zip(ids, await client.map(Airport.read_tally, names), strict=True))
        found.airport_days |= {each: dict(days) for each, days in zip(ids, await client.map(Airport.read_days, names), strict=True)}
        found.airport_expected |= dict(zip(ids, await client.map(Airport.read_expected, names), strict=True))
    for ids in _batches(actors.carriers):
        names = [(each,) for each in ids]
        found.carriers |= dict(zip(ids, await client.map(Carrier.read_tally, names), strict=True))
        destinations = await client.map(Carrier.read_destinations, names)
        found.carrier_destinations |= {each: dict(counts) for each, counts in zip(ids, destinations, strict=True)}
    return found


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(sorted(ids))
    while batch := list(itertools.islice(remaining, ACTORS_PER_READ)):
        yield batch


def print_loss(loss: Loss, gaps: Gaps, print_line: Callable[[str], None]) -> None:
    """When each phase happened."""
    longest_s, median_s = max(gaps.longest_s.values()), statistics.median(gaps.longest_s.values())
    print_line(
        f"{loss.host}: pid {loss.pid_before} killed after {loss.replayed_s:.1f} s with {loss.in_flight:,} calls in flight, "
        f"its disk ({loss.lost_bytes / 1e6:.0f} MB) deleted"
    )
    print_line(
        f"  others took over its {len(loss.partitions)} partitions: longest time without an answer from one of them "
        f"{longest_s * 1e3:.0f} ms (median {median_s * 1e3:.0f} ms)"
    )
    print_line(f"  back with an empty disk {loss.back_s:.1f} s after the kill, pid {loss.pid_after}")
    print_line(f"  all replicas rebuilt {loss.rebuilt_s:.1f} s after the kill; {loss.answered_meanwhile:,} calls were answered meanwhile")


def print_outcome(
    outcome: Outcome, found: Totals, digests: dict[int, dict[str, str]], wrong: Sequence[str], rows_max: int, console: Console
) -> None:
    """Times, what was lost, and whether everything agrees."""

    def print_line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    print_line(
        f"{outcome.changes:,} changes in {outcome.seconds:.1f} s: {outcome.changes / outcome.seconds:,.0f} changes/s; "
        f"longest call {outcome.longest_call_s:.2f} s; {len(outcome.losses)} host(s) lost"
    )
    for loss in outcome.losses:
        print_loss(loss, outcome.gaps, print_line)
    for name, tallies in (("aircraft", found.aircraft), ("airports", found.airports), ("carriers", found.carriers)):
        counted = sum(tally.departures for tally in tallies.values())
        print_line(f"{len(tallies):,} {name} counted {counted:,} departures")
    if all(len(set(by_host.values())) == 1 for by_host in digests.values()):
        replicas = sum(map(len, digests.values()))
        print_line(f"{replicas} replicas of {len(digests)} partitions: the digests of each partition's replicas are equal")
    if wrong:
        print_line(f"[bold red]WRONG[/]: {len(wrong):,} differences between the actors and the file, or between replicas:")
        for line in wrong[:DIFFERENCES_SHOWN]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        return
    actors = len(found.aircraft) + len(found.airports) + len(found.carriers)
    print_line(
        f"[bold green]OK[/]: {rows_max:,} departures counted exactly once, none lost, none twice "
        f"(counts, sums, maxima and maps of all {actors:,} actors compared with the file)"
    )


# The whole


async def demo(local_grid: LocalGrid, rows_max: int, *, with_loss: bool) -> bool:
    """Replay, read back, compare, print; whether everything agrees."""
    view = View()
    async with grid.connect(local_grid.address) as client:
        outcome = await replay_with_loss(client, local_grid, rows_max, with_loss=with_loss, view=view)
        view.step("counting the file")
        expected = expected_totals(rows_max)
        view.step("reading every actor back")
        found = await read_totals(client, expected)
        view.step("comparing the replicas")
        digests = await asyncio.to_thread(local_grid.read_digests)
    wrong = sorted(differences(expected, found))
    for partition, by_host in digests.items():
        if len(by_host) != min(REPLICAS, len(local_grid.hosts)) or len(set(by_host.values())) != 1:
            wrong.append(f"replicas of partition {partition} have the digests {by_host}")
    if outcome.changes != rows_max * CALLS_PER_DEPARTURE:
        wrong.insert(0, f"calls answered: expected {rows_max * CALLS_PER_DEPARTURE:,}, found {outcome.changes:,}")
    if len(outcome.losses) != with_loss or any(loss.pid_after in (0, loss.pid_before) for loss in outcome.losses):
        wrong.insert(0, f"the loss did not take place as planned: {outcome.losses}")
    console = Console()
    print_tables(found, console)
    print_outcome(outcome, found, digests, wrong, rows_max, console)
    return not wrong


@contextlib.contextmanager
def data_directory(keep: bool) -> Iterator[Path]:
    """A new directory for the grid, removed at the end unless it is to be kept."""
    if keep:
        yield Path(tempfile.mkdtemp(prefix="actorgrid-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="actorgrid-demo-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextlib.contextmanager
def without_interrupts_at_the_end() -> Iterator[None]:
    """A second Ctrl-C, while the grid is being ended because of the first, must not leave half of it running."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything agrees, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=DEPARTURES_IN_ALL, metavar="N", help="only the first N departures, at least 1000")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="hosts of the grid (3)")
    parser.add_argument("--keep", action="store_true", help="keep the grid's data, and say where they are")
    parser.add_argument("--no-kill", action="store_true", help="kill no host, delete nothing")
    options = parser.parse_args(arguments)
    if not 1000 <= options.rows <= DEPARTURES_IN_ALL:
        parser.error(f"--rows: expected 1000 to {DEPARTURES_IN_ALL}, got {options.rows}")
    if options.nodes < REPLICAS and not options.no_kill:
        parser.error(f"--nodes: a host's disk is lost on the way, which takes {REPLICAS} nodes (or --no-kill), got {options.nodes}")
    # Everything that may end the demo ends it as Ctrl-C does, through the `with` blocks that end what was started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with data_directory(options.keep) as data:
            errors_console.print(f"starting a grid of {options.nodes} hosts in {data} ...", highlight=False)
            local_grid = LocalGrid(nodes=options.nodes, replicas=REPLICAS, app=["flights"], app_path=[Path(__file__).parent], data=data)
            with local_grid, without_interrupts_at_the_end():
                agrees = asyncio.run(demo(local_grid, options.rows, with_loss=not options.no_kill))
            if options.keep:
                errors_console.print(f"the grid's data are in {data}", highlight=False)
    except KeyboardInterrupt:
        errors_console.print("interrupted; the grid is ended")
        return 130
    except (ActorGridError, FileNotFoundError, TimeoutError) as error:
        errors_console.print(f"{type(error).__name__}: {error}", markup=False, highlight=False)
        return 1
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
