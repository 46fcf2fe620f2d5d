"""The demo: a year of departures through durable actors, with a host killed half-way, and every total checked at the end.

    make demo        or        .venv/bin/python examples/flights_demo.py --help

It starts a grid of its own, sends four calls for each of 336,776 departures (to the aircraft, to the airport it leaves, to the one
it goes to, to the carrier), kills one host process with SIGKILL while thousands of them are in flight, and does nothing about it:
no retry, no reconnect, no repair is in this file. Then it reads every actor back and compares it with the same computed from the
file. The exit code is 0 only if all of it agrees. Actors: `flights`; data: `flights_data`.
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
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flights import Aircraft, Airport, Carrier, Departure, Flight, FlightKey
from flights_data import DEPARTURES_IN_ALL, Totals, departures, differences, expected_totals
from flights_report import Progressed, View, errors_console, print_tables
from rich.console import Console

from actorgrid import grid
from actorgrid.cluster.local import LocalGrid
from actorgrid.errors import ActorGridError

CALLS_PER_DEPARTURE = 4
#: While a host is away its share of the calls waits, and those to the others should go on: enough for about a second.
IN_FLIGHT_MAX = 16_384
#: Between two looks at the answers: large enough to fill frames, small enough to keep the connections busy.
DEPARTURES_PER_TICK = 64
ACTORS_PER_READ = 500
DIFFERENCES_SHOWN = 20
HOST_BACK_TIMEOUT_S = 60.0
YEAR_QUARTERS = [datetime.date(2013, month, 1) for month in (1, 4, 7, 10)] + [datetime.date(2014, 1, 1)]


# The replay


class Replay:
    """Sends the calls of every departure, with a bound on how many are in flight, and keeps count of the answers."""

    def __init__(self, client: grid.Client) -> None:
        self._client = client
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
        client = self._client
        for number, departure in enumerate(rows):
            if number in at:
                at[number]()
            on_answer = functools.partial(self._on_answer, time.monotonic())
            for call in (
                client.call(Aircraft.count, departure.aircraft, departure),
                client.call(Airport.count, departure.origin, departure),
                client.call(Airport.expect, departure.destination, departure.origin),
                client.call(Carrier.count, departure.carrier, departure),
            ):
                call.add_done_callback(on_answer)
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

    def _on_answer(self, sent_at: float, call: asyncio.Future[int]) -> None:
        self.in_flight -= 1
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
class Kill:
    """One host killed: what was going on, and what happened meanwhile."""

    host: str
    pid_before: int
    in_flight: int
    answered_before: int
    at: float
    pid_after: int = 0
    away_s: float = 0.0
    answered_meanwhile: int = 0


def wait_until_back(local_grid: LocalGrid, kill: Kill) -> None:
    """Wait for the killed host's next process, and until that serves.

    :raises TimeoutError: there is none
    :raises ActorGridError: it does not answer
    """
    deadline = time.monotonic() + HOST_BACK_TIMEOUT_S
    while (pid := local_grid.host_pids().get(kill.host, kill.pid_before)) == kill.pid_before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{kill.host} has no new process {HOST_BACK_TIMEOUT_S:.0f} s after it was killed")
        time.sleep(0.01)
    local_grid.wait_until_serving(kill.host, timeout_s=HOST_BACK_TIMEOUT_S)
    kill.pid_after = pid
    kill.away_s = time.monotonic() - kill.at


@dataclasses.dataclass
class Outcome:
    """What the replay has to report."""

    seconds: float
    changes: int
    longest_call_s: float
    kills: list[Kill]


async def replay_with_kill(client: grid.Client, local_grid: LocalGrid, rows_max: int, *, with_kill: bool, view: View) -> Outcome:
    """Replay, kill a host half-way, and show how it goes."""
    replay = Replay(client)
    kills: list[Kill] = []
    comebacks: list[asyncio.Task[None]] = []

    async def watch_comeback(kill: Kill) -> None:
        await asyncio.to_thread(wait_until_back, local_grid, kill)
        kill.answered_meanwhile = replay.answered - kill.answered_before
        view.say(f"{kill.host} serves again, {kill.away_s:.2f} s later, as pid {kill.pid_after}; {kill.answered_meanwhile:,} calls went on")

    def kill_a_host() -> None:
        name = local_grid.hosts[len(local_grid.hosts) // 2].name
        assert replay.in_flight, "nothing is in flight: this kill would show nothing"
        kill = Kill(name, local_grid.host_pids()[name], replay.in_flight, replay.answered, at=time.monotonic())
        local_grid.kill_host(name, signal.SIGKILL)
        kills.append(kill)
        view.say(f"killed {name} (pid {kill.pid_before}) with SIGKILL; {kill.in_flight:,} calls are in flight")
        comebacks.append(asyncio.create_task(watch_comeback(kill)))

    began = time.monotonic()
    async with view.showing(replay.progressed, rows_max):
        try:
            # In flight at most a quarter of all, so that half-way is half-way also in a short run.
            in_flight_max = min(IN_FLIGHT_MAX, rows_max * CALLS_PER_DEPARTURE // 4)
            await replay.run(departures(rows_max), in_flight_max=in_flight_max, at={rows_max // 2: kill_a_host} if with_kill else {})
            seconds = time.monotonic() - began
            for comeback in comebacks:
                await comeback
        finally:
            for comeback in comebacks:
                comeback.cancel()
    return Outcome(seconds, replay.answered, replay.longest_call_s, kills)


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


def print_outcome(outcome: Outcome, found: Totals, wrong: Sequence[str], rows_max: int, console: Console) -> None:
    """Times, kills, and whether everything agrees."""
    console.print(
        f"{outcome.changes:,} changes in {outcome.seconds:.1f} s: {outcome.changes / outcome.seconds:,.0f} changes/s; "
        f"longest call {outcome.longest_call_s:.2f} s; {len(outcome.kills)} kill(s)",
        highlight=False,
        soft_wrap=True,
    )
    for kill in outcome.kills:
        console.print(
            f"{kill.host}: pid {kill.pid_before} killed with {kill.in_flight:,} calls in flight, pid {kill.pid_after} served "
            f"{kill.away_s:.2f} s later; {kill.answered_meanwhile:,} calls were answered in between",
            highlight=False,
            soft_wrap=True,
        )
    for name, tallies in (("aircraft", found.aircraft), ("airports", found.airports), ("carriers", found.carriers)):
        counted = sum(tally.departures for tally in tallies.values())
        console.print(f"{len(tallies):,} {name} counted {counted:,} departures", highlight=False, soft_wrap=True)
    if wrong:
        console.print(f"[bold red]WRONG[/]: {len(wrong):,} differences between the actors and the file:", highlight=False, soft_wrap=True)
        for line in wrong[:DIFFERENCES_SHOWN]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        return
    actors = len(found.aircraft) + len(found.airports) + len(found.carriers)
    console.print(
        f"[bold green]OK[/]: {rows_max:,} departures counted exactly once, none lost, none twice "
        f"(counts, sums, maxima and maps of all {actors:,} actors compared with the file)",
        highlight=False,
        soft_wrap=True,
    )


# The whole


async def demo(local_grid: LocalGrid, rows_max: int, *, with_kill: bool) -> bool:
    """Replay, read back, compare, print; whether everything agrees."""
    view = View()
    async with grid.connect(local_grid.address) as client:
        outcome = await replay_with_kill(client, local_grid, rows_max, with_kill=with_kill, view=view)
        view.step("counting the file")
        expected = expected_totals(rows_max)
        view.step("reading every actor back")
        found = await read_totals(client, expected)
    wrong = sorted(differences(expected, found))
    if outcome.changes != rows_max * CALLS_PER_DEPARTURE:
        wrong.insert(0, f"calls answered: expected {rows_max * CALLS_PER_DEPARTURE:,}, found {outcome.changes:,}")
    if len(outcome.kills) != with_kill or any(kill.pid_after in (0, kill.pid_before) for kill in outcome.kills):
        wrong.insert(0, f"the kill did not take place as planned: {outcome.kills}")
    console = Console()
    print_tables(found, console)
    print_outcome(outcome, found, wrong, rows_max, console)
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
    parser.add_argument("--no-kill", action="store_true", help="kill no host")
    options = parser.parse_args(arguments)
    if not 1000 <= options.rows <= DEPARTURES_IN_ALL:
        parser.error(f"--rows: expected 1000 to {DEPARTURES_IN_ALL}, got {options.rows}")
    # Everything that may end the demo ends it as Ctrl-C does, through the `with` blocks that end what was started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with data_directory(options.keep) as data:
            errors_console.print(f"starting a grid of {options.nodes} hosts in {data} ...", highlight=False)
            local_grid = LocalGrid(nodes=options.nodes, app=["flights"], app_path=[Path(__file__).parent], data=data)
            with local_grid, without_interrupts_at_the_end():
                agrees = asyncio.run(demo(local_grid, options.rows, with_kill=not options.no_kill))
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
