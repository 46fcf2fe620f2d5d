"""Turns that wait are logged, and do not fill the log."""

import asyncio
import itertools

from actorgrid import grid
from actorgrid.settings import HostSettings
from actorgrid.testing import TestGrid


@grid.actor
class Waiter:
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def test_a_turn_that_waits_is_logged_again_when_it_has_waited_twice_as_long(caplog):
    with TestGrid(Waiter, settings=HostSettings(turn_stuck_report_s=1.0)) as test_grid:
        test_grid.call(Waiter.wait, "a", 20.0)
        test_grid.call(Waiter.wait, "a", 0.5)
    waited_s = [float(record.message.split("for_s=")[1]) for record in caplog.records if record.message.startswith("turn waits")]
    assert 4 <= len(waited_s) <= 5, waited_s
    assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(waited_s))
