"""A real API server for the tests of this directory.

Either ``ACTORGRID_K8S_CONTROL_PLANE`` names a command that has ``start``, which prints ``export KUBECONFIG=... PATH=...``, and ``stop``; or
``KUBECONFIG`` names a cluster whose objects may be made and deleted. Without both the tests are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

COMMAND = "ACTORGRID_K8S_CONTROL_PLANE"
MISSING = (
    f"no API server: set {COMMAND} to a command that has `start` (prints `export KUBECONFIG=... PATH=...`) and `stop`, "
    "or KUBECONFIG to that of a cluster for tests"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kubernetes: needs a real API server, and skips without one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker("kubernetes")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Path]:
    """Its kubeconfig, of somebody who may do everything."""
    command = shlex.split(os.environ.get(COMMAND, ""))
    if not command:
        if not os.environ.get("KUBECONFIG"):
            pytest.skip(MISSING)
        yield Path(os.environ["KUBECONFIG"])
        return
    started = subprocess.run([*command, "start"], capture_output=True, text=True, timeout=600, check=False)
    found = re.search(r"KUBECONFIG=(\S+)", started.stdout)
    if started.returncode or found is None:
        pytest.fail(
            f"`{shlex.join(command)} start` made no control plane (is one running already?): {started.stdout}{started.stderr}"[:3000]
        )
    try:
        yield Path(found[1])
    finally:
        subprocess.run([*command, "stop"], capture_output=True, timeout=120, check=False)
