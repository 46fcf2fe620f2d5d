"""A few scenarios on a real grid, for half a second each: does everything fit together? The figures mean nothing."""

import asyncio

import pytest

from bench.options import Options, Rate
from bench.report import write_report
from bench.results import read
from bench.runner import Job, run
from bench.scenarios import scale


class Silent:
    def say(self, text: str) -> None: ...

    def advance(self) -> None: ...


@pytest.mark.cluster
@pytest.mark.slow
def test_scenarios_measure_a_real_grid_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "CLIENTS", (2,))
    options = Options(duration_s=0.5, warm_up_s=0.1, concurrency=(16,), rates=(Rate.parse("50%"),), actors=1000, partitions=(8,), runs=2)
    jobs = [Job(("mixed", "map", "scale-clients", "failover"), options)]
    results = asyncio.run(run(jobs, Silent()))
    assert results.missing == []
    found = {(row.scenario, row.operation, row.loop): row for row in results.rows}
    assert set(found) == {
        ("mixed", "mixed", "closed"),
        ("mixed", "mixed", "open"),
        ("map", "read", "closed"),
        ("scale-clients", "write", "closed"),
        ("scale-clients", "read", "closed"),
        ("failover", "write", "closed"),
    }
    for row in results.rows:
        assert row.calls_per_s > 10, row.name
        assert 0 < row.p50_ms <= row.p99_ms <= row.slowest_ms, row.name
        assert row.cpu_us_per_call > 0, row.name
        if row.faults is not None:
            assert row.faults.acknowledged > 10, row.name
            assert (row.faults.lost, row.faults.doubled) == (0, 0), row.name
    judged = {row.scenario for row in results.rows if row.faults is not None}
    assert judged == {"mixed", "scale-clients", "failover"}
    failover = found["failover", "write", "closed"]
    assert [mark.what for mark in failover.marks if mark.kind == "event"] == ["SIGKILL host-2", "process is back", "all replicas caught up"]
    results.write(tmp_path / "results.json")
    assert write_report([read(tmp_path / "results.json")], tmp_path / "report").exists()


def test_what_is_not_begun_in_time_is_said_to_be_missing():
    results = asyncio.run(run([Job(("write",), Options(), ("echo",))], Silent(), budget_s=-1.0))
    assert [each.what for each in results.missing] == ["write", "echo"]
    assert results.rows == []
    assert results.machine.cores > 0
