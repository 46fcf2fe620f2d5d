"""``actorgrid node add`` and ``node stop`` on a real local grid: hosts that come and go while it serves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actorgrid import grid
from actorgrid.cli.commands import app
from actorgrid.cluster import grid_file
from actorgrid.cluster.local import LocalGrid

APPS = Path(__file__).parent.parent / "apps"
DEADLINE_S = 40.0

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]


def run(data: Path, *args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*args, "--data", str(data)])
    assert result.exit_code == code, result.output
    return result.output


def nodes(data: Path) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(run(data, "nodes", "--json"))["nodes"]}


def until_replicas(data: Path, node: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not nodes(data).get(node, {}).get("replicas"):
        assert time.monotonic() < deadline, nodes(data)
        time.sleep(0.2)


def test_a_host_comes_and_another_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    monkeypatch.setenv("ACTORGRID_PLACEMENT_QUIET_S", "1")
    from ledger import Ledger  # type: ignore[import-not-found]

    data = tmp_path / "grid"
    with LocalGrid(nodes=3, app=["ledger"], app_path=[str(APPS)], data=data, port=0, partitions=6) as local:
        with grid.connect_sync(local.address) as client:
            for number in range(20):
                assert client.call(Ledger.change, f"a{number}", "first") == 1
            added = json.loads(run(data, "node", "add", "--json"))
            assert added["host"] == "host-4"
            until_replicas(data, "node-4")
            assert "done" in run(data, "drain", "node-1", "--intent", "remove_node", "--wait")
            assert run(data, "node", "stop", "host-1") == "host-1 is stopped\n"
            deadline = time.monotonic() + DEADLINE_S
            while "node-1" in nodes(data):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            for number in range(20):
                assert client.call(Ledger.change, f"a{number}", "second") == 2
        kept = grid_file.read_grid(data)
        assert kept is not None
        assert [host.name for host in kept.hosts] == ["host-2", "host-3", "host-4"]

        # A host that still has replicas stays part of the grid, and comes back under its name.
        run(data, "node", "stop", "host-2")
        assert "host-2" in [host.name for host in (grid_file.read_grid(data) or kept).hosts]
        assert json.loads(run(data, "node", "add", "host-2", "--json"))["host"] == "host-2"
        until_replicas(data, "node-2")
        assert "the grid has a host host-3" in run(data, "node", "add", "host-3", code=2)
        assert "no host 'host-9' runs" in run(data, "node", "stop", "host-9", code=2)
        assert "is no name for a host" in run(data, "node", "add", "a host", code=2)


def test_nobody_to_ask(tmp_path: Path) -> None:
    assert "no grid runs" in run(tmp_path, "node", "add", code=1)
