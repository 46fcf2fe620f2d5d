"""Hosts that nobody's `up` started: plain processes, no Ray."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import plain_grid by name

from plain_grid import PlainHosts, plain_hosts


@pytest.fixture(name="address")
def _address(tmp_path: Path) -> Iterator[str]:
    with plain_hosts(tmp_path, 3) as plain:
        yield plain.address(1)


@pytest.fixture(name="three_hosts")
def _three_hosts(tmp_path: Path) -> Iterator[PlainHosts]:
    with plain_hosts(tmp_path, 3) as plain:
        yield plain


@pytest.fixture(name="address_of_four")
def _address_of_four(tmp_path: Path) -> Iterator[str]:
    with plain_hosts(tmp_path, 4) as plain:
        yield plain.address(1)
