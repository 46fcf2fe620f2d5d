"""The judges of the campaign can fail: each broken promise, made by hand, is found by the judge whose business it is."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actorgrid.storage.wal import SEGMENT_BYTES, WriteAheadLog
from tests.faults import checkers, disks, history, network
from tests.faults.checkers import Gaps, ReadBack
from tests.faults.failover_gap import Kill, fill_in
from tests.faults.grid_processes import Observation
from tests.faults.history import Record
from tests.faults.network import Endpoint
from tests.faults.plan import make_plan

SECOND = 10**9


def record(kind: str, actor: str, began: int, ended: int, version: int = -1, token: str = "", **more: Any) -> Record:
    outcome = "ok" if ended else "unknown"
    fields: dict[str, Any] = {"to": "", "amount": 0, "outcome": outcome, "caller": "0.mixed1.0", **more}
    return Record(kind=kind, actor=actor, token=token, version=version, began_ns=began, ended_ns=ended, **fields)


def sound() -> tuple[list[Record], dict[str, ReadBack]]:
    """A small history without a fault: two hot actors, a transfer, one unknown change that happened and one that did not."""
    records = [
        record("change", "h1-0", 0, 1, 1, "x"),
        record("read", "h1-0", 2, 3, 1, "x", caller="1.hot1.0"),
        record("change", "h1-0", 4, 5, 2, "y", caller="1.hot1.0"),
        record("change", "h1-0", 6, 0, -1, "u", caller="2.impatient1.0"),
        record("direct", "h1-0", 10, 11, 3, "u", to="host-1", caller="prober.host-1.0"),
        record("transfer", "a1-1", 12, 20, 1, "t", to="a1-2", amount=7),
        record("transfer", "a1-1", 21, 0, -1, "v", to="a1-2", amount=2, caller="2.impatient2.0"),
        record("change", "a1-1", 30, 0, -1, "w", caller="2.impatient2.1"),
        record("change", "a1-2", 40, 41, -1, "r", outcome="refused", error="NotPrimaryError: moved", caller="2.impatient2.2"),
        record("direct", "a1-2", 50, 51, -1, "", to="host-2", outcome="refused", error="NotPrimaryError", caller="prober.host-2.0"),
    ]
    after = {
        "h1-0": ReadBack(3, 0, [("x", 1), ("y", 2), ("u", 3)], ["x", "y", "u"]),
        "a1-1": ReadBack(1, -7, [("t", 1)], ["t"]),
        "a1-2": ReadBack(2, 9, [("t+", 1), ("v+", 2)], ["t+", "v+"]),
    }
    return records, after


def judge(records: list[Record], after: dict[str, ReadBack]) -> dict[str, checkers.Verdict]:
    verdicts = [
        checkers.judge_exactly_once(records, after),
        *checkers.judge_order(records, after),
        checkers.judge_linearizability(records, after, [(0, 10)], sample=10, seed=1),
        checkers.judge_money(records, after),
        *checkers.judge_errors(records, []),
        checkers.judge_traffic(records, 3),
    ]
    return {verdict.name: verdict for verdict in verdicts}


def broken(verdicts: dict[str, checkers.Verdict]) -> set[str]:
    return {name for name, verdict in verdicts.items() if not verdict}


def test_a_sound_history_passes_every_judge() -> None:
    verdicts = judge(*sound())
    assert broken(verdicts) == set(), [verdict.details for verdict in verdicts.values()]
    assert verdicts["money is conserved"].numbers["half_done_unknown"] == 1
    assert verdicts["exactly once"].numbers["unknown_applied"] == 2
    assert str(verdicts["no stale read"]) == "kept  no stale read: 2 reads, 0 wrong"


def test_a_lost_change_is_found() -> None:
    records, after = sound()
    after["h1-0"] = ReadBack(2, 0, [("x", 1), ("u", 2)], ["x", "u"])
    assert broken(judge(records, after)) >= {"exactly once", "order agrees with real time", "linearizable"}


def test_a_doubled_change_is_found() -> None:
    records, after = sound()
    # The collection has one entry for a token, so the second time hides the first.
    after["a1-2"] = ReadBack(3, 16, [("v+", 2), ("t+", 3)], ["t+", "v+", "t+"])
    assert broken(judge(records, after)) >= {"exactly once", "money is conserved"}
    after["a1-2"] = ReadBack(3, 9, [("t+", 1), ("v+", 2), ("t+", 3)], ["t+", "v+", "t+"])
    assert "exactly once" in broken(judge(records, after))


def test_a_refused_change_that_happened_is_found() -> None:
    records, after = sound()
    after["a1-2"] = ReadBack(3, 9, [("t+", 1), ("v+", 2), ("r", 3)], ["t+", "v+", "r"])
    assert broken(judge(records, after)) == {"exactly once"}


def test_fields_that_disagree_are_found() -> None:
    records, after = sound()
    after["a1-1"].recent = []
    assert broken(judge(records, after)) == {"exactly once"}


@pytest.mark.parametrize("kind", ["read", "direct"])
def test_a_stale_read_is_found_also_on_actors_that_are_not_hot(kind: str) -> None:
    records, after = sound()
    stale = record(kind, "a1-1", 25, 26, 0, "", to="host-3" if kind == "direct" else "", caller="1.mixed2.0")
    verdicts = judge([*records, stale], after)
    assert broken(verdicts) == {"no stale read"}
    assert "THEN" in verdicts["no stale read"].details[0]


def test_a_read_that_overlaps_the_change_is_not_stale() -> None:
    records, after = sound()
    assert not broken(judge([*records, record("read", "a1-1", 19, 26, 0, "")], after))
    assert not broken(judge([*records, record("read", "a1-1", 20, 26, 0, "")], after)), "the same nanosecond may overlap"


def test_a_read_of_the_future_and_a_change_out_of_order_are_found() -> None:
    records, after = sound()
    early = record("read", "a1-1", 1, 2, 1, "t", caller="1.mixed2.0")
    assert broken(judge([early, *records], after)) == {"order agrees with real time"}
    records, after = sound()
    records[0].version, records[2].version = 2, 1
    after["h1-0"] = ReadBack(3, 0, [("y", 1), ("x", 2), ("u", 3)], ["y", "x", "u"])
    assert broken(judge(records, after)) >= {"order agrees with real time", "linearizable"}


def test_a_read_of_something_that_was_lost_again_is_found() -> None:
    records, after = sound()
    ghost = record("read", "a1-2", 60, 61, 3, "gone", caller="1.mixed2.0")
    assert broken(judge([*records, ghost], after)) == {"order agrees with real time"}


def test_money_that_came_from_nowhere_is_found() -> None:
    records, after = sound()
    after["a1-1"].balance += 1
    assert broken(judge(records, after)) == {"money is conserved"}
    records, after = sound()
    after["a1-2"] = ReadBack(1, 2, [("v+", 1)], ["v+"])
    assert broken(judge(records, after)) == {"exactly once", "money is conserved"}, "debited and never credited"


def test_errors_that_callers_must_not_see_are_found() -> None:
    records, after = sound()
    odd = record("change", "a1-2", 70, 0, -1, "s", caller="2.impatient1.1", error="NonDeterministicTurnError: another call")
    assert broken(judge([*records, odd], after)) == {"only expected errors"}
    patient = record("change", "a1-2", 70, 0, -1, "s", caller="2.mixed1.1", error="DeadlineExceededError: late")
    assert broken(judge([*records, patient], after)) == {"no patient caller saw an error"}
    assert not checkers.judge_errors([], ["client 1: crashed"])[0]


def test_too_little_traffic_is_found() -> None:
    records, _ = sound()
    assert checkers.judge_traffic(records, 3)
    assert not checkers.judge_traffic(records, 4)


def test_replicas_that_differ_lag_or_are_missing_are_found() -> None:
    equal = {1: {"a": (5, "x", "primary"), "b": (5, "x", "active_secondary")}}
    assert checkers.judge_digests(equal, partitions=1, replicas=2)
    assert not checkers.judge_digests(equal, partitions=1, replicas=3)
    assert not checkers.judge_digests(equal, partitions=2, replicas=2)
    assert not checkers.judge_digests({1: {**equal[1], "b": (5, "y", "primary")}}, partitions=1, replicas=2)
    assert not checkers.judge_digests({1: {**equal[1], "b": (4, "x", "primary")}}, partitions=1, replicas=2)


def test_gaps_are_those_of_one_caller_around_the_window() -> None:
    records = [record("change", "a1-1", at - 1, at, 1, f"t{at}", caller=f"0.mixed{at % 2}.{at}") for at in (10, 11, 20, 31, 90, 95)]
    gaps = Gaps(records)
    assert gaps.longest_ns(12, 15) == 20, "caller 1 waited from 11 to 31"
    assert gaps.longest_ns(25, 40) == 70, "caller 0 waited from 20 to 90"
    assert gaps.longest_of_all_ns(25, 40) == 59
    assert gaps.longest_of_all_ns(12, 15) == 9
    assert gaps.count(11, 31) == 3
    assert checkers.percentile([3, 1, 2], 0.5) == 2
    assert checkers.percentile([1] * 98 + [5, 9], 0.99) == 5
    assert checkers.percentile([], 0.5) == 0


def test_the_gap_of_a_failover_is_that_of_the_slowest_partition() -> None:
    names: dict[int, str] = {}
    for i in range(100):
        names.setdefault(history.partition_of_actor(f"a1-{i}", 2), f"a1-{i}")
    records = [record("change", names[1], 0, at * SECOND, 1, f"t{at}") for at in (1, 2, 3, 4, 9, 10)]
    records += [record("change", names[2], 0, at * SECOND, 1, f"u{at}") for at in (1, 2, 3, 5, 6, 7, 8, 9, 10)]
    kill = Kill(mode="silent", host="host-1", at_ns=int(4.5 * SECOND), whole_ns=10 * SECOND, partitions=[1, 2])
    fill_in([kill], records, 2)
    assert kill.gap_s == 5
    assert kill.union_gap_s == 1
    never = Kill(mode="silent", host="host-1", at_ns=11 * SECOND, whole_ns=31 * SECOND, partitions=[1])
    fill_in([never], records, 2)
    assert never.gap_s == 21, "no write at all until the end counts from the last one"


# -- the parts of the harness


def test_a_plan_follows_from_its_seed_and_has_what_was_asked_for() -> None:
    plan = make_plan(5, kills=50, stops=20, cuts=20, disks=10)
    assert plan == make_plan(5, kills=50, stops=20, cuts=20, disks=10)
    assert plan != make_plan(6, kills=50, stops=20, cuts=20, disks=10)
    assert {kind: sum(each.kind == kind for each in plan) for kind in ("kill", "stop", "cut", "disk")} == {
        "kill": 50, "stop": 20, "cut": 20, "disk": 10,
    }  # fmt: skip
    assert sum(each.follows for each in plan) == 25
    assert all(plan[number - 1].kind == "kill" and not plan[number - 1].follows for number, each in enumerate(plan) if each.follows)
    assert {each.variant for each in plan if each.kind == "cut"} == {"one_way", "two_way", "isolated"}
    assert len({each.variant for each in plan if each.kind == "disk"}) == 9
    assert plan[3].rng.random() == make_plan(5, kills=50, stops=20, cuts=20, disks=10)[3].rng.random()


def test_histories_survive_a_torn_end(tmp_path: Path) -> None:
    writer = history.HistoryWriter(tmp_path / "h")
    records, _ = sound()
    for each in reversed(records):
        writer.add(each)
    writer.close()
    assert [msgspec.structs.asdict(each) for each in history.load([tmp_path / "h"])] == [msgspec.structs.asdict(each) for each in records]
    with (tmp_path / "h").open("ab") as file:
        file.write(b'["change","a1')
    assert len(history.load([tmp_path / "h"])) == len(records)


def test_processes_tell_each_other_what_was_changed_last(tmp_path: Path) -> None:
    one, other = (history.LastAcknowledged(tmp_path / "shared", 3) for _ in range(2))
    assert other.get(0) is None
    for actor in ("a7-3", "h12345-1", "a1-0"):
        one.put(0, actor)
        assert other.get(0) == actor
    assert other.get(1) is None


def test_primaries_are_those_that_serve_with_the_highest_epoch() -> None:
    def status(role: str, epoch: int, serving: bool) -> dict[str, Any]:
        return {"partitions": [{"id": 1, "role": role, "epoch": epoch, "serving": serving}], "counters": {"copies_installed_total": 2}}

    seen = Observation({"a": status("primary", 3, True), "b": status("primary", 4, True), "c": status("primary", 5, False)})
    assert seen.primaries[1].host == "b"
    assert seen.primaries_of("b") == [1]
    assert seen.hosts_by_primaries(["a", "b", "c"]) == ["b", "a", "c"]
    assert seen.counter("a", "copies_installed") == 2


def test_disk_faults_do_what_they_say(tmp_path: Path) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    log = WriteAheadLog(data / "store" / "wal")
    log.begin(1)
    log.append(1, b"1" * 100)
    log.close()
    (left,) = (path for path in (data / "store" / "wal").iterdir() if path.name == "00000001")
    disks.copy(data, kept)
    for seed in range(8):
        assert disks.cut(data, random.Random(seed))
        assert not left.exists() or left.stat().st_size < SEGMENT_BYTES
        disks.put_back(data, kept)
        assert left.stat().st_size == SEGMENT_BYTES
    disks.empty(data)
    assert data.is_dir()
    assert not list(data.iterdir())
    with pytest.raises(AssertionError):
        disks.empty(data)


def test_a_cut_drops_what_one_end_sends_to_the_other_and_leaves_no_rule_behind() -> None:
    if reason := network.reason_unusable():
        pytest.skip(f"CUTS BETWEEN HOSTS CANNOT BE TESTED: {reason}")

    def listen(address: str) -> tuple[socket.socket, Endpoint]:
        server = socket.create_server((address, 0))
        server.settimeout(5)
        return server, Endpoint(address, server.getsockname()[1])

    def can_connect(a: Endpoint, b: Endpoint) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.3)
            probe.bind((a.address, 0))
            return probe.connect_ex((b.address, b.port)) == 0

    before = subprocess.run(["iptables", "-S"], capture_output=True, check=True).stdout
    servers = [listen("127.0.0.2"), listen("127.0.0.3")]
    (_, a), (_, b) = servers
    with network.NetworkCuts() as cuts:
        assert can_connect(a, b)
        with socket.create_connection((b.address, b.port), source_address=(a.address, 0)) as link:
            cuts.cut(a, b, "two_way")
            assert not can_connect(a, b)
            assert not can_connect(b, a)
            assert can_connect(Endpoint("127.0.0.1", 0), b), "clients are not cut off"
            link.sendall(b"x")
            time.sleep(0.7)
            assert any(each.unanswered for each in network.links_between(a, b).values())
        assert cuts.heal() > 0
        assert can_connect(a, b)
        cuts.cut(a, b, "one_way")
        assert not can_connect(a, b)
        assert cuts.dropped() > 0
    assert subprocess.run(["iptables", "-S"], capture_output=True, check=True).stdout == before
    assert can_connect(a, b)
    for server, _ in servers:
        server.close()


def test_the_loop_of_a_campaign_needs_no_running_grid_to_be_planned(tmp_path: Path) -> None:
    from tests.faults.campaign import Campaign, CampaignSettings

    campaign = Campaign(CampaignSettings(seed=3, kills=1, stops=0, cuts=0, disks=0), tmp_path)
    assert [each.kind for each in campaign.plan] == ["kill"]
    assert "--seed 3 --kills 1 --stops 0 --cuts 0 --disks 0" in campaign.settings.command()
    assert not asyncio.iscoroutine(campaign.plan)
