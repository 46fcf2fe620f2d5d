"""``actorgrid init`` and ``status`` on hosts that nobody's `up` started: plain processes, no Ray."""

from __future__ import annotations

import json
import time

from typer.testing import CliRunner

from actorgrid.cli.commands import app
from actorgrid.cluster import report

DEADLINE_S = 30.0


def run(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_hosts_have_nothing_until_the_grid_is_begun_once(address: str) -> None:
    before = json.loads(run("status", "--json", "--address", address))
    assert not before["cluster"]["begun"]
    assert {(partition["health"], partition["why"]) for partition in before["partitions"]} == {("no_quorum", report.NOT_BEGUN)}
    assert [host["state"] for host in before["hosts"]] == ["serving"] * 3

    for _ in range(2):
        assert run("init", "--address", address) == "the grid is begun: host-1, host-2, host-3 have their first replicas\n"
    assert run("call", "Ledger", "a", "change", "first", "--address", address) == "1\n"
    deadline = time.monotonic() + DEADLINE_S
    after = before
    while {partition["health"] for partition in after["partitions"]} != {"ok"}:
        assert time.monotonic() < deadline, after
        after = json.loads(run("status", "--json", "--address", address))
    assert after["cluster"]["begun"]
    assert [host["node"] for host in after["hosts"]] == ["node-1", "node-2", "node-3"]
