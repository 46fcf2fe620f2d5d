import msgspec
import pytest

from bench.results import FORMAT_VERSION, FormatError, Mark, Missing, Point, Row, latest, read

from .conftest import make_results, make_row, make_run


def full():
    row = make_row(timeline=[Point(0.0, 100.0, 1, 2.5)], marks=[Mark(0.1, "partition 3", "swap")], figures={"drain_s": 1.5})
    results = make_results(row)
    results.missing.append(Missing("ignite", "no Java on this machine"))
    return results


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    full().write(path)
    assert read(path) == full()


def test_fields_of_a_newer_harness_are_passed_over(tmp_path):
    path = tmp_path / "results.json"
    document = msgspec.to_builtins(full()) | {"colour": "blue"}
    path.write_bytes(msgspec.json.encode(document))
    assert read(path) == full()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no result of this harness"),
        ("{}", "format version 0"),
        (f'{{"version": {FORMAT_VERSION + 1}}}', f"format version {FORMAT_VERSION + 1}"),
        (f'{{"version": {FORMAT_VERSION}}}', "missing required field"),
    ],
)
def test_what_is_no_result_is_refused_with_the_reason(tmp_path, text, why):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=why):
        read(path)


def test_a_row_has_medians_and_the_slowest_call_of_all_runs():
    row = Row(scenario="write", operation="write")
    row.fill([make_run(rate, cpu, slowest_ms=slowest) for rate, cpu, slowest in ((100, 5, 7), (300, 4, 90), (120, 6, 8))])
    assert (row.calls_per_s, row.cpu_us_per_call, row.slowest_ms) == (120, 5, 90)
    assert row.spread == pytest.approx(200 / 120)
    assert row.cpu_spread == pytest.approx(2 / 5)


def test_the_last_result_of_a_like_machine_is_found(tmp_path):
    old, new = make_results(created="2026-01-01T00:00:00+00:00"), make_results(created="2026-01-02T00:00:00+00:00")
    other = make_results(created="2026-01-03T00:00:00+00:00", cpu="Another")
    for place, each in enumerate((old, new, other)):
        each.write(tmp_path / f"{place}.json")
    (tmp_path / "broken.json").write_text("{")
    assert latest(tmp_path, old.machine) == (tmp_path / "1.json", new)
    assert latest(tmp_path, old.machine, but=tmp_path / "1.json") == (tmp_path / "0.json", old)
    assert latest(tmp_path, make_results(build="compiled").machine) is None
    assert latest(tmp_path / "none", old.machine) is None


def test_the_file_name_tells_date_commit_and_machine():
    results = make_results(cpu="AMD EPYC(TM) 7B13 64-Core")
    assert results.file_name == "2026-01-02-0123456789-amd-epyc-7b13-64-core-2c.json"
    results.commit += "+"
    assert results.file_name == "2026-01-02-0123456789-changed-amd-epyc-7b13-64-core-2c.json"


def test_a_later_run_of_the_same_commit_keeps_the_rows_it_did_not_measure():
    old = make_results(make_row("read"), make_row("write", rate=1.0))
    both = make_results(make_row("write", rate=2.0)).over(old)
    assert [(row.scenario, row.calls_per_s) for row in both.rows] == [("read", 1000.0), ("write", 2.0)]
