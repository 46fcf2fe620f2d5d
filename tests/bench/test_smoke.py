"""A few scenarios on a real grid, for half a second each: does everything fit together? The figures mean nothing."""

import asyncio
import gc

import pytest
import uvloop

from bench.beside import GridBeside
from bench.options import Options, Rate
from bench.peers import MissingPeerError
from bench.ratios import ratios_of
from bench.report import write_report
from bench.results import read
from bench.runner import Job, run
from bench.scenarios import inside, one, scale
from bench.turns import Line, TurnError
from bench.workload import CHAIN, FAN


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


@pytest.mark.slow
def test_a_grid_inside_this_process_is_measured_and_gone_afterwards(monkeypatch):
    monkeypatch.setattr(inside, "CALLS", {"write": 500, "read": 1000})
    monkeypatch.setattr(inside, "ROUNDS", 2)
    options = Options(concurrency=(64,), actors=200, partitions=(8,))
    results = uvloop.run(run([Job(("inside",), options)], Silent()))
    assert results.missing == []
    assert [(row.operation, len(row.runs), row.in_flight) for row in results.rows] == [("write", 2, 64), ("read", 2, 64)]
    for row in results.rows:
        assert 1 < row.figures["cpu_us_per_call_min"] <= row.cpu_us_per_call < 10_000
    assert gc.isenabled()


@pytest.mark.cluster
@pytest.mark.slow
def test_one_caller_takes_turns_with_a_bare_round_trip_and_goes_on_without_etcd(monkeypatch):
    async def fails(self):
        raise MissingPeerError("not here")

    monkeypatch.setattr("bench.peers.etcd.Etcd._prepare", fails)
    monkeypatch.setattr(one, "ROUNDS", 2)
    monkeypatch.setattr(one, "ROUND_S", 0.2)
    results = uvloop.run(run([Job(("one",), Options(actors=50, partitions=(8,)))], Silent()))
    assert [each.what for each in results.missing] == ["one: etcd-3"]
    rows = {(row.system, row.operation): row for row in results.rows}
    assert set(rows) == {("actorgrid", "write"), ("actorgrid", "read"), ("echo", "echo")}
    assert all(len(row.runs) == 2 and row.in_flight == 1 for row in results.rows)
    assert rows["actorgrid", "read"].figures["p50_of_bare_round_trip"] > 1
    assert rows["actorgrid", "write"].figures == {}
    faults = rows["actorgrid", "write"].faults
    assert faults is not None
    assert faults.acknowledged > 20
    assert (faults.lost, faults.doubled) == (0, 0)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_peer_takes_turns_with_a_grid_whose_changes_are_read_back(tmp_path):
    options = Options(duration_s=0.6, warm_up_s=0.1, concurrency=(1, 16), actors=200, partitions=(8,))
    results = uvloop.run(run([Job((), options, ("echo",), compared=("write", "read"))], Silent()))
    assert results.missing == []
    rows = {(row.scenario, row.operation, row.system, row.in_flight): row for row in results.rows}
    assert set(rows) == {
        ("echo", "echo", "echo", 1),
        ("echo", "echo", "echo", 16),
        ("beside", "write", "actorgrid", 16),
        ("beside", "read", "actorgrid", 16),
    }
    echo, write = rows["echo", "echo", "echo", 16], rows["beside", "write", "actorgrid", 16]
    assert rows["echo", "echo", "echo", 1].beside == {}
    assert set(echo.beside) == {"write", "read"}
    assert 0 < echo.beside["write"].rate < echo.beside["read"].rate < 1
    assert len(echo.runs) == len(write.runs) == 3
    assert write.faults is not None
    assert write.faults.acknowledged > 20
    assert (write.faults.lost, write.faults.doubled) == (0, 0)
    told = {(each.operation, each.in_flight): each for each in ratios_of(results.rows)}
    assert set(told) == {("write", 16), ("read", 16)}
    assert told["read", 16].rate == echo.beside["read"].rate


@pytest.mark.cluster
@pytest.mark.slow
def test_peers_go_without_a_grid_that_does_not_start(monkeypatch):
    async def fails(self):
        raise OSError("no room")

    monkeypatch.setattr(GridBeside, "open", fails)
    options = Options(duration_s=0.2, warm_up_s=0.1, concurrency=(16,))
    results = uvloop.run(run([Job((), options, ("echo",), compared=("read",))], Silent()))
    assert [(each.what, each.why) for each in results.missing] == [("the grid beside the peers", "OSError: no room")]
    assert [(row.system, row.beside) for row in results.rows] == [("echo", {})]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_grid_that_breaks_beside_the_peers_costs_no_peer_its_rows(monkeypatch):
    real = Line.turn
    turns = []

    async def turn(line, turn_s, *, counts):
        turns.append(line.row.system)
        if line.row.system == "actorgrid" and turns.count("actorgrid") > 5:
            raise TurnError("actorgrid", "it has broken")
        await real(line, turn_s, counts=counts)

    async def judge(beside, rows):
        raise RuntimeError("cannot be read back")

    monkeypatch.setattr(Line, "turn", turn)
    monkeypatch.setattr(GridBeside, "judge", judge)
    options = Options(duration_s=0.3, warm_up_s=0.0, concurrency=(8, 16), actors=50, partitions=(8,))
    results = uvloop.run(run([Job((), options, ("echo",), compared=("read",))], Silent()))
    assert [(each.what, each.why) for each in results.missing] == [
        ("the grid beside the peers", "TurnError: actorgrid: it has broken"),
        ("what the grid beside the peers has stored", "RuntimeError: cannot be read back"),
    ]
    echo = {row.in_flight: row for row in results.rows if row.system == "echo"}
    assert set(echo) == {8, 16}
    assert [bool(echo[level].beside) for level in (8, 16)] == [False, False]
    assert all(row.runs for row in results.rows)


@pytest.mark.cluster
@pytest.mark.slow
def test_whatever_a_chain_and_a_fan_out_change_is_read_back(tmp_path):
    options = Options(duration_s=0.5, warm_up_s=0.1, concurrency=(16,), actors=200, partitions=(8,))
    results = asyncio.run(run([Job(("chain", "fan-out"), options)], Silent()))
    assert results.missing == []
    for row, changes in zip(results.rows, (CHAIN, FAN + 1), strict=True):
        assert row.faults is not None
        assert (row.faults.lost, row.faults.doubled, row.faults.failed) == (0, 0, 0)
        assert row.faults.acknowledged >= row.runs[0].calls * changes


def test_what_is_not_begun_in_time_is_said_to_be_missing():
    results = asyncio.run(run([Job(("write",), Options(), ("echo",))], Silent(), budget_s=-1.0))
    assert [each.what for each in results.missing] == ["write", "echo"]
    assert results.rows == []
    assert results.machine.cores > 0
