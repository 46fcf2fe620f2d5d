"""The liveness phase after each fault: every partition must acknowledge a change in bounded time, whatever its hosts say of themselves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Self

from actorgrid import grid
from actorgrid.errors import ActorGridError
from actorgrid.settings import ClientSettings
from tests.faults.grid_processes import GridProcesses, NotHealthyError
from tests.faults.history import PROGRESS_CALLER, HistoryWriter, Record, partition_of_actor
from tests.faults.load_client import Ledger, outcome_of

PROGRESS_WITHIN_S = 15.0


class Progress:
    """A client of its own with one actor on each partition. Its changes are judged like all others.

    A local transfer to each actor would find more; the load makes those.
    """

    def __init__(self, directory: Path, hosts: GridProcesses) -> None:
        self._history = HistoryWriter(directory / "history-progress.jsonl")
        self._client = grid.connect(hosts.seeds, settings=ClientSettings(timeout_s=PROGRESS_WITHIN_S))
        self._actors: dict[int, str] = {}
        self._count = 0
        for number in range(100_000):
            if len(self._actors) == hosts.partition_count:
                break
            self._actors.setdefault(partition_of_actor(f"w-{number}", hosts.partition_count), f"w-{number}")

    async def __aenter__(self) -> Self:
        await self._client.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        self._history.close()

    async def demand(self) -> float:
        """Change one actor of each partition.

        :return: how long the slowest took, in seconds
        :raises NotHealthyError: a partition did not acknowledge it in time
        """
        self._count += 1
        async with asyncio.TaskGroup() as group:
            tasks = {partition: group.create_task(self._change(partition, actor)) for partition, actor in sorted(self._actors.items())}
        records = {partition: task.result() for partition, task in tasks.items()}
        for record in records.values():
            self._history.add(record)
        self._history.flush()
        stuck = {partition: record.error for partition, record in records.items() if record.outcome != "ok"}
        if stuck:
            raise NotHealthyError(
                f"every host says it is whole, and {len(stuck)} partitions acknowledge no change within {PROGRESS_WITHIN_S:g} s: {stuck}"
            )
        return max(record.ended_ns - record.began_ns for record in records.values()) / 1e9

    async def _change(self, partition: int, actor: str) -> Record:
        # A caller with an unknown outcome retires; here that is the end of the campaign.
        record = Record(
            "change", actor, f"w{self._count}.{partition}", "", 0, -1, time.monotonic_ns(), 0, "unknown", f"{PROGRESS_CALLER}.{partition}.0"
        )
        try:
            record.version = await self._client.get(Ledger, actor).change(record.token)
            record.outcome = "ok"
        except ActorGridError as error:
            record.outcome, record.error = outcome_of(error), f"{type(error).__name__}: {error}"[:300]
        if record.outcome != "unknown":
            record.ended_ns = time.monotonic_ns()
        return record
