"""Whom the client asks for the map, and how often: with a clock and hosts of the test's own."""

import itertools
import random

import pytest

from actorgrid.client.map_finder import MapFinder
from actorgrid.settings import ClientSettings


class Host:
    """What a `Link` shows to the finder; it is its own connection."""

    def __init__(self, name, *, is_connected=True):
        self.name = name
        self.is_writable = is_connected
        self.connection = self if is_connected else None
        self.is_connecting = False
        self.asked = 0
        self.attempts = 0

    def write(self, frames):
        self.asked += len(frames)

    def ensure_connected(self):
        self.attempts += 1
        self.is_connecting = True


def finder(**settings):
    return MapFinder(ClientSettings(**settings), random.Random(1))


def questions(found, hosts, until, *, answers=True, every_s=0.001):
    """Ask all the time; when each question was put. Every host answers at once, and knows nothing new."""
    times, now = [], 100.0
    while now < 100.0 + until:
        before = sum(host.asked for host in hosts)
        found.ask(hosts, 1, now)
        if sum(host.asked for host in hosts) > before:
            times.append(now - 100.0)
            if answers:
                found.on_answer(now, is_newer=False)
        now += every_s
    return times


def test_questions_that_come_to_nothing_are_spaced_from_ten_to_a_hundred_milliseconds():
    hosts = [Host("a"), Host("b"), Host("c")]
    times = questions(finder(retry_first_s=0.005, retry_max_s=60), hosts, 5.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 0.004 < pauses[0] < 0.022
    assert 0.05 < max(pauses) < 0.102
    assert 50 <= len(times) <= 110
    assert max(host.asked for host in hosts) - min(host.asked for host in hosts) <= 1, "the hosts are asked in turn"


def test_a_silent_host_is_passed_over_after_a_quarter_of_a_second():
    hosts = [Host("a"), Host("b")]
    times = questions(finder(), hosts, 1.0, answers=False)
    assert times == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=0.01)
    assert [host.asked for host in hosts] == [2, 2]


@pytest.mark.parametrize("event", ["lost", "newer"])
def test_a_lost_connection_and_a_newer_map_end_the_backoff(event):
    hosts = [Host("a"), Host("b")]
    found = finder()
    last = questions(found, hosts, 3.0)[-1]
    now, asked = 100.0 + last + 0.001, sum(host.asked for host in hosts)
    found.ask(hosts, 1, now)
    assert sum(host.asked for host in hosts) == asked
    if event == "lost":
        found.on_lost(Host("gone"))
    else:
        found.on_answer(now, is_newer=True)
    assert found.is_due(now)
    found.ask(hosts, 1, now)
    assert sum(host.asked for host in hosts) == asked + 1
    found.on_answer(now, is_newer=False)
    assert found.is_due(now + 0.011), "and it begins anew"


def test_a_question_in_flight_is_waited_for_unless_the_host_asked_is_the_one_that_is_lost():
    one, other = hosts = [Host("a"), Host("b")]
    found = finder()
    found.ask(hosts, 1, 100.0)
    asked = one if one.asked else other
    found.on_lost(other if asked is one else one)
    assert not found.is_due(100.01)
    found.on_lost(asked)
    assert found.is_due(100.01)


def test_where_nobody_is_connected_one_host_after_the_other_is_tried():
    hosts = [Host("a", is_connected=False), Host("b", is_connected=False)]
    found = finder()
    now = 100.0
    for _ in range(10):
        found.ask(hosts, 0, now)
        now += 0.2
    assert [host.attempts for host in hosts] == [1, 1]
