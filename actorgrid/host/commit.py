"""Group commit: one batch, one sync, for everything all replicas of a host did meanwhile.

While one sync is under way the next batch forms, so that the batches grow with the load; where many replicas write, batches are also paced.
What replicas want durable (epochs, votes, log records) goes into the open batch as it comes (`open_batch`); a primary's entries and the
applied state join when the batch is written. Nobody is answered before the sync that covers the entry has returned (I2). A failed write or
sync ends the duty of every replica of the store (I12).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Final, Protocol

from actorgrid import ambient
from actorgrid.errors import StorageError
from actorgrid.storage.store import Batch, Store

logger = logging.getLogger(__name__)

#: Committed changes go into the state after about so long, together: of a value that changes often only the last one is written. Until
#: then the log has them, and a restart replays them.
APPLY_DELAY_S: Final = 1.0
#: In so many steps, each of which takes the replicas that wait longest: all at once would hold up every call of the host.
APPLY_STEPS: Final = 10
#: A batch of at least so many replicas is followed by the next one about so long after its own beginning, not sooner: under load a batch
#: costs about the same whether it has few records or many, and what comes meanwhile shares it. Where little is written nobody waits for
#: company. (The idea is that of PostgreSQL's commit_siblings and commit_delay; the loop's timers go by whole milliseconds.)
PACED_FROM_WRITERS: Final = 8
PACE_NS: Final = 2_000_000
#: A batch of no more replicas is synced on the spot if the disk is quick (decision 17): what a lone caller waits for is hand-overs, not
#: the disk.
HERE_WRITERS_MAX: Final = 4
#: What nobody waits for joins what somebody does, or goes after so long by itself: to the disk, and to other hosts.
PATIENCE_S: Final = 0.005
#: Secondaries are told what is committed after one to two times so long without anything new to append, which would tell them too.
IDLE_DELAY_S: Final = 0.05


class Writer(Protocol):
    """What has something to write; a `ReplicaShell` is one."""

    def write(self, batch: Batch, now_ns: int) -> None:
        """Put what is still to be appended or applied into `batch`, which is written next."""

    def written(self) -> None:
        """The batch is in the store (not yet durable)."""

    def begin_sync(self) -> None:
        """A sync of what is written begins."""

    def synced(self, now_ns: int) -> None:
        """Everything that was written when the sync began is durable."""

    def write_applied(self, batch: Batch) -> None:
        """Put what is committed into the state."""

    def idle(self) -> None:
        """Something was committed, and perhaps nothing was appended since."""

    @property
    def has_unapplied(self) -> bool:
        """Whether something committed is not in the state yet."""


def _nothing() -> None: ...


def _count_urgent(writers: dict[Writer, bool]) -> int:
    """How many of them somebody waits for: what only rides along decides neither where a batch is synced nor when the next one begins."""
    count = 0
    for is_urgent in writers.values():
        if is_urgent:
            count += 1
    return count


class GroupCommit:
    """Collects what replicas write, and makes it durable."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: Store, failed: Callable[[StorageError], None], put_marks: Callable[[Batch], None]
    ) -> None:
        self._loop = loop
        self._store = store
        self._failed = failed
        self._put_marks = put_marks
        self._open: Batch | None = None
        self._dirty: dict[Writer, bool] = {}  # and whether somebody waits for it
        self._written: dict[Writer, bool] = {}
        self._unapplied: dict[Writer, None] = {}
        self._syncing: list[Writer] = []
        self._syncing_callbacks: list[Callable[[], None]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._is_busy = False
        self._is_writing = False
        self._kick_scheduled = False
        self._apply_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._patience_timer: asyncio.TimerHandle | None = None
        self._is_next_awaited = False
        self._idle: dict[Writer, None] = {}
        self._active: dict[Writer, bool] = {}  # those that have written since `_on_idle` looked
        self._awaited_in_state: dict[Writer, None] = {}
        self._after_write: list[Callable[[], None]] = []
        self._stopped = False
        self._sync_began_ns = 0
        self._paced_until_ns = 0  # 0: the next batch need not wait
        self._syncing_position = store.position
        #: Sends what is to be sent to other hosts, without waiting for the end of the loop's turn.
        self.send_now: Callable[[], None] = _nothing
        #: The highest position of the store that is durable: what peers may be told.
        self.synced_position = store.position
        self.syncs_total = 0

    # -- asking

    def mark(self, writer: Writer) -> None:
        """`writer` has something for the next batch."""
        self._dirty[writer] = True
        self._kick_soon()

    def open_batch(self, writer: Writer, *, may_wait: bool = False) -> Batch:
        """The batch that is written next; `writer` hears of its sync.

        :param may_wait: nobody waits for what is put into it, so it is written with what others want, or after `PATIENCE_S`
        """
        if self._is_writing:
            pass
        elif may_wait:
            self._dirty.setdefault(writer, False)
            self._kick_later()
        else:
            self.mark(writer)
        return self._any_batch()

    def submit(self, fill: Callable[[Batch], None], done: Callable[[], None] | None = None) -> None:
        """Write what `fill` puts into the next batch; ``done()`` once it is durable."""
        fill(self._any_batch())
        if done is not None:
            self._callbacks.append(done)
        self._kick_soon()

    def _any_batch(self) -> Batch:
        if self._open is None:
            self._open = self._store.batch()
        return self._open

    def after_write(self, action: Callable[[], None]) -> None:
        """Do `action` as soon as the batch that is being made is in the store."""
        self._after_write.append(action)

    def has_unapplied(self, writer: Writer) -> None:
        """`writer` has committed changes that are not in the state yet, and others may not know that they are committed."""
        self._unapplied[writer] = self._idle[writer] = None
        self._apply_later()
        self._look_for_idle_later()

    def apply_soon(self, writer: Writer) -> None:
        """Somebody waits for what `writer` has committed to be in the state."""
        self._awaited_in_state[writer] = None
        self._look_for_idle_later()

    def _apply_later(self) -> None:
        if self._apply_timer is None:
            self._apply_timer = self._loop.call_later(APPLY_DELAY_S / APPLY_STEPS, self._apply_some)

    def _look_for_idle_later(self) -> None:
        if self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_DELAY_S, self._on_idle)

    def _on_idle(self) -> None:
        self._idle_timer = None
        if self._stopped:
            return
        active, self._active = self._active, {}
        idle, self._idle = self._idle, {}
        awaited, self._awaited_in_state = self._awaited_in_state, {}
        try:
            for writer in idle:
                if writer in active:
                    self._idle[writer] = None
                else:
                    writer.idle()
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the duty too, not leave callers waiting for ever
            self._fail_because(error)
            return
        if self._idle:
            self._look_for_idle_later()
        if awaited:
            self._apply(list(awaited))

    def stuck_ns(self, now_ns: int) -> int:
        """For how long the disk owes an answer; 0 if it does not."""
        return now_ns - self._sync_began_ns if self._is_busy else 0

    # -- the cycle

    @property
    def _is_wanted(self) -> bool:
        """Whether there is anything for a batch or a sync."""
        return bool(self._dirty or self._callbacks or self._written) or self._open is not None

    def _kick_later(self) -> None:
        """Begin the next batch when nothing else has for a while."""
        if self._patience_timer is None:
            self._patience_timer = self._loop.call_later(PATIENCE_S, self._end_patience)

    def _end_patience(self) -> None:
        self._patience_timer = None
        if self._is_wanted:
            self._kick_soon()

    def _kick_soon(self) -> None:
        """Begin the next batch, unless one is being synced: then its end does it."""
        self._is_next_awaited = True
        if self._is_busy or self._kick_scheduled:
            return
        self._kick_scheduled = True
        wait_s = (self._paced_until_ns - ambient.monotonic_ns()) / 1e9 if self._paced_until_ns else 0.0
        if wait_s > 0:
            self._loop.call_later(wait_s, self._kick)
        else:
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kick_scheduled = False
        if self._is_busy or self._stopped or not self._is_wanted:
            return
        now_ns = ambient.monotonic_ns()
        self._is_next_awaited = False  # what comes while this batch is written waits for the next
        try:
            self._write_open(now_ns, with_proposals=True)
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the duty too, not leave callers waiting for ever
            self._fail_because(error)
            return
        self._is_busy = True
        self._sync_began_ns = now_ns
        writers = _count_urgent(self._written)
        self._syncing, self._written = list(self._written), {}
        self._paced_until_ns = now_ns + PACE_NS if writers >= PACED_FROM_WRITERS else 0
        self._syncing_callbacks, self._callbacks = self._callbacks, []
        for writer in self._syncing:
            writer.begin_sync()
        self._syncing_position = self._store.position
        if writers > HERE_WRITERS_MAX or not self._store.sync_is_quick:
            self._store.sync(self._report_sync)
            self._run_after_write()
            return
        self._run_after_write()
        self._send()
        try:
            self._store.sync_now()
        except StorageError as error:
            self._synced(error)
        else:
            self._synced(None)
        self._send()

    def _send(self) -> None:
        try:
            self.send_now()
        except Exception:
            # A bug on the way to other hosts is none of the store, and what was to be sent is sent again.
            logger.exception("frames could not be sent")

    def _write_open(self, now_ns: int, *, with_proposals: bool) -> None:
        dirty = self._dirty
        if with_proposals:
            self._dirty = {}
            self._is_writing = True
            try:
                for writer in dirty:
                    writer.write(self._any_batch(), now_ns)
            finally:
                self._is_writing = False
        if with_proposals and _count_urgent(dirty) <= HERE_WRITERS_MAX:
            self._send()  # the others' disks work while this one does
        batch = self._any_batch()
        self._put_marks(batch)
        self._store.advance(batch)
        self._open = None
        self._store.write(batch)
        for writer, is_urgent in dirty.items():
            writer.written()
            self._written[writer] = is_urgent or self._written.get(writer, False)
        self._active.update(dirty)

    def write_now(self) -> None:
        """Bring the open batch into the store at once; it is synced with the next one.

        :raises StorageError: the outcome is unknown
        """
        if self._open is not None and not self._stopped:
            self._write_open(ambient.monotonic_ns(), with_proposals=False)
            self._kick_soon()

    def _report_sync(self, error: StorageError | None) -> None:
        """In the sync thread."""
        try:
            self._loop.call_soon_threadsafe(self._synced, error)
        except RuntimeError:
            logger.debug("the loop closed before a sync was reported")

    def _synced(self, error: StorageError | None) -> None:
        self._is_busy = False
        if self._stopped:
            return
        if error is not None:
            self.fail(error)
            return
        self.syncs_total += 1
        self.synced_position = self._syncing_position
        now_ns = ambient.monotonic_ns()
        synced, self._syncing = self._syncing, []
        callbacks, self._syncing_callbacks = self._syncing_callbacks, []
        # The next batch starts before the answers of this one are sent: the disk works while the answers are encoded.
        if self._is_next_awaited:
            self._kick_soon()
        try:
            for writer in synced:
                writer.synced(now_ns)
            for callback in callbacks:
                callback()
        except Exception as failure:  # noqa: BLE001 - as above
            self._fail_because(failure)

    def _apply_some(self) -> None:
        self._apply_timer = None
        waiting = self._unapplied
        self._apply(list(itertools.islice(waiting, -(-len(waiting) // APPLY_STEPS))))
        if self._unapplied and not self._stopped:
            self._apply_later()

    def _apply(self, writers: list[Writer]) -> None:
        """Put what these have committed into the state."""
        if self._stopped or not writers:
            return
        for writer in writers:
            self._unapplied.pop(writer, None)
        try:
            # Log before state: what is in the open batch may be what the state is applied from.
            self.write_now()
            batch = self._store.batch()
            for writer in writers:
                writer.write_applied(batch)
            self._store.write(batch)
        except Exception as error:  # noqa: BLE001 - a bug of ours must end the duty too, not leave callers waiting for ever
            self._fail_because(error)
            return
        for writer in writers:
            if writer.has_unapplied:  # one that was just elected takes nothing before it serves, and may lose office before
                self.has_unapplied(writer)
        self._run_after_write()

    def apply_now(self, writer: Writer) -> None:
        """Bring everything `writer` has committed into the store's state, before anybody reads it.

        :raises StorageError: the outcome is unknown
        """
        self._unapplied.pop(writer, None)
        self.write_now()
        batch = self._store.batch()
        writer.write_applied(batch)
        self._store.write(batch)
        if writer.has_unapplied:
            self.has_unapplied(writer)
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
        if not self._stopped:
            self._stopped = True
            self._failed(error)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing is left to write, at most `timeout_s`."""
        deadline_s = self._loop.time() + timeout_s
        while (self._is_busy or self._is_wanted) and not self._stopped and self._loop.time() < deadline_s:
            self._kick_soon()  # also what nobody waits for
            await asyncio.sleep(0.002)
        if not self._is_busy:
            self._apply(list(self._unapplied))

    def stop(self) -> None:
        """Write nothing more."""
        self._stopped = True
        for timer in (self._apply_timer, self._idle_timer, self._patience_timer):
            if timer is not None:
                timer.cancel()
        self._apply_timer = self._idle_timer = None
