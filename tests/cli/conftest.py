"""Hosts that nobody's `up` started: plain processes, no Ray."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorgrid.cluster import ports

APPS = Path(__file__).parent.parent / "apps"


@contextlib.contextmanager
def plain_hosts(directory: Path, count: int) -> Iterator[str]:
    """So many new hosts that listen; the address of the first."""
    first = ports.find_free(count)
    hosts = [[f"host-{i}", "127.0.0.1", first + i - 1] for i in range(1, count + 1)]
    processes = []
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
        yield f"127.0.0.1:{first}"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(name="address")
def _address(tmp_path: Path) -> Iterator[str]:
    with plain_hosts(tmp_path, 3) as address:
        yield address


@pytest.fixture(name="address_of_four")
def _address_of_four(tmp_path: Path) -> Iterator[str]:
    with plain_hosts(tmp_path, 4) as address:
        yield address
