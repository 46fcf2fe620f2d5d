"""What ``actorgrid status`` makes of the hosts' answers: health and its reason, as scripts and people get them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from actorgrid import __version__
from actorgrid.cli import status
from actorgrid.cli.commands import app
from actorgrid.client.map import PartitionMap
from actorgrid.cluster import report
from actorgrid.errors import ActorGridError, DeadlineExceededError, HostUnavailableError
from actorgrid.wire.messages import HostInfo

DOWN = HostUnavailableError("127.0.0.1:7401: Connect call failed")
MUTE = HostUnavailableError("127.0.0.1:7401: no answer to the handshake within 1.5 s")


class SampleGrid:
    """Answers of the hosts of a grid: all well at first, three replicas of the system partition and of each other one."""

    def __init__(self, hosts: int = 3, partitions: int = 3, wanted: int = 3) -> None:
        self.names = [f"host-{i}" for i in range(1, hosts + 1)]
        self.partitions = partitions
        self.answers: dict[str, Any] = {}
        for name in self.names:
            self.answers[name] = {
                "host": {
                    "name": name,
                    "node": f"node-{name[-1]}",
                    "zone": "",
                    "address": f"127.0.0.1:740{name[-1]}",
                    "pid": 7,
                    "incarnation": 1,
                    "state": "serving",
                    "primaries": 99,
                    "secondaries": 99,
                    "data_dir": f"/data/{name}",
                },
                "grid": {"replica_set_size": wanted, "has_begun": True},
                "partitions": [],
            }
        members = [[name, 1] for name in self.names[:wanted]]
        for number in range(partitions + 1):
            primary = self.names[(number - 1) % len(members)]
            for name in self.names[:wanted]:
                self.answers[name]["partitions"].append(self.row(number, name == primary, members))

    @staticmethod
    def row(number: int, is_primary: bool, voters: list[list[Any]]) -> dict[str, Any]:
        others = voters if is_primary else []
        return {
            "id": number,
            "epoch": 3,
            "last_lsn": 9,
            "role": "primary" if is_primary else "active_secondary",
            "incarnation": 1,
            "serving": is_primary,
            "has_quorum": is_primary,
            "configuration_version": 1,
            "voters": voters,
            "idle": [],
            "configuration_pending": False,
            "progress": [
                {"host": host, "incarnation": incarnation, "acknowledged_lsn": 9, "pace": "pipeline", "is_up": True, "is_missing": False}
                for host, incarnation in others
            ],
        }

    def of(self, host: str, number: int) -> dict[str, Any]:
        """What `host` says of partition `number`."""
        return next(row for row in self.answers[host]["partitions"] if row["id"] == number)

    def forget(self, host: str, number: int) -> None:
        """`host` has no replica of partition `number`."""
        self.answers[host]["partitions"].remove(self.of(host, number))

    def lose(self, host: str, error: ActorGridError, *, is_noticed: bool = True) -> None:
        """`host` does not answer; `is_noticed`: the primaries of the others know it, and its own partitions have others."""
        self.answers[host] = error
        if not is_noticed:
            return
        for name in self.names:
            for row in () if isinstance(self.answers[name], ActorGridError) else self.answers[name]["partitions"]:
                for progress in row["progress"]:
                    progress["is_up"] &= progress["host"] != host
                if (
                    row["role"] != "primary"
                    and (row["id"] - 1) % 3 == self.names.index(host)
                    and name == self.names[self.names.index(host) - 1]
                ):
                    row.update(self.row(row["id"], True, row["voters"]), epoch=4)

    def report(self) -> dict[str, Any]:
        hosts = tuple(HostInfo(name, "127.0.0.1", 7400 + i) for i, name in enumerate(self.names, 1))
        primaries = tuple(i % len(hosts) for i in range(self.partitions))
        found = report.build_report(PartitionMap(1, "abc", hosts, primaries), self.answers, {})
        return json.loads(json.dumps(found))

    def health(self, number: int) -> tuple[str, str]:
        """Health of one partition, and why."""
        found = self.report()
        partition = found["system_partition"] if number == 0 else found["partitions"][number - 1]
        return partition["health"], partition["why"]


def test_the_report_has_the_shape_that_scripts_rely_on() -> None:
    sample = SampleGrid()
    found = sample.report()
    assert found["cluster"] == {"id": "abc", "partitions": 3, "replica_set_size": 3, "version": __version__, "begun": True}
    assert found["nodes"] == [{"name": f"node-{i}", "zone": "", "state": "up", "intent": None} for i in (1, 2, 3)]
    for host in found["hosts"]:
        assert {"name", "node", "address", "pid", "incarnation", "state", "primaries", "secondaries", "data_dir"} <= host.keys()
        assert (host["primaries"], host["secondaries"]) == (1, 2), "counted in this report, without the system partition"
    assert [partition["id"] for partition in found["partitions"]] == [1, 2, 3]
    assert found["partitions"][1] == {
        "id": 2,
        "epoch": 3,
        "configuration_version": 1,
        "primary": "host-2",
        "serving": True,
        "replicas": [
            {"host": "host-2", "incarnation": 1, "role": "primary", "last_lsn": 9, "lag_entries": 0, "why": ""},
            {"host": "host-1", "incarnation": 1, "role": "active_secondary", "last_lsn": 9, "lag_entries": 0, "why": ""},
            {"host": "host-3", "incarnation": 1, "role": "active_secondary", "last_lsn": 9, "lag_entries": 0, "why": ""},
        ],
        "health": "ok",
        "why": "",
    }
    assert found["system_partition"]["health"] == "ok"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (DOWN, "host-2 is down"),
        (MUTE, "host-2 does not answer"),
        (DeadlineExceededError("no answer within 1.5 s"), "host-2 does not answer"),
    ],
)
def test_one_host_of_three_that_does_not_answer_leaves_partitions_under_replicated(error: ActorGridError, why: str) -> None:
    sample = SampleGrid()
    sample.lose("host-2", error)
    assert [sample.health(number) for number in range(4)] == [("under_replicated", why)] * 4
    found = sample.report()
    assert [host["state"] for host in found["hosts"]] == ["serving", "unreachable", "serving"]
    assert found["hosts"][1]["why"] == str(error)
    assert [partition["primary"] for partition in found["partitions"]] == ["host-1", "host-1", "host-3"]


def test_lag_is_counted_from_the_primarys_end_of_the_log_also_for_a_host_that_is_silent() -> None:
    sample = SampleGrid()
    sample.of("host-1", 1)["last_lsn"] = 50
    sample.lose("host-2", DOWN)
    by_host = {replica["host"]: (replica["last_lsn"], replica["lag_entries"]) for replica in sample.report()["partitions"][0]["replicas"]}
    assert by_host == {"host-1": (50, 0), "host-2": (9, 41), "host-3": (9, 41)}


def test_a_primary_that_just_died_is_being_replaced() -> None:
    sample = SampleGrid()
    sample.lose("host-2", DOWN, is_noticed=False)
    assert sample.health(2) == ("reconfiguring", "a primary is being elected; host-2 is down")
    assert sample.health(1) == ("under_replicated", "host-2 is down"), "nobody but we have noticed"


def test_two_hosts_of_three_that_do_not_answer_leave_no_quorum() -> None:
    sample = SampleGrid()
    sample.lose("host-2", DOWN)
    sample.lose("host-3", MUTE)
    sample.of("host-1", 1)["has_quorum"] = False
    assert sample.health(1) == ("no_quorum", "2 of 3 replicas do not answer: host-2 is down; host-3 does not answer")
    assert sample.report()["partitions"][0]["serving"] is False


def test_hosts_without_the_data_of_their_replicas_are_named() -> None:
    sample = SampleGrid()
    for name in ("host-2", "host-3"):
        sample.forget(name, 1)
    sample.of("host-1", 1).update(role="active_secondary", serving=False, has_quorum=False, progress=[])
    why = "2 of 3 replicas are missing: replica host-2/1 has lost its data; replica host-3/1 has lost its data"
    assert sample.health(1) == ("no_quorum", why)


def test_a_primary_that_hears_nobody_has_no_quorum_although_all_answer_us() -> None:
    sample = SampleGrid()
    sample.of("host-1", 1)["has_quorum"] = False
    assert sample.health(1) == ("no_quorum", "the primary on host-1 does not hear 2 of 3 replicas")


def test_an_old_primary_that_has_not_heard_of_the_new_one_counts_for_nothing() -> None:
    sample = SampleGrid()
    row = sample.of("host-2", 1)
    row.update(sample.row(1, True, row["voters"]), epoch=4)
    found = sample.report()["partitions"][0]
    assert (found["primary"], found["epoch"], found["health"]) == ("host-2", 4, "ok")
    assert [replica["role"] for replica in found["replicas"]] == ["primary", "active_secondary", "active_secondary"]


@pytest.mark.parametrize(
    ("has_row", "pace", "why"),
    [
        (False, "copy", "replica host-3/2 is being built (copy)"),
        (True, "pipeline", "replica host-3/2 is being built (catching up, 4 entries behind)"),
    ],
)
def test_a_replica_that_is_being_built_is_named_with_its_phase(has_row: bool, pace: str, why: str) -> None:
    sample = SampleGrid()
    for name in ("host-1", "host-2"):
        sample.of(name, 1).update(voters=[["host-1", 1], ["host-2", 1]], idle=[["host-3", 2]], configuration_version=2)
    sample.of("host-1", 1)["progress"][2].update(incarnation=2, pace=pace, acknowledged_lsn=0)
    if has_row:
        sample.of("host-3", 1).update(role="idle_secondary", incarnation=2, last_lsn=5, configuration_version=2)
    else:
        sample.forget("host-3", 1)
    assert sample.health(1) == ("reconfiguring", why)
    replica = sample.report()["partitions"][0]["replicas"][-1]
    assert (replica["host"], replica["role"], replica["lag_entries"]) == ("host-3", "idle_secondary", 4 if has_row else None)


def test_a_configuration_that_is_not_committed_yet_is_reconfiguring() -> None:
    sample = SampleGrid()
    sample.of("host-1", 1).update(configuration_pending=True, configuration_version=7)
    assert sample.health(1) == ("reconfiguring", "configuration 7 is not committed yet")


def test_fewer_nodes_than_replicas_wanted_are_said_of_every_partition() -> None:
    assert [SampleGrid(hosts=1).health(number) for number in range(4)] == [("under_replicated", "3 replicas wanted, grid has 1 node")] * 4
    assert SampleGrid(hosts=2).health(1) == ("under_replicated", "3 replicas wanted, grid has 2 nodes")
    assert SampleGrid(hosts=1, wanted=1).health(1) == ("ok", "")


def test_a_grid_that_was_not_begun_says_so() -> None:
    sample = SampleGrid()
    for answer in sample.answers.values():
        answer["grid"]["has_begun"] = False
        answer["partitions"] = []
    assert {sample.health(number) for number in range(4)} == {("no_quorum", report.NOT_BEGUN)}


def test_one_replica_on_a_host_that_is_gone_is_known_from_the_map() -> None:
    sample = SampleGrid(hosts=1, wanted=1)
    sample.names.append("host-2")
    sample.answers["host-2"] = DOWN
    sample.forget("host-1", 2)
    assert sample.health(2) == ("no_quorum", "host-2 is down")
    assert sample.health(1)[0] == "ok"


def test_the_table_for_people_begins_with_a_summary_and_then_what_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    sample = SampleGrid(partitions=12)
    sample.lose("host-2", DOWN)
    status._show(sample.report(), show_all=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grid abc: 12 partitions (12 under_replicated), replica set size 3, 3 hosts (1 unreachable)"
    assert lines[1].split() == ["health", "of", "why"]
    assert lines[2].split(maxsplit=2)[:2] == ["unreachable", "host-2"]
    assert lines[3].split(maxsplit=1)[1].strip() == "partitions 0-12  host-2 is down"
    assert lines[5].split()[:3] == ["name", "node", "address"]
    assert len(lines) == 9, "no row for each partition"


def test_with_all_every_partition_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    sample = SampleGrid(partitions=12)
    sample.of("host-2", 1)["last_lsn"] = 5
    status._show(sample.report(), show_all=True)
    rows = capsys.readouterr().out.splitlines()[-12:]
    assert [row.split()[0] for row in rows] == [str(number) for number in range(1, 13)]
    assert "host-1 (primary), host-2 -4, host-3" in rows[0]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([1, 2, 3, 7, 9, 10], "1-3, 7, 9-10"), (list(range(0, 20, 2)), "0, 2, 4, 6, 8, 10, 12, 14, ... (10 in all)")],
)
def test_numbers_of_partitions_are_shown_in_ranges(numbers: list[int], text: str) -> None:
    assert report.show_numbers(numbers) == text


def test_status_with_hosts_that_answer_nothing_exits_3(unused_port: int) -> None:
    result = CliRunner().invoke(app, ["status", "--address", f"127.0.0.1:{unused_port}"])
    assert result.exit_code == 3
