"""Actors that count departures: one per aircraft, one per airport and one per carrier. `flights_demo.py` replays a year through them.

Nothing here knows that it is distributed, or that a host may be killed between any two lines.
"""

from __future__ import annotations

import datetime

import msgspec

from actorgrid import grid

#: Date, scheduled departure (local time, 1750 is 17:50), carrier and flight number: no two departures have the same.
FlightKey = tuple[datetime.date, int, str, int]


class Departure(msgspec.Struct, frozen=True, array_like=True):
    """One scheduled departure, flown or not. A delay of None: it did not depart (cancelled), or did not arrive as planned.

    An array on the wire and not a map with names, since more than a million of them are sent.
    """

    date: datetime.date
    scheduled_departure: int
    carrier: str
    flight: int
    aircraft: str
    origin: str
    destination: str
    departure_delay_min: int | None
    arrival_delay_min: int | None

    @property
    def key(self) -> FlightKey:
        """What tells this departure from every other."""
        return self.date, self.scheduled_departure, self.carrier, self.flight


class Flight(msgspec.Struct, frozen=True, array_like=True):
    """What an aircraft remembers of one departure."""

    origin: str
    destination: str
    departure_delay_min: int | None
    arrival_delay_min: int | None


class Tally(msgspec.Struct, array_like=True):
    """Counts, sums and maxima over some departures. Maxima are None until there was a delay to compare; early is negative."""

    departures: int = 0
    cancelled: int = 0
    departure_delay_sum_min: int = 0
    departure_delay_max_min: int | None = None
    arrivals: int = 0
    arrival_delay_sum_min: int = 0
    arrival_delay_max_min: int | None = None

    def add(self, departure: Departure) -> None:
        """Count one more departure."""
        self.departures += 1
        delay = departure.departure_delay_min
        if delay is None:
            self.cancelled += 1
        else:
            self.departure_delay_sum_min += delay
            if self.departure_delay_max_min is None or delay > self.departure_delay_max_min:
                self.departure_delay_max_min = delay
        delay = departure.arrival_delay_min
        if delay is not None:
            self.arrivals += 1
            self.arrival_delay_sum_min += delay
            if self.arrival_delay_max_min is None or delay > self.arrival_delay_max_min:
                self.arrival_delay_max_min = delay


@grid.actor
class Aircraft:
    """One aircraft, by its tail number: every flight it was planned for."""

    tally: Tally = Tally()
    flights: grid.Map[FlightKey, Flight]

    async def count(self, departure: Departure) -> int:
        """Take one departure down; the number of departures so far."""
        self.tally.add(departure)
        self.flights[departure.key] = Flight(
            departure.origin, departure.destination, departure.departure_delay_min, departure.arrival_delay_min
        )
        return self.tally.departures

    @grid.read
    async def read_tally(self) -> Tally:
        """All its departures."""
        return self.tally

    @grid.read
    async def read_flights(self, first: datetime.date, end: datetime.date) -> list[tuple[FlightKey, Flight]]:
        """Flights of the days from `first` until before `end`, in order: a part of the map, so that no answer is the whole of it."""
        return list(self.flights.scan((first,), (end,)))


@grid.actor
class Airport:
    """One airport: what departed from it, day by day, and how many flights were planned to it from where."""

    tally: Tally = Tally()
    expected: int = 0
    days: grid.Map[datetime.date, Tally]
    expected_from: grid.Map[str, int]

    async def count(self, departure: Departure) -> int:
        """Take one departure from here down; the number of departures so far."""
        self.tally.add(departure)
        # Changed in place: the grid sees it, in a field as in an entry of a Map.
        self.days.setdefault(departure.date, Tally()).add(departure)
        return self.tally.departures

    async def expect(self, origin: str) -> int:
        """Take a departure to here down; the number of those so far."""
        self.expected += 1
        self.expected_from[origin] = self.expected_from.get(origin, 0) + 1
        return self.expected

    @grid.read
    async def read_tally(self) -> Tally:
        """All departures from here."""
        return self.tally

    @grid.read
    async def read_days(self) -> list[tuple[datetime.date, Tally]]:
        """Departures by day, in order."""
        return list(self.days.items())

    @grid.read
    async def read_expected(self) -> tuple[int, dict[str, int]]:
        """How many departures to here, and how many of them from which airport."""
        return self.expected, dict(self.expected_from)


@grid.actor
class Carrier:
    """One carrier, by its two-letter code: where it flies to."""

    tally: Tally = Tally()
    destinations: grid.Map[str, Tally]

    async def count(self, departure: Departure) -> int:
        """Take one departure down; the number of departures so far."""
        self.tally.add(departure)
        self.destinations.setdefault(departure.destination, Tally()).add(departure)
        return self.tally.departures

    @grid.read
    async def read_tally(self) -> Tally:
        """All its departures."""
        return self.tally

    @grid.read
    async def read_destinations(self) -> list[tuple[str, Tally]]:
        """Departures by destination, in order."""
        return list(self.destinations.items())
