"""Every example runs as its reader would run it, and says what it promises; the demo too, with a host and its disk lost on the way.

Two Rays in all, one after the other: the demo's own, and one grid that serves all the other examples.
"""

from __future__ import annotations

import copy
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorgrid.cluster.local import LocalGrid

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ["bank", "collections_example", "load_example", "offload_example", "reentrancy_example"]

#: What each example prints, line by line, on a grid where it has not run before.
PROMISED = {
    "bank_demo": """\
deposit: alice has 10000
transfer: alice has 7000 and bob 3000
refused by the actor: bank.InsufficientFundsError: 99997000 cents are missing
unchanged: True
refused before the turn: Account.deposit: parameter amount: expected int, got str
paid once: True
map: [1, 2, 3]
""",
    "sync_client": """\
deposit: ann has 500
transfer: ann has 300
refused: bank.InsufficientFundsError: 999700 cents are missing
800 deposits by 8 threads: 800
map: [1, 2]
""",
    "collections_example": """\
tagged in place: Article(name='article 7', stock=8, tags=['fragile', 'heavy'])
no such article: None
a page: ['A-050', 'A-051', 'A-052']
last of the history: [('A-098', 99), ('A-099', 100)]
sizes: (100, 100)
""",
    "load_example": """\
viewers in 30 rooms: 46500
refused: grid.report_load: load must be a finite number, 0 or more, got -900
placement hears of it: True
""",
    "offload_example": """\
primes below 20,000,000: 1270607
others were answered meanwhile: True
the second time it is remembered: True
""",
    "reentrancy_example": """\
refused at once: Order.read_state was called by a chain of calls that Order/77 itself waits for: \
Order/77 -> Packer/pam -> Order/77; mark it @grid.reentrant if it may run in between
as if it had not been tried: placed
reentrant: parcel 1 to 12 Elm Street (order is shipping)
afterwards: shipped
""",
}


def run(name: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


# The demo is first: its grid has ended when that of the other examples starts.


@pytest.fixture(scope="module")
def flights_data() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("flights_data")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_the_demo_finds_a_departure_that_was_lost_counted_twice_or_noted_wrongly(flights_data: Any) -> None:
    expected = flights_data.expected_totals(2000)
    assert list(flights_data.differences(expected, copy.deepcopy(expected))) == []

    found = copy.deepcopy(expected)
    found.aircraft["N14228"].departures += 1
    found.carriers["UA"].departure_delay_sum_min -= 1
    key, flight = next(iter(found.aircraft_flights["N14228"].items()))
    del found.aircraft_flights["N14228"][key]
    found.carrier_destinations["UA"]["???"] = found.carriers["UA"]
    found.airport_expected["IAH"][1]["EWR"] += 1
    differences = sorted(flights_data.differences(expected, found))
    assert [line.partition(": expected")[0] for line in differences] == [
        "aircraft N14228",
        f"aircraft_flights N14228 {key}",
        "airport_expected IAH",
        "carrier_destinations UA ???",
        "carriers UA",
    ]
    assert any(f"expected {flight}, found nothing" in line for line in differences)


def test_the_file_has_the_departures_that_the_demo_promises(flights_data: Any) -> None:
    assert sum(1 for _ in flights_data.departures()) == flights_data.DEPARTURES_IN_ALL == 336_776


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_the_demo_counts_every_departure_once_although_a_host_and_its_disk_are_lost() -> None:
    rows = 6000
    result = run("flights_demo", "--rows", str(rows), timeout_s=180)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"OK: {rows:,} departures counted exactly once, none lost, none twice" in result.stdout
    assert f"{4 * rows:,} changes in " in result.stdout
    killed = re.search(
        r"host-2: pid (\d+) killed after [\d.]+ s with ([\d,]+) calls in flight, its disk \((\d+) MB\) deleted", result.stdout
    )
    assert killed is not None, result.stdout
    pid_before, in_flight, lost_mb = (int(text.replace(",", "")) for text in killed.groups())
    assert in_flight > 0
    assert lost_mb > 0
    assert re.search(r"longest time without an answer from one of them \d+ ms", result.stdout), result.stdout
    back = re.search(r"back with an empty disk ([\d.]+) s after the kill, pid (\d+)", result.stdout)
    rebuilt = re.search(r"all replicas rebuilt ([\d.]+) s after the kill; [\d,]+ calls were answered meanwhile", result.stdout)
    assert back is not None, result.stdout
    assert rebuilt is not None, result.stdout
    assert int(back[2]) != pid_before
    assert 0 < float(back[1]) <= float(rebuilt[1])
    assert "195 replicas of 65 partitions: the digests of each partition's replicas are equal" in result.stdout
    data = re.search(r"starting a grid of 3 hosts in (\S+) ", result.stderr)
    assert data is not None, result.stderr
    assert not Path(data[1]).exists(), "the demo leaves nothing behind"


def test_the_demo_refuses_to_lose_the_only_disk() -> None:
    result = run("flights_demo", "--nodes", "2", timeout_s=30)
    assert result.returncode == 2
    assert "takes 3 nodes" in result.stderr


def test_the_tests_of_the_bank_pass() -> None:
    """As their reader runs them; they bring their own grid."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bank.py"]
    result = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "15 passed" in result.stdout


@pytest.mark.slow
def test_only_who_has_a_credential_gets_in() -> None:
    result = run("security_example", timeout_s=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == (
        "serving by TLS\n"
        "the shop deposits: 100\n"
        "the auditor may not: calling actors is for caller, and auditor (observer) is not\n"
        "a stranger may not: this grid wants a credential: a certificate or a token\n"
    )


# The others


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalGrid(nodes=3, app=MODULES, app_path=[EXAMPLES], data=tmp_path_factory.mktemp("examples")) as local_grid:
        yield local_grid.address


@pytest.mark.cluster
@pytest.mark.parametrize("name", PROMISED)
def test_the_example_prints_what_it_promises(name: str, address: str) -> None:
    result = run(name, "--address", address, timeout_s=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == PROMISED[name]
    assert result.stderr == ""


def test_every_example_is_run_here() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert programs == PROMISED.keys() | {"flights_demo", "security_example"}
