"""Copies of a partition's state to a replica that the log no longer reaches: in checksummed chunks, while the partition serves.

The sender reads a snapshot of its store and has at most `WINDOW_CHUNKS` chunks unanswered, so that a slow receiver holds up nothing but its
own copy (I16); one copy at a time to each host. Both ends spend a part of their loop's time on copies and no more, and the sender no more
bytes than it may: calls go first. The receiver verifies every chunk and the whole before anything of it counts, and what is
half there is dropped (I13). A replica that votes goes on voting with what it had until the copy takes its place in one batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from actorgrid import ambient
from actorgrid.errors import CorruptLogError, InvariantViolation, StorageError
from actorgrid.host.commit import GroupCommit
from actorgrid.host.peers import Peers
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Member
from actorgrid.replication.frames import CopyAnswer, CopyBegin, CopyChunkFrame, CopyEnd
from actorgrid.storage.copy import CopyChunk, CopySource, CopySummary, CopyTarget
from actorgrid.storage.store import ReplicaPointer, Store

logger = logging.getLogger(__name__)

WINDOW_CHUNKS: Final = 4
#: After a chunk the loop has so many times as long for others as it took.
YIELD_FACTOR: Final = 3.0
#: A copy on which nothing was heard for so long is given up.
SILENCE_NS: Final = 10_000_000_000


class CopyingOwner(Protocol):
    """What copies need of their host."""

    def shell_of(self, partition: int) -> ReplicaShell | None:
        """The replica here, if there is one."""

    def next_incarnation_of(self, partition: int) -> int:
        """The lowest replica incarnation that may be built here."""

    def installed(self, pointer: ReplicaPointer) -> None:
        """A copy is durable: the replica goes on from it, or begins with it."""

    def guarded(self, action: Callable[[], Any]) -> None:
        """Do `action`; what it raises ends the duty of the host."""


class _Outgoing:
    """One copy being sent."""

    def __init__(self, number: int, shell: ReplicaShell, to: Member) -> None:
        self.number = number
        self.shell = shell
        self.to = to
        self.source: CopySource | None = None
        self.sent = 0
        self.answered = 0
        self.is_complete = False
        self.heard_ns = 0
        self.timer: asyncio.TimerHandle | None = None  # until the next chunk may go


class _Incoming:
    """One copy being received."""

    def __init__(self, begin: CopyBegin, target: CopyTarget) -> None:
        self.begin = begin
        self.target = target
        self.heard_ns = 0


class Copying:
    """The copies a host sends and receives.

    :param bytes_per_s: that are sent at most, over all copies
    """

    def __init__(
        self, store: Store, peers: Peers, commit: GroupCommit, owner: CopyingOwner, now_ns: Callable[[], int], bytes_per_s: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bytes_per_s = bytes_per_s
        self._next_chunk_s = 0.0
        self._store = store
        self._peers = peers
        self._commit = commit
        self._owner = owner
        self._now_ns = now_ns
        self._last_number = 0
        self._waiting: deque[tuple[ReplicaShell, Member]] = deque()
        self._outgoing: dict[str, _Outgoing] = {}
        self._incoming: dict[tuple[str, int], _Incoming] = {}
        self.sent_total = 0
        self.installed_total = 0
        self.bytes_sent_total = 0

    # -- sending

    def start(self, shell: ReplicaShell, to: Member) -> None:
        """Send `to` a copy, after the one that host is getting already."""
        if (shell, to) not in self._waiting:
            self._waiting.append((shell, to))
        self._begin_next()

    def _begin_next(self) -> None:
        for shell, to in list(self._waiting):
            if to.host not in self._outgoing:
                self._waiting.remove((shell, to))
                self._begin(shell, to)

    def _begin(self, shell: ReplicaShell, to: Member) -> None:
        if not shell.core.serving or not self._peers.is_up(to.host):
            shell.step(ev.CopyEnded(to, 0))
            return
        # One batch with everything committed and the sessions as they are now: what the snapshot then holds is one position.
        self._commit.apply_now(shell)
        batch = self._store.batch()
        shell.durable.checkpoint_now(batch)
        self._store.write(batch)
        self._last_number += 1
        copy = _Outgoing(self._last_number, shell, to)
        copy.source = CopySource(shell.durable)
        copy.heard_ns = self._now_ns()
        self._outgoing[to.host] = copy
        logger.info("copy begins partition=%d to=%s lsn=%d", shell.partition, to, shell.durable.applied_lsn)
        self._peers.send_frame(to.host, CopyBegin(copy.number, shell.partition, to.incarnation, shell.me.incarnation, shell.core.epoch))
        self._feed(copy)

    def _feed(self, copy: _Outgoing) -> None:
        source = copy.source
        assert source is not None
        while copy.sent - copy.answered < WINDOW_CHUNKS and not copy.is_complete and copy.timer is None:
            began_s = ambient.monotonic()  # not the loop's time, which stands still while it is held up
            if began_s < self._next_chunk_s:
                copy.timer = self._loop.call_at(self._next_chunk_s, self._go_on, copy)
                return
            try:
                chunk = source.next_chunk()
            except (CorruptLogError, StorageError) as error:
                logger.error("copy cannot be read partition=%d error=%s", copy.shell.partition, error)
                self._end(copy, 0)
                return
            if chunk is None:
                copy.is_complete = True
                s = source.summary
                self._peers.send_frame(
                    copy.to.host,
                    CopyEnd(copy.number, s.chunks, s.pairs, s.bytes, s.digest, s.lsn, s.epoch_at_lsn, s.configuration, s.configuration_lsn),
                )
                return
            copy.sent += 1
            self.bytes_sent_total += len(chunk.data)
            self._peers.send_frame(copy.to.host, CopyChunkFrame(copy.number, chunk.number, chunk.checksum, chunk.data))
            now_s = ambient.monotonic()
            self._next_chunk_s = now_s + max(len(chunk.data) / self._bytes_per_s, YIELD_FACTOR * (now_s - began_s))

    def _go_on(self, copy: _Outgoing) -> None:
        copy.timer = None
        if self._outgoing.get(copy.to.host) is copy:
            self._owner.guarded(lambda: self._feed(copy))

    def on_answer(self, host: str, answer: CopyAnswer) -> None:
        """The receiver has taken something, or everything, or given up."""
        copy = self._outgoing.get(host)
        if copy is None or copy.number != answer.copy:
            return
        copy.heard_ns = self._now_ns()
        if answer.error:
            logger.warning("copy refused partition=%d to=%s error=%s", copy.shell.partition, copy.to, answer.error)
            self._end(copy, 0)
        elif answer.done:
            assert copy.source is not None
            self.sent_total += 1
            logger.info("copy done partition=%d to=%s lsn=%d", copy.shell.partition, copy.to, copy.source.summary.lsn)
            self._end(copy, copy.source.summary.lsn)
        else:
            copy.answered = max(copy.answered, answer.chunks)
            self._feed(copy)

    def _end(self, copy: _Outgoing, lsn: int) -> None:
        if self._outgoing.get(copy.to.host) is copy:
            del self._outgoing[copy.to.host]
        if copy.timer is not None:
            copy.timer.cancel()
        if copy.source is not None:
            copy.source.close()
            if not lsn and not copy.is_complete:
                self._peers.send_frame(copy.to.host, CopyEnd(copy.number, 0, 0, 0, "", 0, 0, None, 0))
        copy.shell.step(ev.CopyEnded(copy.to, lsn))
        self._begin_next()

    # -- receiving

    def on_begin(self, host: str, begin: CopyBegin) -> None:
        """`host` wants to send a copy."""
        shell = self._owner.shell_of(begin.partition)
        if shell is not None and (shell.me.incarnation != begin.to or shell.core.epoch > begin.epoch or shell.core.serving):
            what = f"replica {shell.me} in epoch {shell.core.epoch}"
            self._refuse(host, begin.copy, f"{what} takes no copy for {begin.to} of epoch {begin.epoch}")
            return
        next_incarnation = self._owner.next_incarnation_of(begin.partition)
        if shell is None and begin.to < next_incarnation:
            self._refuse(host, begin.copy, f"replica {begin.to} was here and is gone; the next one is {next_incarnation}")
            return
        for key, incoming in list(self._incoming.items()):
            if incoming.begin.partition == begin.partition:
                self._abandon(key)
        try:
            incoming = _Incoming(begin, CopyTarget(self._store, begin.partition, begin.to))
        except InvariantViolation as error:
            self._refuse(host, begin.copy, str(error))
            return
        incoming.heard_ns = self._now_ns()
        self._incoming[host, begin.copy] = incoming

    def _refuse(self, host: str, copy: int, why: str) -> None:
        logger.warning("copy refused from=%s why=%s", host, why)
        self._peers.send_frame(host, CopyAnswer(copy, 0, error=why))

    def _abandon(self, key: tuple[str, int]) -> None:
        incoming = self._incoming.pop(key, None)
        if incoming is not None:
            self._commit.submit(incoming.target.abandon)

    def on_chunk(self, host: str, frame: CopyChunkFrame) -> None:
        """One chunk arrived: it is written at once, without waiting for the disk."""
        key = (host, frame.copy)
        incoming = self._incoming.get(key)
        if incoming is None:
            return
        incoming.heard_ns = self._now_ns()
        began_s = ambient.monotonic()
        try:
            incoming.target.add(CopyChunk(frame.number, frame.data, frame.checksum))
        except CorruptLogError as error:
            self._abandon(key)
            self._refuse(host, frame.copy, str(error))
            return
        # The sender waits for this: a host that is busy takes its time.
        pause_s = YIELD_FACTOR * (ambient.monotonic() - began_s)
        self._loop.call_later(pause_s, self._peers.send_frame, host, CopyAnswer(frame.copy, frame.number))

    def on_end(self, host: str, end: CopyEnd) -> None:
        """Everything was sent: verify it, and let it take its place."""
        key = (host, end.copy)
        incoming = self._incoming.get(key)
        if incoming is None:
            return
        if not end.digest or end.configuration is None:
            self._abandon(key)
            return
        begin = incoming.begin
        shell = self._owner.shell_of(begin.partition)
        if shell is None and begin.to < self._owner.next_incarnation_of(begin.partition):
            self._abandon(key)
            self._refuse(host, end.copy, f"replica {begin.to} was dropped meanwhile")
            return
        if shell is not None and (shell.me.incarnation != begin.to or not shell.core.takes_copy(end.lsn, end.epoch_at_lsn)):
            self._abandon(key)
            self._refuse(host, end.copy, f"replica {shell.me} is at {shell.core.committed_lsn}, the copy at {end.lsn}")
            return
        summary = CopySummary(
            end.chunks, end.pairs, end.bytes, end.digest, end.lsn, end.epoch_at_lsn, end.configuration, end.configuration_lsn
        )
        epoch, voted_for = (shell.core.epoch, shell.core.voted_for) if shell is not None else (begin.epoch, "")
        try:
            # What the replica still has under way must be in the store before it is replaced.
            self._commit.write_now()
            batch = self._store.batch()
            pointer = incoming.target.install(batch, summary, epoch, voted_for)
        except (CorruptLogError, InvariantViolation) as error:
            self._abandon(key)
            self._refuse(host, end.copy, str(error))
            return
        del self._incoming[key]
        self._store.write(batch)
        self._owner.installed(pointer)
        self.installed_total += 1
        # Durable before anybody counts on it (I13).
        self._commit.submit(lambda batch: None, lambda: self._done(host, end.copy, end.chunks))

    def _done(self, host: str, copy: int, chunks: int) -> None:
        self._peers.send_frame(host, CopyAnswer(copy, chunks, done=True))

    # -- ends

    def peer_lost(self, host: str) -> None:
        """The connection is gone, and with it what was under way."""
        copy = self._outgoing.get(host)
        if copy is not None:
            self._end(copy, 0)
        for key in [key for key in self._incoming if key[0] == host]:
            self._abandon(key)

    def shell_closed(self, shell: ReplicaShell) -> None:
        """`shell` is primary no more."""
        for copy in [copy for copy in self._outgoing.values() if copy.shell is shell]:
            self._end(copy, 0)
        self._waiting = deque((each, to) for each, to in self._waiting if each is not shell)

    def tick(self) -> None:
        """Give up what is silent."""
        now_ns = self._now_ns()
        for copy in list(self._outgoing.values()):
            if now_ns - copy.heard_ns > SILENCE_NS:
                self._end(copy, 0)
        for key, incoming in list(self._incoming.items()):
            if now_ns - incoming.heard_ns > SILENCE_NS:
                self._abandon(key)

    def close(self) -> None:
        """The host stops."""
        for copy in self._outgoing.values():
            if copy.timer is not None:
                copy.timer.cancel()
            if copy.source is not None:
                copy.source.close()
        self._outgoing.clear()
        self._waiting.clear()
        self._incoming.clear()
