"""``actorgrid init`` and ``status`` on hosts that nobody's `up` started: plain processes, no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actorgrid.cli.commands import app
from actorgrid.cluster import ports, report

APPS = Path(__file__).parent.parent / "apps"
DEADLINE_S = 30.0


@pytest.fixture(name="address")
def _address(tmp_path: Path) -> Iterator[str]:
    """Three new hosts that listen."""
    first = ports.find_free(3)
    hosts = [[f"host-{i}", "127.0.0.1", first + i - 1] for i in (1, 2, 3)]
    processes = []
    for name, address, port in hosts:
        config = {
            "cluster_id": "plain",
            "name": name,
            "node": name.replace("host", "node"),
            "data_dir": str(tmp_path / str(name)),
            "address": address,
            "port": port,
            "partition_count": 6,
            "replica_set_size": 3,
            "hosts": hosts,
            "app": ["ledger"],
            "app_path": [str(APPS)],
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        processes.append(
            subprocess.Popen([sys.executable, "-m", "actorgrid.host", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"serving ")
        yield f"127.0.0.1:{first}"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


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
