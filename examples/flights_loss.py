"""What the demo does to one host, and how it finds out what came of that: it asks hosts what they report, and changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable

from actorgrid.cluster.local import LocalGrid

REBUILT_TIMEOUT_S = 90.0
LOOK_INTERVAL_S = 0.2


class Gaps:
    """For how long partitions gave no answer: for each the longest time between two answers, from `watch` on."""

    def __init__(self) -> None:
        self._last_at: dict[int, float] = {}
        self.longest_s: dict[int, float] = {}

    def watch(self, partitions: Iterable[int]) -> None:
        """From now on."""
        now = time.monotonic()
        self._last_at = dict.fromkeys(partitions, now)
        self.longest_s = dict.fromkeys(self._last_at, 0.0)

    def answered(self, partition: int) -> None:
        """A call to `partition` was answered."""
        last_at = self._last_at.get(partition)
        if last_at is not None:
            now = time.monotonic()
            self._last_at[partition] = now
            if now - last_at > self.longest_s[partition]:
                self.longest_s[partition] = now - last_at


@dataclasses.dataclass
class Loss:
    """One host that lost its process and its disk, and what happened then. Times count from the kill.

    :ivar partitions: those it was primary of
    :ivar lost_bytes: what it had on disk
    :ivar pid_after: its process when everything was rebuilt; 0: that did not come about
    """

    host: str
    pid_before: int
    partitions: list[int]
    lost_bytes: int
    in_flight: int
    answered_before: int
    replayed_s: float
    at: float
    pid_after: int = 0
    back_s: float = 0.0
    rebuilt_s: float = 0.0
    answered_meanwhile: int = 0

    def since(self) -> float:
        """Seconds since the kill."""
        return time.monotonic() - self.at


def directory_bytes(local_grid: LocalGrid, host: str) -> int:
    """Size of everything that `host` has on disk."""
    directory = local_grid.data / next(each for each in local_grid.hosts if each.name == host).data_dir
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


async def watch_return(local_grid: LocalGrid, loss: Loss, answered: Callable[[], int], say: Callable[[str], None]) -> None:
    """Follow the lost host until every partition has all its replicas again.

    :param answered: how many calls were answered so far
    :raises TimeoutError: that did not come about
    """
    while True:
        await asyncio.sleep(LOOK_INTERVAL_S)
        report = await asyncio.to_thread(local_grid.report)
        host = next(each for each in report["hosts"] if each["name"] == loss.host)
        if host["state"] == "serving" and not loss.back_s:
            loss.back_s = loss.since()
            say(f"{loss.host} is back after {loss.back_s:.1f} s, as pid {host['pid']}, with an empty disk; the others fill it")
        partitions = [report["system_partition"], *report["partitions"]]
        whole = [partition for partition in partitions if partition["health"] == "ok"]
        if loss.back_s and len(whole) == len(partitions):
            loss.rebuilt_s, loss.pid_after = loss.since(), host["pid"]
            loss.answered_meanwhile = answered() - loss.answered_before
            say(
                f"all {len(partitions)} partitions have all replicas again after {loss.rebuilt_s:.1f} s; "
                f"{loss.answered_meanwhile:,} calls were answered meanwhile"
            )
            return
        if loss.since() > REBUILT_TIMEOUT_S:
            why = next((partition["why"] for partition in partitions if partition["health"] != "ok"), f"{loss.host} is {host['state']}")
            raise TimeoutError(f"not everything is rebuilt {REBUILT_TIMEOUT_S:.0f} s after the kill: {why}")
