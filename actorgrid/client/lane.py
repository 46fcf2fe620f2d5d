"""The calls of one client to one partition: what is not sent yet, and what the partition may forget.

A lane turns its unsent calls into encoded `CallGroup` items. First sends were encoded when they were submitted; here they are
only joined. Retries and calls made for others (`Origin`) are encoded here, and grouped by what their header must say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from msgspec import Raw

from actorgrid.client.pending import PendingCall
from actorgrid.ids import PartitionId
from actorgrid.wire.framing import array_header
from actorgrid.wire.messages import CallExtra, encode

if TYPE_CHECKING:
    from actorgrid.client.connection import Connection
    from actorgrid.client.link import Link

#: Bytes of a group besides its calls, and of what a retry adds to a call: see `CallGroup` and `CallExtra`.
GROUP_BYTES_MAX = 96
_ARRAY_OF_SIX = b"\x96"


class LaneOwner(Protocol):
    """What a lane tells; the `Caller` is one."""

    def forget(self, call: PendingCall) -> None:
        """`call` is over without an answer."""

    def refuse_too_large(self, call: PendingCall, size: int, size_max: int) -> None:
        """`call` does not fit into a frame of this host."""


class Lane:
    """Calls to one partition.

    :ivar numbers: request numbers submitted since the oldest unanswered one, oldest first; only trimmed when looked at
    :ivar unsent: calls to send, in order of their numbers unless `is_mixed`
    :ivar is_mixed: `unsent` has retries or calls with an `Origin`
    :ivar is_dirty: the caller has it in its list of lanes to flush
    :ivar since_lsn: newest position of the partition's log that a host told us
    :ivar link: the host of the primary, or None where none is known
    """

    __slots__ = ("_dropped", "_owner", "is_dirty", "is_mixed", "link", "numbers", "partition", "since_lsn", "unsent")

    def __init__(self, partition: PartitionId, owner: LaneOwner) -> None:
        self.partition = partition
        self.numbers: deque[int] = deque()
        self.unsent: list[PendingCall] = []
        self.is_mixed = False
        self.is_dirty = False
        self.since_lsn = 0
        self.link: Link | None = None
        self._dropped = 0
        self._owner = owner

    def lowest(self, pending: Mapping[int, PendingCall], next_number: int) -> int:
        """The lowest request number to this partition that is not answered; amortised constant."""
        numbers = self.numbers
        while numbers and numbers[0] not in pending:
            numbers.popleft()
        return numbers[0] if numbers else next_number

    def forget(self, call: PendingCall) -> None:
        """`call` is over although no answer came."""
        self._owner.forget(call)
        if call.connection is None and not call.is_parked:
            self._dropped += 1
            if self._dropped > 64 and self._dropped * 2 > len(self.unsent):
                # While a host is away, calls come and expire; what is over must not pile up (I16).
                self._sweep()

    def is_waiting(self) -> bool:
        """Whether a call is still to be sent."""
        if self._dropped:
            self._sweep()
        return bool(self.unsent)

    def _sweep(self) -> None:
        self.unsent = [call for call in self.unsent if not call.done()]
        self._dropped = 0

    def take(
        self, connection: Connection, pending: Mapping[int, PendingCall], next_number: int, lowest_anywhere: int, now: float
    ) -> list[bytes]:
        """Encoded groups of about one frame's worth of unsent calls, which count as sent from here on. The rest stays unsent."""
        limit = connection.frame_bytes_max - GROUP_BYTES_MAX
        calls, self.unsent, self._dropped = self.unsent, [], 0
        lowest = self.lowest(pending, next_number)
        if self.is_mixed:
            return self._take_mixed(calls, connection, lowest, lowest_anywhere, limit, now)
        parts: list[bytes] = []
        size = 0
        since_lsn = self.since_lsn
        for index, call in enumerate(calls):
            if call.done():
                continue
            encoded = call.encoded
            assert encoded is not None
            size += len(encoded)
            if size > limit:
                if len(encoded) > limit:
                    size -= len(encoded)
                    self._owner.refuse_too_large(call, len(encoded), limit)
                    continue
                self.unsent = calls[index:]
                break
            call.encoded = None
            call.connection = connection
            call.since_lsn = since_lsn
            parts.append(encoded)
        return [encode_group(self.partition, b"", lowest, lowest_anywhere, since_lsn, parts)] if parts else []

    def _take_mixed(
        self, calls: list[PendingCall], connection: Connection, lowest: int, lowest_anywhere: int, limit: int, now: float
    ) -> list[bytes]:
        groups: dict[tuple[bytes, int, int, int], list[bytes]] = {}
        calls = sorted((call for call in calls if not call.done()), key=lambda call: call.number)
        size = 0
        for index, call in enumerate(calls):
            is_first = call.encoded is not None
            encoded = call.encoded or encode_again(call, now)
            if len(encoded) > limit:
                self._owner.refuse_too_large(call, len(encoded), limit)
                continue
            size += len(encoded) + GROUP_BYTES_MAX
            if size > limit and groups:
                self.unsent = calls[index:]
                break
            origin = call.origin
            if is_first:
                # What a turn calls in its second life it may have called in its first: then nothing that is forgotten may be taken for new.
                call.since_lsn = 0 if origin is not None and origin.again else self.since_lsn
                call.encoded = None
            else:
                call.resends += 1
            call.connection = connection
            if origin is None:
                header = (b"", lowest, lowest_anywhere, call.since_lsn)
            else:
                # What a turn's calls free is decided by the client at the root: it says so in `lowest_anywhere`.
                header = (origin.client_id, 0, origin.lowest_anywhere, call.since_lsn)
            groups.setdefault(header, []).append(encoded)
        self.is_mixed = bool(self.unsent)
        return [encode_group(self.partition, *header, parts) for header, parts in groups.items()]

    def __repr__(self) -> str:
        return f"Lane(partition {self.partition}, {len(self.unsent)} unsent)"


def encode_first(call: PendingCall, timeout_ms: int) -> bytes:
    """The first send of a call that has a key or an origin, or that any replica may answer; the caller encodes the others itself."""
    extra = _extra(call, again=False)
    return encode((call.number, call.address, call.method, timeout_ms, Raw(call.args), extra))


def encode_again(call: PendingCall, now: float) -> bytes:
    """A retry: the same number, address, method and arguments; only the remaining time and ``again`` differ.

    ``again`` says that an earlier send may have been executed, not merely that there was one: a refused call is as good as new.
    """
    remaining_ms = max(1, int((call.deadline - now) * 1000))
    return encode((call.number, call.address, call.method, remaining_ms, Raw(call.args), _extra(call, again=call.is_in_doubt)))


def _extra(call: PendingCall, *, again: bool) -> CallExtra:
    origin = call.origin
    if origin is None:
        return CallExtra(key=call.key, again=again, any_replica=call.any_replica)
    return CallExtra(number=origin.number, path=origin.path, chain=origin.chain, key=call.key, again=again or origin.again)


def encode_group(partition: int, client_id: bytes, lowest: int, lowest_anywhere: int, since_lsn: int, parts: list[bytes]) -> bytes:
    """A `CallGroup` of calls that are encoded already."""
    # The header's fields are encoded as an array of five; the calls, already encoded, make it six.
    header = encode((partition, client_id, lowest, lowest_anywhere, since_lsn))
    return b"".join((_ARRAY_OF_SIX, header[1:], array_header(len(parts)), *parts))
