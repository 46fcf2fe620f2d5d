"""Group commit: one batch, one sync, for everything all partitions of a host did meanwhile.

While one sync is under way the next batch forms, so that the batches grow with the load and no timer is needed. Nobody is answered
before the sync that covers the entry has returned (I2). A failed write or sync ends the duty of every partition of the store (I12).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from actorgrid.errors import StorageError
from actorgrid.storage.store import Store

if TYPE_CHECKING:
    from actorgrid.host.partition import HostedPartition

logger = logging.getLogger(__name__)

#: Committed changes wait at most this long for the next log write to take them into the state; a restart would replay them instead.
APPLY_DELAY_S: Final = 0.02


class GroupCommit:
    """Collects what partitions append, and makes it durable."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: Store, failed: Callable[[StorageError], None]) -> None:
        self._loop = loop
        self._store = store
        self._failed = failed
        self._dirty: dict[HostedPartition, None] = {}
        self._unapplied: dict[HostedPartition, None] = {}
        self._syncing: list[HostedPartition] = []
        self._busy = False
        self._kick_scheduled = False
        self._apply_timer: asyncio.TimerHandle | None = None
        self._after_write: list[Callable[[], None]] = []
        self._stopped = False
        self.syncs_total = 0

    def mark(self, partition: HostedPartition) -> None:
        """`partition` has entries to append."""
        self._dirty[partition] = None
        if not self._busy and not self._kick_scheduled:
            self._kick_scheduled = True
            self._loop.call_soon(self._kick)

    def after_write(self, action: Callable[[], None]) -> None:
        """Do `action` as soon as the batch that is being made is in the store."""
        self._after_write.append(action)

    def _kick(self) -> None:
        self._kick_scheduled = False
        if self._busy or self._stopped or not self._dirty:
            return
        self._busy = True
        dirty, self._dirty = self._dirty, {}
        now_ns = time.monotonic_ns()
        try:
            batch = self._store.batch()
            for partition in dirty:
                partition.write_record(batch, now_ns)
                self._unapplied.pop(partition, None)
            self._store.write(batch)
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the duty too, not leave callers waiting for ever
            self._fail_because(error)
            return
        self._syncing = list(dirty)
        self._store.sync(self._report_sync)
        self._run_after_write()

    def _report_sync(self, error: StorageError | None) -> None:
        """In the sync thread."""
        try:
            self._loop.call_soon_threadsafe(self._synced, error)
        except RuntimeError:
            logger.debug("the loop closed before a sync was reported")

    def _synced(self, error: StorageError | None) -> None:
        self._busy = False
        if self._stopped:
            return
        if error is not None:
            self.fail(error)
            return
        self.syncs_total += 1
        now_ns = time.monotonic_ns()
        synced, self._syncing = self._syncing, []
        # The next batch starts before the answers of this one are sent: the disk works while the answers are encoded.
        if self._dirty:
            self._loop.call_soon(self._kick)
            self._kick_scheduled = True
        try:
            for partition in synced:
                partition.synced(now_ns)
                if partition.has_unapplied:
                    self._unapplied[partition] = None
        except Exception as failure:  # noqa: BLE001 - as above
            self._fail_because(failure)
            return
        if self._unapplied and self._apply_timer is None:
            self._apply_timer = self._loop.call_later(APPLY_DELAY_S, self._apply)

    def _apply(self) -> None:
        """Nothing was appended to these partitions for a while: put their committed changes into the state without waiting for more."""
        self._apply_timer = None
        if self._stopped or not self._unapplied:
            return
        unapplied, self._unapplied = self._unapplied, {}
        try:
            batch = self._store.batch()
            for partition in unapplied:
                partition.write_applied(batch)
            self._store.write(batch)
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the duty too, not leave callers waiting for ever
            self._fail_because(error)
            return
        self._run_after_write()

    def _run_after_write(self) -> None:
        actions, self._after_write = self._after_write, []
        try:
            for action in actions:
                action()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_because(error)

    def _fail_because(self, error: Exception) -> None:
        if not isinstance(error, StorageError):
            logger.error("commit failed by a bug", exc_info=error)
            error = StorageError(f"the commit failed by a bug: {type(error).__name__}: {error}")
        self.fail(error)

    def fail(self, error: StorageError) -> None:
        """The store cannot be trusted any more: nothing is written from now on."""
        self._stopped = True
        self._failed(error)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is left to write, at most `timeout_s`."""
        deadline_s = self._loop.time() + timeout_s
        while (self._busy or self._dirty) and not self._stopped and self._loop.time() < deadline_s:
            await asyncio.sleep(0.002)
        if not self._busy:
            self._apply()

    def stop(self) -> None:
        """Write nothing more."""
        self._stopped = True
        if self._apply_timer is not None:
            self._apply_timer.cancel()
            self._apply_timer = None
