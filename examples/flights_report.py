"""What the demo shows while it runs (on stderr), and the tables at its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple

from flights import Tally
from flights_data import Totals
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

#: Where there is no terminal to draw a bar on.
LINE_INTERVAL_S = 5.0

errors_console = Console(stderr=True)


class Progressed(NamedTuple):
    """How far the replay is."""

    departures: int
    changes: int
    in_flight: int


class View:
    """A progress bar on a terminal; elsewhere a line now and then. On stderr: stdout has the result alone."""

    def __init__(self) -> None:
        self._is_terminal = errors_console.is_terminal
        self._progress = Progress(
            TextColumn("departures"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=errors_console,
            auto_refresh=False,
        )

    def say(self, text: str) -> None:
        """One line that stays."""
        errors_console.print(text, style="bold", highlight=False)

    def step(self, text: str) -> None:
        """What is done now."""
        errors_console.print(f"{text} ...", highlight=False)

    @contextlib.asynccontextmanager
    async def showing(self, look: Callable[[], Progressed], rows_max: int) -> AsyncIterator[None]:
        """Show what `look` sees, again and again, for the length of the block."""
        show = self._show_bar if self._is_terminal else self._show_lines
        task = asyncio.create_task(show(look, rows_max))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _show_bar(self, look: Callable[[], Progressed], rows_max: int) -> None:
        began = time.monotonic()
        bar = self._progress.add_task("", total=rows_max, state="")

        def refresh() -> None:
            now = look()
            rate = now.changes / max(time.monotonic() - began, 0.001)
            state = f"{rate:,.0f} changes/s, {now.in_flight:,} in flight"
            self._progress.update(bar, completed=now.departures, state=state, refresh=True)

        with self._progress:
            try:
                while True:
                    refresh()
                    await asyncio.sleep(0.1)
            finally:
                refresh()

    async def _show_lines(self, look: Callable[[], Progressed], rows_max: int) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(LINE_INTERVAL_S)
            now = look()
            rate = now.changes / (time.monotonic() - began)
            errors_console.print(f"{now.departures:,} of {rows_max:,} departures, {rate:,.0f} changes/s", highlight=False)


def print_tables(totals: Totals, console: Console) -> None:
    """The year in numbers, as the actors have it."""

    def table(title: str, actors: Iterable[tuple[str, Tally]]) -> Table:
        result = Table(title=title, title_justify="left")
        result.add_column("")
        for heading in ("departures", "cancelled", "late, mean", "late, most", "arrived late"):
            result.add_column(heading, justify="right")
        for name, tally in actors:
            departed = tally.departures - tally.cancelled
            result.add_row(
                name,
                f"{tally.departures:,}",
                f"{tally.cancelled:,}",
                f"{tally.departure_delay_sum_min / departed:.1f} min" if departed else "-",
                f"{tally.departure_delay_max_min} min" if departed else "-",
                f"{tally.arrival_delay_sum_min / tally.arrivals:.1f} min" if tally.arrivals else "-",
            )
        return result

    def most_departures(tallies: dict[str, Tally], count: int) -> list[tuple[str, Tally]]:
        return sorted(tallies.items(), key=lambda item: (-item[1].departures, item[0]))[:count]

    console.print(table("Carriers", most_departures(totals.carriers, len(totals.carriers))))
    console.print(
        table("Airports of departure", [each for each in most_departures(totals.airports, len(totals.airports)) if each[1].departures])
    )
    console.print(table("Aircraft with most departures (NA: no tail number given, all cancelled)", most_departures(totals.aircraft, 6)))
    destinations = Table(title="Airports most flown to", title_justify="left")
    destinations.add_column("")
    destinations.add_column("departures to it", justify="right")
    for name, (count, _) in sorted(totals.airport_expected.items(), key=lambda item: (-item[1][0], item[0]))[:5]:
        destinations.add_row(name, f"{count:,}")
    console.print(destinations)
