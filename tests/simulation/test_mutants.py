"""A few planted bugs must be found within a few seeds; all of them: ``python -m tests.simulation.hunt``."""

from __future__ import annotations

import pytest

from tests.simulation.hunt import main
from tests.simulation.mutants import MUTANTS, broken_by, first_line_of, try_seeds

#: From every area one or two that are found early: (mutant, what is said of it).
KNOWN = (
    ("commits-with-one-less", "I2"),
    ("sync-is-reported-when-it-begins", "I1"),
    ("key-is-not-remembered", "the key"),
    ("answer-before-commit", "I2"),
    ("older-map-overrides-the-newer", "maps"),
    ("wrong-host-is-forgotten", "roster"),
)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_there_as_long_as_it_is_on(name):
    mutant = MUTANTS[name]
    assert mutant.what
    assert mutant.breaks
    places = [(patch.owner, patch.name) for patch in mutant.patches()]
    before = [vars(owner).get(attribute) for owner, attribute in places]
    with mutant.on():
        assert all(vars(owner)[attribute] is not old for (owner, attribute), old in zip(places, before, strict=True))
    assert [vars(owner).get(attribute) for owner, attribute in places] == before


@pytest.mark.pure
@pytest.mark.parametrize(("name", "said"), KNOWN)
def test_a_mutant_is_found_within_a_few_seeds(name, said):
    caught = try_seeds(name, range(1, 16)).caught
    assert caught is not None
    assert caught.how.startswith(said)


def test_a_run_that_does_not_end_is_found():
    assert "does not end" in broken_by(MUTANTS["drain-leaves-primaries"], 1, cpu_s_max=0.02)


def test_there_are_mutants_of_every_area():
    areas = [mutant.area for mutant in MUTANTS.values()]
    least = {"replication": 10, "storage": 5, "sessions": 4, "host": 4, "client": 3, "placement": 3}
    assert {area: areas.count(area) >= count for area, count in least.items()} == dict.fromkeys(least, True)
    assert set(areas) == set(least)


def test_the_line_that_says_most_is_told():
    assert first_line_of("I1: two primaries\nseed 3, at 1.0 s") == "I1: two primaries"
    assert first_line_of("Traceback (most recent call last):\n  File\nKeyError: 3\n") == "KeyError: 3"
    died = "host-1/1: host leaves duty by a bug\nTraceback (most recent call last):\n  File\nAssertionError: I3\nseed 3"
    assert first_line_of(died) == "host-1/1: host leaves duty by a bug: AssertionError: I3"
    assert first_line_of("") == ""


def test_a_hunt_for_what_is_not_there_is_refused(capsys):
    assert main(["--only", "nothing-of-that-name"]) == 2
    assert "nothing-of-that-name" in capsys.readouterr().err
