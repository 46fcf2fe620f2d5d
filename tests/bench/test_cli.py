import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app, show
from bench.options import Rate, parse_numbers
from bench.results import Faults, Missing
from bench.scenarios import SCENARIOS
from bench.suite import quick_jobs, standard_jobs
from bench.tables import read_back_of

from .conftest import make_results, make_row


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "wriet"], "no scenario wriet"),
        (["run", "write", "--concurrency", "1,x"], "'x'"),
        (["run", "write", "--concurrency", "0"], "whole numbers from 1"),
        (["run", "write", "--rate", "half"], "'half'"),
        (["run", "write", "--rate", "0%"], "'0%'"),
        (["run", "write", "--peers", "oracle"], "no peer oracle"),
        (["suite", "--peers", "oracle"], "no peer oracle"),
    ],
)
def test_wrong_words_are_answered_with_what_is_known(arguments, why):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert why in result.stderr


def test_every_scenario_is_listed():
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    for name in SCENARIOS:
        assert name in result.stdout


def test_a_rate_is_a_number_or_a_part_of_the_peak():
    assert Rate.parse("20000").of(peak=5.0) == 20_000
    assert Rate.parse("50%").of(peak=5000.0) == 2500
    assert Rate.parse(" 50% ").label == "50%"


def test_numbers_are_separated_by_commas_and_not_repeated():
    assert parse_numbers("1, 64,1_024,64") == (1, 64, 1024)
    with pytest.raises(ValueError, match=r"to 100"):
        parse_numbers("101", high=100)


def test_the_standard_runs_have_one_caller_of_the_grid_and_of_the_peers():
    jobs = standard_jobs(("echo", "etcd-3"))
    assert any("one" in job.scenarios for job in jobs)
    assert any({"write", "read"} <= set(job.scenarios) and 1 in job.options.concurrency for job in jobs)
    assert all(1 in job.options.concurrency for job in jobs if job.peers)


def test_the_standard_runs_name_scenarios_that_exist():
    for job in [*standard_jobs(("echo",)), *quick_jobs()]:
        assert set(job.scenarios) <= set(SCENARIOS)
        assert set(job.compared) <= set(SCENARIOS)


def test_results_are_shown_with_ratios_and_what_is_missing():
    results = make_results(make_row(), make_row(system="etcd-3", rate=100.0, cpu=500.0), make_row("idle", figures={"drain_s": 1.0}))
    results.missing.append(Missing("ignite", "no Java here"))
    console = Console(width=170, record=True, file=io.StringIO())
    show(results, console)
    text = console.export_text()
    for words in ("10.0 x", "missing: ignite: no Java here", "drain s 1.00", "A CPU, 2 cores"):
        assert words in text


def test_a_fault_row_says_what_was_read_back_and_the_gap():
    once = Faults(acknowledged=9, failed=0, lost=0, doubled=0)
    bad = Faults(acknowledged=9, failed=3, lost=2, doubled=1, longest_gap_ms=1234.5)
    assert read_back_of(make_row(faults=once)) == "all once"
    assert read_back_of(make_row(faults=bad)) == "3 failed, 2 lost, 1 twice, gap 1,234 ms"
    assert read_back_of(make_row()) == ""


def test_a_narrow_terminal_gets_fewer_columns():
    console = Console(width=100, record=True, file=io.StringIO())
    show(make_results(make_row()), console)
    text = console.export_text()
    assert "p99.9" not in text
    assert "CPU us/call" in text
