"""Reads that any replica may answer: where each is sent, and where next.

They go past the lanes, since they have no place in the order of a partition's calls and no session record: their groups say 0 for
``lowest`` and ``since_lsn``, which frees nothing and fits every replica, however far behind it is. Their numbers hold back
``lowest_anywhere`` like those of other calls (a read may call other actors), which is the business of `Deadlines`.

A read is sent to one replica at a time. Refused or lost, it goes on to one that it has not tried, to the primary at once where a replica
says that only the primary can answer; when all have been tried it waits for its backoff and begins anew.
"""

from __future__ import annotations

import random
from typing import Protocol

from actorgrid.client.lane import GROUP_BYTES_MAX, encode_again, encode_group
from actorgrid.client.link import Link
from actorgrid.client.pending import PendingCall
from actorgrid.client.router import Router
from actorgrid.errors import HostUnavailableError, NotPrimaryError, ReconfigurationPendingError
from actorgrid.wire.framing import frames_of
from actorgrid.wire.messages import KIND_CALLS

#: Refusals that another replica need not give; one that is overloaded, for one, is a reason to wait.
ANOTHER_MAY_ANSWER = (NotPrimaryError, HostUnavailableError, ReconfigurationPendingError)


class AnyReadsOwner(Protocol):
    """What is asked and told; the `Caller` is one."""

    def plan_flush(self) -> None:
        """Call `AnyReads.flush` at the end of this turn of the loop."""

    def wait_for_replica(self, call: PendingCall) -> None:
        """No replica can be asked now: keep `call` for its backoff, then `AnyReads.add` it again."""

    def refuse_too_large(self, call: PendingCall, size: int, size_max: int) -> None:
        """`call` does not fit into a frame of this host."""


class AnyReads:
    """Sends reads with ``consistency="any"``.

    :ivar unsent: reads to send in this turn of the loop
    :ivar were_made: there has been such a read
    """

    def __init__(self, owner: AnyReadsOwner, router: Router, rng: random.Random) -> None:
        self.unsent: list[PendingCall] = []
        self.were_made = False
        self._owner = owner
        self._router = router
        self._turn = rng.randrange(1 << 16)  # clients that start together do not all begin with the same replica

    def add(self, call: PendingCall) -> None:
        """Send `call` at the end of this turn of the loop."""
        if not self.unsent:
            self._owner.plan_flush()
            self.were_made = True
        self.unsent.append(call)

    def refused(self, call: PendingCall, refused_by: str) -> None:
        """A replica does not answer `call`, for a reason that another one need not have."""
        call.tried = (*call.tried, refused_by)
        self.add(call)

    def try_another(self, call: PendingCall) -> None:
        """A replica owes an answer for long: ask another one too, if there is one. The first answer counts, wherever it comes from."""
        assert call.connection is not None
        if call.connection.name not in call.tried:
            call.tried = (*call.tried, call.connection.name)
        if self._choose(call) is not None:
            call.is_in_doubt = True
            self.add(call)

    def flush(self, now: float) -> None:
        """Send what is unsent, for each host in as few frames as may be."""
        calls, self.unsent = self.unsent, []
        batches: dict[Link, _Batch] = {}
        for call in calls:
            if call.done():
                continue
            link = self._choose(call)
            if link is None:
                if call.connection is None:
                    call.tried = ()
                    self._owner.wait_for_replica(call)
                continue
            batch = batches.get(link)
            if batch is None:
                batch = batches[link] = _Batch(link)
            self._send(call, batch, now)
        for batch in batches.values():
            batch.write()

    def _choose(self, call: PendingCall) -> Link | None:
        replicas = self._router.replicas_of(call.lane)
        tried = call.tried
        links = [link for link in replicas if link.is_writable and link.name not in tried]
        if not links:
            return None
        if isinstance(call.last_error, NotPrimaryError) and links[0] is call.lane.link:
            return links[0]
        self._turn += 1
        return links[self._turn % len(links)]

    def _send(self, call: PendingCall, batch: _Batch, now: float) -> None:
        encoded = call.encoded
        is_first = encoded is not None
        if encoded is None:
            encoded = encode_again(call, now)
        if len(encoded) > batch.call_bytes_max:
            self._owner.refuse_too_large(call, len(encoded), batch.call_bytes_max)
            return
        call.encoded = None
        call.resends += not is_first
        call.since_lsn = 0
        call.connection = batch.link.connection
        batch.add(call.lane.partition, encoded)


class _Batch:
    """Encoded reads to one host, by partition; written when there is enough for a frame."""

    def __init__(self, link: Link) -> None:
        assert link.connection is not None
        self.link = link
        self._connection = link.connection
        self._frame_bytes_max = link.connection.frame_bytes_max
        self.call_bytes_max = self._frame_bytes_max - 2 * GROUP_BYTES_MAX
        self._parts: dict[int, list[bytes]] = {}
        self._size = 0

    def add(self, partition: int, encoded: bytes) -> None:
        if self._size + len(encoded) > self.call_bytes_max // 2:
            self.write()
        self._parts.setdefault(partition, []).append(encoded)
        self._size += len(encoded)

    def write(self) -> None:
        """Write what there is. A peer that reads too slowly is offered no more reads until it has caught up."""
        if self._parts and not self._connection.is_closed:
            groups = [encode_group(partition, b"", 0, 0, 0, parts) for partition, parts in self._parts.items()]
            self._connection.write(frames_of(KIND_CALLS, groups, self._frame_bytes_max))
            self.link.is_writable = self.link.is_writable and not self._connection.is_paused
        self._parts, self._size = {}, 0
