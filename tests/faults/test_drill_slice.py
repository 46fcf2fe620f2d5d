"""The first steps of `make drill`: a host joins, one is drained and taken back, one is restarted, and no caller sees an error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults import drill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_hosts_come_and_go_under_load_and_no_caller_sees_an_error(tmp_path: Path) -> None:
    console = Console(width=180)
    drilled = asyncio.run(drill.drill(tmp_path, seed=1, partitions=16, callers=64, think_s=0.05, short=True, console=console))
    drill.show(drilled, console)
    for verdict in drilled.verdicts:
        assert verdict, "\n".join([str(verdict), *verdict.details])
    assert [step.failed for step in drilled.steps] == [0] * 4
    assert sum(step.moves for step in drilled.steps) >= 24
    assert sum(step.swaps for step in drilled.steps) >= 8
