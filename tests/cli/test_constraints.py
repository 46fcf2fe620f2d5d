"""``actorgrid constrain``, and what ``nodes`` and ``explain`` say of labels and capacities, on a plain host that was told some."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_grid import APPS, begin, nodes, run

from actorgrid.cluster import ports


@pytest.fixture(name="labelled")
def _labelled(tmp_path: Path) -> Iterator[str]:
    port = ports.find_free(1)
    config = {
        "cluster_id": "plain",
        "name": "host-1",
        "node": "node-1",
        "data_dir": str(tmp_path / "host-1"),
        "address": "127.0.0.1",
        "port": port,
        "partition_count": 6,
        "replica_set_size": 1,
        "hosts": [["host-1", "127.0.0.1", port]],
        "app": ["ledger"],
        "app_path": [str(APPS)],
        "labels": {"disk": "ssd", "example.com/rack": "r7"},
        "weight": 2.5,
        "replicas_max": 70,
    }
    path = tmp_path / "host-1.json"
    path.write_text(json.dumps(config))
    with subprocess.Popen(
        [sys.executable, "-m", "actorgrid.host", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"serving ")
            begin(f"127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def test_a_constraint_is_set_shown_and_taken_back(labelled: str) -> None:
    row = nodes(labelled)["node-1"]
    assert row["labels"] == {"disk": "ssd", "example.com/rack": "r7"}
    assert row["capacity"] == {"host-1": {"weight": 2.5, "replicas_max": 70}}
    table = run("nodes", "--address", labelled).stdout
    assert "disk=ssd, example.com/rack=r7" in table
    assert " 2.5 " in table
    assert " 70 " in table

    result = run("constrain", "disk=ssd", "--address", labelled)
    assert result.stdout == "replicas only on nodes with disk=ssd\n"
    assert not result.stderr
    result = run("constrain", "disk=ssd", "gpu=", "--partition", "2", "--partition", "3", "--address", labelled)
    assert result.stdout == "replicas only on nodes with disk=ssd\n  of partition 2, 3: disk=ssd, gpu= instead\n"
    assert "no node has disk=ssd, gpu=: replicas stay where they are" in result.stderr
    shown = json.loads(run("nodes", "--json", "--address", labelled).stdout)
    assert shown["constraint"] == {"disk": "ssd"}
    assert shown["constraints"] == [{"partition": number, "labels": {"disk": "ssd", "gpu": ""}} for number in (2, 3)]
    assert "only on nodes with disk=ssd, gpu=" in run("explain", "2", "--address", labelled).stdout
    assert "only on nodes with disk=ssd\n" in run("explain", "1", "--address", labelled).stdout
    assert "of partition 2, 3: disk=ssd, gpu= instead" in run("nodes", "--address", labelled).stdout

    run("constrain", "--clear", "--partition", "3", "--address", labelled)
    answer = json.loads(run("constrain", "--clear", "--json", "--address", labelled).stdout)
    assert answer == {"constraint": {}, "constraints": [{"partition": 2, "labels": {"disk": "ssd", "gpu": ""}}], "warnings": []}


def test_what_makes_no_sense_is_wrong_usage(labelled: str) -> None:
    for args, why in (
        ((), "give LABEL=VALUE, or --clear"),
        (("--clear", "disk=ssd"), "give LABEL=VALUE, or --clear"),
        (("disk",), "expected LABEL=VALUE"),
        (("disk=ssd", "disk=hdd"), "each label once"),
        (("disk=s d",), "a value has at most 63 letters"),
        (("=ssd",), "a name has 1 to 63 letters"),
        (("disk=ssd", "--partition", "7"), "there is no partition 7; they are 0..6"),
    ):
        assert why in run("constrain", *args, "--address", labelled, code=2).output
