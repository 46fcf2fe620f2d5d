"""Hosts that nobody's `up` started, plain processes without Ray, and the command line that operates them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner, Result

from actorgrid.cli.commands import app
from actorgrid.cluster import ports

APPS = Path(__file__).parent.parent / "apps"
DEADLINE_S = 30.0


class PlainHosts:
    """Host processes by number, from 1 on; each listens on `first` + its number - 1."""

    def __init__(self, first: int) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._first = first

    def address(self, number: int) -> str:
        return f"127.0.0.1:{self._first + number - 1}"

    def kill(self, number: int) -> None:
        self.processes[number - 1].kill()
        self.processes[number - 1].wait(10)


@contextlib.contextmanager
def plain_hosts(directory: Path, count: int) -> Iterator[PlainHosts]:
    """So many new hosts that listen."""
    first = ports.find_free(count)
    hosts = [[f"host-{i}", "127.0.0.1", first + i - 1] for i in range(1, count + 1)]
    plain = PlainHosts(first)
    processes = plain.processes
    for name, address, port in hosts:
        config = {
            "cluster_id": "plain",
            "name": name,
            "node": str(name).replace("host", "node"),
            "data_dir": str(directory / str(name)),
            "address": address,
            "port": port,
            "partition_count": 6,
            "replica_set_size": 3,
            "hosts": hosts,
            "app": ["ledger"],
            "app_path": [str(APPS)],
        }
        path = directory / f"{name}.json"
        path.write_text(json.dumps(config))
        processes.append(
            subprocess.Popen([sys.executable, "-m", "actorgrid.host", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        )
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"serving ")
        yield plain
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(*args: str, code: int | None = 0) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert code is None or result.exit_code == code, result.output
    return result


def begin(address: str) -> None:
    run("init", "--address", address)
    deadline = time.monotonic() + DEADLINE_S
    while {partition["health"] for partition in json.loads(run("status", "--json", "--address", address).stdout)["partitions"]} != {"ok"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nodes(address: str) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(run("nodes", "--json", "--address", address).stdout)["nodes"]}
