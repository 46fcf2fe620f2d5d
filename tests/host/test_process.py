"""What a host's process sets up for itself, and what that rests on."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter
from pathlib import Path

from host_actors import Box
from host_harness import one_grid, run, until

from actorgrid.settings import HostSettings

SHOW_THRESHOLD = """
import gc
from actorgrid.host.process import calm_garbage_collector
calm_garbage_collector()
print(*gc.get_threshold(), gc.get_freeze_count())
"""


def test_calls_and_activations_that_leave_make_no_cycles(tmp_path: Path) -> None:
    """A host's collector runs seldom, because what a call or an activation leaves behind needs none."""

    async def main() -> None:
        async with one_grid(tmp_path, settings=HostSettings(activation_idle_s=0.2)) as (hosts, client):
            residents = hosts[0].residents

            async def calls() -> None:
                for number in range(100):
                    await client.get(Box, f"a{number}").add(1)
                    await client.get(Box, f"a{number}").look()

            await calls()
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                dropped = residents.dropped_total
                await calls()
                await until(lambda: residents.count == 0 and residents.dropped_total >= dropped + 100)
                gc.collect()
                assert not Counter(type(found).__name__ for found in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()

    run(main)


def test_the_collector_of_a_hosts_process_runs_seldom() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW_THRESHOLD], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert shown[:3] == ["20000", "20", "200"]
    assert int(shown[3]) > 1000
