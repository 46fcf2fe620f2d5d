"""The engine under every client: it sends calls to the right host, again where that is safe, until an answer or the deadline.

What it keeps:

- a call has one number for life; its address, method and arguments are the same bytes in every send (I10);
- ``lowest`` and ``lowest_anywhere`` never pass a call that may still be sent again;
- "nothing happened" is told only when no send was ever left without an answer; otherwise the outcome is unknown;
- the primary that is followed never has a lower epoch than one that was followed before; a new one is asked at once, by each call once;
- what is kept is bounded: calls, bytes, and the window per partition (I16). Past that a call is refused at once.

The engine belongs to the event loop it was made on. It has no sugar: see `client.py`, `sync.py`, and the host's nested calls.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from actorgrid.actor.methods import Method
from actorgrid.client.any_reads import ANOTHER_MAY_ANSWER, AnyReads
from actorgrid.client.batch import Group, encode_batch, put
from actorgrid.client.connection import Connection, error_of
from actorgrid.client.deadlines import Deadlines
from actorgrid.client.lane import GROUP_BYTES_MAX, Lane, encode_first
from actorgrid.client.link import Link
from actorgrid.client.map import PartitionMap
from actorgrid.client.parking import ParkingLot
from actorgrid.client.pending import BatchItem, Origin, PendingBatch, PendingCall, error_at_close, error_at_deadline
from actorgrid.client.router import Router
from actorgrid.credentials import Credentials, client_context
from actorgrid.errors import (
    AccessDeniedError,
    ActorGridError,
    DeadlockError,
    HostUnavailableError,
    InvalidArgumentError,
    NotPrimaryError,
    NoWriteQuorumError,
    OutcomeUnknownError,
    OverloadedError,
    PayloadTooLargeError,
    ProtocolError,
    SessionExpiredError,
    TransientError,
    WriteInDoubtError,
)
from actorgrid.ids import ClientId, PartitionId, show_address
from actorgrid.settings import ClientSettings, WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import frames_of
from actorgrid.wire.messages import (
    BATCH_ITEMS_MAX,
    KIND_BATCHES,
    KIND_CALLS,
    MAGIC,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_OLDEST,
    STATUS_ERROR,
    STATUS_OK,
    BatchReply,
    Hello,
    MapMessage,
    Reply,
    Welcome,
    encode,
)

#: How late a deadline may be noticed.
_TICK_S = 0.02
#: A host that owes an answer for so long may be stuck or cut off without a sign: ask others whether its partitions have moved.
_SILENCE_S = 1.0
#: A host whose loop was not held up answers a ping within milliseconds, whatever its turns do.
_PROBE_PATIENCE_S = 2.0
#: Refusals that a new primary need not give: who got one is sent to it at once.
_NEW_PRIMARY_MAY_ANSWER = (NotPrimaryError, HostUnavailableError, NoWriteQuorumError, WriteInDoubtError)
#: So long a host must deny access before its calls hear of it: credentials that are being renewed are not known everywhere at once.
REFUSED_FOR_GOOD_S: Final = 2.0
#: A call refused as too old this often meets a grid that forgets faster than the client can follow.
_EXPIRATIONS_MAX = 5
#: Bytes of a batch besides addresses and arguments, and of one item's address besides its characters.
_BATCH_BYTES_MAX: Final = 512
_ADDRESS_HEADER_BYTES: Final = 3


#: A call that may take longer is a job, and belongs into state.
TIMEOUT_MAX_S: Final = 86_400


def check_timeout_s(timeout_s: Any) -> float:
    """`timeout_s` if it is one.

    :raises InvalidArgumentError: it is not a number above 0 and up to a day
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s <= TIMEOUT_MAX_S:
        raise InvalidArgumentError(f"timeout_s: expected a number of seconds above 0, at most {TIMEOUT_MAX_S}, got {timeout_s!r:.80}")
    return float(timeout_s)


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


class Caller:
    """Sends calls and owns the connections.

    :param client_id: 16 bytes; never used by another caller, now or earlier, since the grid answers repeated numbers from memory
    :param seeds: (host, port) pairs to ask for the map; empty where the map is given by `set_map`
    :param role: the role of the handshake
    :param cluster_id: the only grid to talk to; empty: the one that answers first
    :param credentials: None: no TLS
    """

    def __init__(
        self,
        *,
        client_id: ClientId,
        settings: ClientSettings,
        wire: WireSettings,
        rng: random.Random,
        seeds: Sequence[tuple[str, int]] = (),
        role: str = messages.ROLE_CLIENT,
        cluster_id: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        self.client_id = client_id
        self._credentials = credentials
        self._tls = client_context(credentials) if credentials is not None else None
        self.settings = settings
        self._wire = wire
        self._rng = rng
        self._role = role
        self._seeds = tuple(seeds)
        self._loop = asyncio.get_running_loop()
        # A host hears of new primaries as a host, and gives them to its own caller by `set_map`.
        wants_standby = role != messages.ROLE_HOST
        self._router = Router(self, settings, rng, seeds=self._seeds, cluster_id=cluster_id, wants_standby=wants_standby)
        #: See `Router.lane_of`; here too since every call by `Client.call` asks.
        self.lane_of = self._router.lane_of
        self.lane = self._router.lane
        self._refusal: ActorGridError | None = None
        self._moved: dict[Lane, None] = {}  # lanes whose primary has changed in this turn of the loop
        self._last_number = 0
        self._pending: dict[int, PendingCall] = {}
        self._pending_bytes = 0
        #: Batches whose items are no calls of their own, and how many more calls they are than entries of `_pending`.
        self._batches: dict[int, PendingBatch] = {}
        self._batched = 0
        self._unsent_batches: list[PendingBatch] = []
        #: A host that understands batches has been met.
        self.knows_batches = False
        self._deadlines = Deadlines()
        self._parking = ParkingLot(settings, rng, self._pending, self._send_again)
        self._any_reads = AnyReads(self, self._router, rng)
        self._dirty: list[Lane] = []
        self._is_flush_due = False
        self._tick_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._next_rescue_at = 0.0
        self._in_flight_max = settings.in_flight_max
        self._in_flight_bytes_max = settings.in_flight_bytes_max
        self._session_window = settings.session_window
        self._timeout_s = settings.timeout_s
        self._timeout_ms = _milliseconds(settings.timeout_s)
        self._call_bytes_max = wire.frame_bytes_max - 2 * GROUP_BYTES_MAX

    # -- opening and closing

    async def open(self, timeout_s: float) -> None:
        """Find the grid: connect to the seeds until one sends the map.

        :raises HostUnavailableError: no seed answered within `timeout_s`; the message has the last reason of each
        :raises AccessDeniedError: a seed refused this client
        :raises ProtocolError: a seed and this client have no protocol version in common
        """
        router = self._router
        links = [router.links.get(seed) for seed in self._seeds]
        try:
            async with asyncio.timeout(timeout_s):
                while router.map is None and self._refusal is None:
                    router.map_changed.clear()
                    for link in links:
                        link.ensure_connected()
                    await router.map_changed.wait()
        except TimeoutError:
            reasons = "; ".join(str(link.last_error or f"{link.name}: no answer") for link in links)
            raise HostUnavailableError(f"no grid found within {timeout_s:g} s: {reasons}") from None
        if router.map is None:
            assert self._refusal is not None
            raise self._refusal

    async def close(self) -> None:
        """End every pending call with an error, close all connections, and wait for the tasks. Safe to repeat."""
        if not self._is_closed:
            self._is_closed = True
            self._refusal = ActorGridError("the client was closed while it was connecting")
            self._router.map_changed.set()
            self._parking.close()
            if self._tick_timer is not None:
                self._tick_timer.cancel()
            for batch in list(self._batches.values()):
                self._dissolve(batch)
            for call in list(self._pending.values()):
                if call.is_batch:
                    continue  # it ends with its items
                self._fail(call, error_at_close(call))
                call.exception()  # whoever waits still gets it; nobody waiting is no reason for a warning at shutdown
        await self._router.links.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    # -- the map

    @property
    def partition_map(self) -> PartitionMap:
        """What is known of the partitions.

        :raises ActorGridError: nothing is, yet
        """
        return self._router.known_map

    def set_map(self, message: MapMessage | PartitionMap) -> bool:
        """Take what a map tells and is not known yet (see `PartitionMap.merged_with`); returns whether there was anything.

        :raises ProtocolError: it cannot be, or it is of another grid
        """
        return self._router.set_map(message)

    def make_lane(self, partition: PartitionId) -> Lane:
        """For the router."""
        return Lane(partition, self)

    def make_link(self, address: tuple[str, int]) -> Link:
        """For the router."""
        return Link(self, *address, self.settings, self._wire, self._rng, self._tls)

    # -- following primaries

    def on_moved(self, lane: Lane) -> None:
        """The partition has a new primary, or its primary a new epoch: look after its calls at the end of this turn of the loop."""
        # Not on the spot: a refusal that came in the same segment as the map is better than doubt, and one look is enough for all lanes.
        if not self._moved:
            self._loop.call_soon(self._follow_primaries)
        self._moved[lane] = None

    def _follow_primaries(self) -> None:
        """Send to new primaries what waits for a reason that they need not have, and what hosts owe that are primary no more.

        The latter is in doubt: a host may be stopped or cut off, so no answer is waited for. Sending again is safe: the new primary knows
        the number if the old one committed the call. A lane is here once for each epoch, so a call is sent again once for each.
        """
        moved, self._moved = self._moved, {}
        if self._is_closed:
            return
        for batch in list(self._batches.values()):
            link = batch.lane.link
            if batch.lane in moved and link is not None and batch.connection is not None and batch.connection.name != link.name:
                self._dissolve(batch)
        for call in tuple(self._pending.values()):
            lane = call.lane
            link = lane.link
            if lane not in moved or link is None:
                continue
            if call.is_parked:
                if isinstance(call.last_error, _NEW_PRIMARY_MAY_ANSWER):
                    self._parking.unpark(call)
            elif call.connection is not None and call.connection.name != link.name and not call.any_replica and self._may_follow(call):
                self._send_elsewhere(call)

    def _may_follow(self, call: PendingCall) -> bool:
        """Whether the primary's epoch is known and `call` was not taken to it before; from here on it was."""
        epoch = self._router.epoch_of(call.lane)
        if epoch <= call.followed_epoch:
            return False
        call.followed_epoch = epoch
        return True

    def _send_elsewhere(self, call: PendingCall) -> None:
        """Give up waiting for the answer to `call` where it went; it may have been executed there."""
        assert call.connection is not None
        call.last_error = HostUnavailableError(f"{call.connection.name}: no answer, and it is primary of the partition no more")
        call.connection = None
        call.is_in_doubt = True
        self._send_again(call)

    # -- submitting

    def submit(
        self,
        lane: Lane,
        address: str,
        method: str,
        args: bytes,
        decode: Callable[[Any], Any],
        timeout_s: float | None = None,
        key: str | None = None,
    ) -> PendingCall:
        """Take a call; it goes out at the end of this turn of the loop, in one frame with the others to that host.

        :param args: the arguments, encoded
        :param decode: makes the result of the reply's bytes
        :param timeout_s: None for the client's default
        :param key: idempotency key
        :raises OverloadedError: too many calls or bytes are in flight, or the partition's window is full; nothing was sent
        :raises PayloadTooLargeError: the call is larger than a frame
        :raises ActorGridError: the client is closed
        """
        pending = self._pending
        if (
            len(pending) + self._batched >= self._in_flight_max
            or self._pending_bytes + len(args) > self._in_flight_bytes_max
            or len(lane.numbers) >= self._session_window
            or self._is_closed
        ):
            self.check_room(lane, len(args))
        number = self._last_number + 1
        call = PendingCall(loop=self._loop)
        call.number = number
        call.lane = lane
        call.address = address
        call.method = method
        call.args = args
        call.connection = None
        call.decode = decode
        if timeout_s is None and key is None:
            call.encoded = encoded = encode((number, address, method, self._timeout_ms, Raw(args)))
        else:
            call.key = key
            call.encoded = encoded = encode_first(call, self._timeout_ms if timeout_s is None else _milliseconds(timeout_s))
        if len(encoded) > self._call_bytes_max:
            call.encoded = None
            raise PayloadTooLargeError(f"{call.title}: {len(encoded)} bytes are more than one call may have ({self._call_bytes_max})")
        if not lane.is_dirty:
            self.mark_dirty(lane)
        self._last_number = number
        self._set_deadline(call, number, timeout_s)
        self._pending_bytes += len(args)
        pending[number] = call
        lane.numbers.append(number)
        lane.unsent.append(call)
        return call

    def submit_any(
        self,
        lane: Lane,
        address: str,
        method: str,
        args: bytes,
        decode: Callable[[Any], Any],
        timeout_s: float | None = None,
        key: str | None = None,
    ) -> PendingCall:
        """Take a read that any replica may answer. Arguments, deadline and errors are those of `submit`."""
        in_flight = len(self._pending) + self._batched
        if in_flight >= self._in_flight_max or self._pending_bytes + len(args) > self._in_flight_bytes_max or self._is_closed:
            self.check_room(lane, len(args))
        call = PendingCall(loop=self._loop)
        call.number = number = self._last_number + 1
        call.lane = lane
        call.address = address
        call.method = method
        call.args = args
        call.connection = None
        call.decode = decode
        call.any_replica = True
        if key is not None:
            call.key = key
        call.encoded = encode_first(call, self._timeout_ms if timeout_s is None else _milliseconds(timeout_s))
        if len(call.encoded) > self._call_bytes_max:
            raise PayloadTooLargeError(f"{call.title}: {len(call.encoded)} bytes are more than one call may have ({self._call_bytes_max})")
        self._any_reads.add(call)
        self._last_number = number
        # Not in `lane.numbers`: no session remembers it. In the queues of `Deadlines`, which hold `lowest_anywhere` back: a read may call
        # other actors, and their sessions do.
        self._set_deadline(call, number, timeout_s)
        self._pending_bytes += len(args)
        self._pending[number] = call
        return call

    def submit_nested(
        self,
        *,
        partition: int,
        address: str,
        method_name: str,
        args: bytes,
        client_id: bytes,
        number: int,
        path: tuple[int, ...],
        chain: tuple[str, ...],
        again: bool,
        lowest_anywhere: int,
        key: str | None,
        timeout_s: float,
    ) -> PendingCall:
        """Take a call that a turn makes, under the request id of the turn's own request, or under a key if that had one.

        Its result is left encoded.

        Deadline, retries and errors are those of `submit`.
        """
        lane = self._router.lane(PartitionId(partition))
        in_flight = len(self._pending) + self._batched
        if in_flight >= self._in_flight_max or self._pending_bytes + len(args) > self._in_flight_bytes_max:
            self.check_room(lane, len(args))
        if self._is_closed:
            raise HostUnavailableError(f"{show_address(address)}.{method_name}: this host is stopping")
        call = PendingCall(loop=self._loop)
        call.number = self._last_number + 1
        call.lane = lane
        call.address = address
        call.method = method_name
        call.args = args
        call.connection = None
        call.decode = _leave_encoded
        call.origin = Origin(client_id, number, path, chain, again, lowest_anywhere)
        if key is not None:
            call.key = key
        call.timeout_s = timeout_s = check_timeout_s(timeout_s)
        # Rounded down: what a turn calls must not outlive the turn.
        call.encoded = encode_first(call, max(1, int(timeout_s * 1000)))
        if len(call.encoded) > self._call_bytes_max:
            raise PayloadTooLargeError(f"{call.title}: {len(call.encoded)} bytes are more than one call may have ({self._call_bytes_max})")
        if not lane.is_dirty:
            self.mark_dirty(lane)
        self._last_number = call.number
        call.deadline = self._loop.time() + timeout_s
        self._deadlines.add_own(call.number, call.deadline)
        self._pending_bytes += len(args)
        self._pending[call.number] = call
        lane.unsent.append(call)
        lane.is_mixed = True
        return call

    def _set_deadline(self, call: PendingCall, number: int, timeout_s: float | None) -> None:
        """Watch a call of this client, which has that long from now; None: the client's default."""
        if timeout_s is None:
            call.deadline = self._loop.time() + self._timeout_s
            self._deadlines.ordinary.append(number)
        else:
            call.timeout_s = timeout_s
            call.deadline = self._loop.time() + timeout_s
            self._deadlines.own.append(number)
            self._deadlines.add_own(number, call.deadline)

    def can_batch(self, lane: Lane) -> bool:
        """Whether a batch to this partition could leave now."""
        link = lane.link
        if link is None or not link.is_writable or link.is_leaving:
            return False
        connection = link.connection
        return connection is not None and connection.takes_batches

    def batch_items(self, group: Group, start: int) -> int:
        """How many items of `group`, from `start` on, fit into one batch and this client's bounds; 0: not even one, see `check_room`."""
        lane = group.lane
        if len(lane.numbers) >= self._session_window:
            lane.lowest(self._pending, 0)
            if len(lane.numbers) >= self._session_window:
                return 0
        room = self._in_flight_max - len(self._pending) - self._batched
        count = min(len(group.positions) - start, BATCH_ITEMS_MAX, room)
        if count <= 0 or self._is_closed:
            return 0
        args, addresses = group.args, group.addresses
        bytes_room = self._in_flight_bytes_max - self._pending_bytes
        frame_room = self._call_bytes_max // 2 - _BATCH_BYTES_MAX
        args_bytes = len(args[0]) * count if len(args) == 1 else sum(map(len, args[start : start + count]))
        # Of UTF-8 no character needs more than four bytes.
        if args_bytes <= bytes_room and args_bytes + (4 * sum(map(len, addresses)) + _ADDRESS_HEADER_BYTES * len(addresses)) <= frame_room:
            return count
        args_bytes = frame_bytes = 0
        for index in range(start, start + count):
            item_bytes = len(args[0] if len(args) == 1 else args[index])
            args_bytes += item_bytes
            frame_bytes += item_bytes + 4 * len(addresses[index]) + _ADDRESS_HEADER_BYTES
            if args_bytes > bytes_room:
                return index - start
            if frame_bytes > frame_room:
                return max(1, index - start)
        return count

    def submit_batch(
        self,
        lane: Lane,
        method: Method,
        addresses: list[str],
        items_args: list[bytes],
        positions: list[int],
        results: list[Any],
        errors: list[int],
        timeout_s: float | None,
    ) -> PendingBatch:
        """Take reads of a `map`, as many as `batch_items` says at most; they leave at the end of this turn of the loop, in one message.

        :param positions: where in `results` the answer of each belongs, and among `errors` if it is one
        :raises ActorGridError: this is another loop
        """
        self.plan_flush()
        count = len(addresses)
        batch = PendingBatch(loop=self._loop)
        batch.owner = self
        batch.number = number = self._last_number + 1
        self._last_number = number + count
        batch.lane = lane
        batch.address = addresses[0]
        batch.addresses = addresses
        batch.method = method.name
        batch.args = b""
        batch.items_args = items_args
        batch.size = len(items_args[0]) * count if len(items_args) == 1 else sum(map(len, items_args))
        batch.encoded = None
        batch.connection = None
        batch.decode = method.decode_result
        batch.decode_all = method.decode_results
        batch.positions = positions
        batch.results = results
        batch.errors = errors
        batch.left = count
        self._set_deadline(batch, number, timeout_s)
        lane.numbers.append(number)
        self._pending_bytes += batch.size
        self._batched += count - 1
        self._batches[number] = self._pending[number] = batch
        self._unsent_batches.append(batch)
        return batch

    def check_room(self, lane: Lane, size: int) -> None:
        """Whether one more call to `lane` may be taken, with `size` bytes of arguments.

        :raises OverloadedError: it may not: which bound is reached
        :raises ActorGridError: the client is closed
        """
        if self._is_closed:
            raise ActorGridError("the client is closed")
        in_flight = len(self._pending) + self._batched
        if in_flight >= self._in_flight_max:
            raise OverloadedError(f"queue full; {in_flight} calls in flight (in_flight_max)")
        if self._pending_bytes + size > self._in_flight_bytes_max:
            raise OverloadedError(
                f"queue full; {self._pending_bytes} bytes of arguments in {in_flight} calls in flight (in_flight_bytes_max)"
            )
        lane.lowest(self._pending, 0)
        if len(lane.numbers) >= self._session_window:
            raise OverloadedError(
                f"queue full; {len(lane.numbers)} calls to partition {lane.partition} since its oldest one in flight (session_window)"
            )

    # -- sending

    def mark_dirty(self, lane: Lane) -> None:
        """`lane` has calls to send: it does so at the end of this turn of the loop."""
        if lane.is_dirty:
            return
        self.plan_flush()
        lane.is_dirty = True
        self._dirty.append(lane)

    def plan_flush(self) -> None:
        """Send what is unsent at the end of this turn of the loop.

        :raises ActorGridError: it is another loop
        """
        if not self._is_flush_due:
            if _running_loop() is not self._loop:
                raise ActorGridError("this client belongs to another event loop: connect once in each loop, or use grid.connect_sync")
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._is_closed:
            return
        lanes, self._dirty = self._dirty, []
        by_link: dict[Link, list[Lane]] = {}
        for lane in lanes:
            lane.is_dirty = False
            link = lane.link
            if link is None or link.is_leaving:
                self._router.strand(lane)
            elif link.is_writable:
                by_link.setdefault(link, []).append(lane)
            else:
                link.ensure_connected()
                if link.connection is None:
                    self._router.strand(lane)
        if self._tick_timer is None and self._pending:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)
        if self._any_reads.unsent:
            self._any_reads.flush(self._loop.time())
        if not by_link and not self._unsent_batches:
            return
        now = self._loop.time()
        lowest_anywhere = self._deadlines.lowest(self._pending, self._last_number + 1)
        for link, lanes in by_link.items():
            self._send(link, lanes, lowest_anywhere, now)
        if self._unsent_batches:
            self._send_batches(lowest_anywhere)

    def _send_batches(self, lowest_anywhere: int) -> None:
        """Write the unsent batches. What cannot leave now goes into its lane, as calls."""
        batches, self._unsent_batches = self._unsent_batches, []
        by_link: dict[Link, list[bytes]] = {}
        for batch in batches:
            if batch.done():
                continue
            lane = batch.lane
            link = lane.link
            if link is not None and self.can_batch(lane):
                connection = link.connection
                assert connection is not None
                timeout_ms = self._timeout_ms if batch.timeout_s is None else _milliseconds(batch.timeout_s)
                encoded = encode_batch(batch, timeout_ms, lowest_anywhere, lane.since_lsn)
                if len(encoded) <= connection.frame_bytes_max - GROUP_BYTES_MAX:
                    batch.since_lsn = lane.since_lsn
                    batch.connection = connection
                    by_link.setdefault(link, []).append(encoded)
                    continue
            for call in self._dissolve(batch):
                self._send_again(call)
        for link, parts in by_link.items():
            connection = link.connection
            assert connection is not None
            connection.write(frames_of(KIND_BATCHES, parts, connection.frame_bytes_max))
            link.is_writable = link.is_writable and not connection.is_paused

    def _dissolve(self, batch: PendingBatch) -> list[PendingCall]:
        """Make calls of the items of `batch` that have no answer. They are where it was: sent on its connection, or not sent yet.

        The batch stays pending until they are over, for the sake of its number.
        """
        self._release(batch)
        connection, batch.connection = batch.connection, None
        timeout_ms = self._timeout_ms if batch.timeout_s is None else _milliseconds(batch.timeout_s)
        items: dict[int, BatchItem] = {}
        calls: list[PendingCall] = []
        for index, address in enumerate(batch.addresses):
            if batch.answered is not None and batch.answered[index]:
                continue
            call = BatchItem(loop=self._loop)
            call.batch = batch
            call.index = index
            call.number = number = batch.number + 1 + index
            call.lane = batch.lane
            call.address = address
            call.method = batch.method
            call.args = args = batch.args_of(index)
            call.decode = batch.decode
            call.deadline = batch.deadline
            if batch.timeout_s is not None:
                call.timeout_s = batch.timeout_s
            call.connection = connection
            if connection is not None:
                call.encoded = None
                call.since_lsn = batch.since_lsn
            else:
                call.encoded = encode((number, address, call.method, timeout_ms, Raw(args)))
            self._pending_bytes += len(args)
            self._pending[number] = call
            items[index] = call
            calls.append(call)
        batch.items = items
        return calls

    def end_batch(self, batch: PendingBatch) -> None:
        """`batch` is over: every item has its answer, or nobody waits for it any more."""
        self._pending.pop(batch.number, None)
        if batch.number in self._batches:
            self._release(batch)

    def _release(self, batch: PendingBatch) -> None:
        """The items of `batch` count for no bound any more, at least not as a batch."""
        del self._batches[batch.number]
        self._batched -= len(batch.addresses) - 1
        self._pending_bytes -= batch.size

    def _send(self, link: Link, lanes: list[Lane], lowest_anywhere: int, now: float) -> None:
        """Write the unsent calls of `lanes`. What a slow peer does not take stays unsent until `on_link_writable`."""
        connection = link.connection
        assert connection is not None
        limit = connection.frame_bytes_max
        groups: list[bytes] = []
        size = 0
        for lane in lanes:
            while lane.unsent and not connection.is_paused and not connection.is_closed:
                for group in lane.take(connection, self._pending, self._last_number + 1, lowest_anywhere, now):
                    groups.append(group)
                    size += len(group)
                if size > limit // 2:
                    connection.write(frames_of(KIND_CALLS, groups, limit))
                    groups, size = [], 0
        if groups:
            connection.write(frames_of(KIND_CALLS, groups, limit))
        link.is_writable = link.is_writable and not connection.is_paused

    # -- replies

    def on_link_replies(self, connection: Connection, replies: list[Reply]) -> None:
        """Answers from a host. One for a call that is over, or that went to another connection, is ignored.

        Only the result of a read that any replica may answer is as good when it comes late from the one that was asked before.
        """
        pending = self._pending
        for reply in replies:
            call = pending.get(reply.correlation)
            if call is None or (call.connection is not connection and not (call.any_replica and reply.status == STATUS_OK)):
                continue
            if call.is_batch:
                raise ProtocolError(f"{connection.name}: an answer to batch {reply.correlation} as if it were a call")
            if reply.status != STATUS_OK:
                self._on_error(call, _decode_error(reply.payload))
                continue
            del pending[reply.correlation]
            self._pending_bytes -= len(call.args)
            if reply.lsn:
                call.applied_lsn = reply.lsn
            try:
                result = call.decode(reply.payload)
            except ActorGridError as error:
                call.set_exception(error)
            except Exception as error:  # noqa: BLE001 - decoding runs the user's classes
                call.set_exception(InvalidArgumentError(f"{call.title}: the result cannot be decoded: {type(error).__name__}: {error}"))
            else:
                call.set_result(result)

    def on_link_batch_replies(self, connection: Connection, replies: list[BatchReply]) -> None:
        """Answers to batches from a host. As for calls, what is over or went elsewhere is ignored."""
        pending = self._pending
        for reply in replies:
            batch = pending.get(reply.number)
            if batch is None or not isinstance(batch, PendingBatch):
                continue
            if batch.connection is connection and reply.status == STATUS_OK and not reply.errors and batch.answered is None:
                try:
                    values = batch.decode_all(reply.payload)
                except Exception:  # noqa: BLE001 - decoding runs the user's classes; which item it was is found below
                    values = []
                if len(values) == batch.left and not reply.offset:
                    put(batch.results, batch.positions, values)
                    batch.left = 0
                    self.end_batch(batch)
                    batch.set_result(None)
                    continue
            self._on_batch_reply(batch, connection, reply)

    def _on_batch_reply(self, batch: PendingBatch, connection: Connection, reply: BatchReply) -> None:
        """An answer to a part of a batch, one with errors, or to items that have become calls meanwhile."""
        if batch.items is None and batch.connection is not connection:
            return
        first = batch.number + 1
        if reply.status != STATUS_OK:
            if batch.items is None:
                self._dissolve(batch)
            self.on_link_replies(connection, [Reply(first + index, STATUS_ERROR, reply.payload) for index in batch.items or {}])
            return
        try:
            payloads = messages.decode_each(reply.payload)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ProtocolError(f"{connection.name}: an answer to a batch is not an array: {error}") from None
        if reply.offset + len(payloads) > len(batch.addresses):
            raise ProtocolError(f"{connection.name}: more answers than the batch has items ({len(batch.addresses)})")
        errors = frozenset(reply.errors)
        unusual: list[Reply] = []
        for place, payload in enumerate(payloads):
            index = reply.offset + place
            if place in errors:
                unusual.append(Reply(first + index, STATUS_ERROR, payload))
            elif batch.items is not None:
                unusual.append(Reply(first + index, STATUS_OK, payload))
            else:
                self._settle(batch, index, payload)
        if unusual and not batch.done():
            if batch.items is None:
                self._dissolve(batch)
            self.on_link_replies(connection, unusual)

    @staticmethod
    def _settle(batch: PendingBatch, index: int, payload: Raw) -> None:
        try:
            batch.settle(index, batch.decode(payload), is_error=False)
        except ActorGridError as error:
            batch.settle(index, error, is_error=True)
        except Exception as error:  # noqa: BLE001 - decoding runs the user's classes
            title = f"{show_address(batch.addresses[index])}.{batch.method}"
            problem = InvalidArgumentError(f"{title}: the result cannot be decoded: {type(error).__name__}: {error}")
            batch.settle(index, problem, is_error=True)

    def _on_error(self, call: PendingCall, error: ActorGridError) -> None:
        assert call.connection is not None
        refused_by = call.connection.name
        call.connection = None
        call.last_error = error
        if call.any_replica and isinstance(error, ANOTHER_MAY_ANSWER):
            if isinstance(error, NotPrimaryError):
                self._router.learn_primary(call.lane, error, refused_by)
            self._any_reads.refused(call, refused_by)
        elif isinstance(error, NotPrimaryError):
            self._redirect(call, error, refused_by)
        elif isinstance(error, DeadlockError):
            if call.origin is not None:
                self._fail(call, error)  # the turn that made it has to give way, not ask again
                return
            call.is_in_doubt = True  # the turn itself is undone, but calls that it had made are not
            self._parking.park(call, error.retry_after_s)
        elif isinstance(error, TransientError):
            self._parking.park(call, error.retry_after_s)
        elif isinstance(error, WriteInDoubtError):
            call.is_in_doubt = True
            self._parking.park(call, 0.0)
        elif isinstance(error, SessionExpiredError) and self._can_be_renewed(call, error):
            # Every send of it was refused, so it is as good as new: the position just learned is older than its next send.
            call.expirations += 1
            call.lane.since_lsn = max(call.lane.since_lsn, error.current_lsn)
            call.since_lsn = call.lane.since_lsn if call.origin is None else error.current_lsn
            self._send_again(call)
        else:
            self._fail(call, error)

    @staticmethod
    def _can_be_renewed(call: PendingCall, error: SessionExpiredError) -> bool:
        """Nothing of `call` can have been executed, here or in an earlier run of the turn that makes it, and `error` tells a way on."""
        cannot_have_run = not call.is_in_doubt and (call.origin is None or not call.origin.again)
        return cannot_have_run and error.current_lsn > call.since_lsn and call.expirations < _EXPIRATIONS_MAX

    def _redirect(self, call: PendingCall, error: NotPrimaryError, refused_by: str) -> None:
        """The host asked is not the primary: follow its hint or the map at once the first time, then with backoff.

        Where the hint tells of a new epoch, `_follow_primaries` ends the backoff right away.
        """
        lane, link = call.lane, call.lane.link
        self._router.learn_primary(lane, error, refused_by)
        if link is not None and link.name == refused_by:
            self._router.ask_for_map(prefer=link)
        if call.refusals == 0 and lane.link is not None and lane.link.name != refused_by:
            call.refusals = 1
            self._send_again(call)
        else:
            self._parking.park(call, error.retry_after_s)

    def wait_for_replica(self, call: PendingCall) -> None:
        """No replica can be asked: look for others, and begin anew after the backoff, or when one of them is connected."""
        links = self._router.replicas_of(call.lane)
        for link in links:
            link.ensure_connected()
        if not isinstance(call.last_error, ANOTHER_MAY_ANSWER):
            why = "; ".join(str(link.last_error or f"{link.name}: not connected") for link in links) or "none is known"
            call.last_error = HostUnavailableError(f"{call.title}: no replica of partition {call.lane.partition} can be asked: {why}")
        self._router.ask_for_map()
        self._parking.park(call, call.last_error.retry_after_s)

    def _send_again(self, call: PendingCall) -> None:
        if call.any_replica:
            self._any_reads.add(call)
            return
        lane = call.lane
        lane.unsent.append(call)
        lane.is_mixed = True
        self.mark_dirty(lane)

    # -- links

    def hello(self) -> Hello:
        """The first frame of a connection."""
        token = self._credentials.read_token() if self._credentials is not None else b""
        return Hello(MAGIC, PROTOCOL_VERSION_OLDEST, PROTOCOL_VERSION, self._router.cluster_id, self._role, self.client_id, token)

    def is_needed(self, link: Link) -> bool:
        """Whether to go on trying to connect: a call waits for that host, or the map is not known."""
        if self._is_closed:
            return False
        return self._router.map is None or next(self._router.lanes_waiting_for(link), None) is not None

    def on_link_up(self, link: Link, welcome: Welcome) -> None:
        """A connection stands."""
        assert link.connection is not None
        try:
            self._router.on_map(welcome.map)
        except ProtocolError as error:
            link.connection.close(error)
            return
        self._router.note_positions(welcome.positions)
        self._call_bytes_max = link.connection.frame_bytes_max - 2 * GROUP_BYTES_MAX
        self.knows_batches = self.knows_batches or link.connection.takes_batches
        self.on_link_writable(link)
        if self._any_reads.were_made:
            self._wake_any_reads(link)

    def _wake_any_reads(self, link: Link) -> None:
        for call in tuple(self._pending.values()):
            if (
                call.any_replica
                and call.is_parked
                and isinstance(call.last_error, ANOTHER_MAY_ANSWER)
                and link in self._router.replicas_of(call.lane)
            ):
                self._parking.unpark(call)

    def on_link_writable(self, link: Link) -> None:
        """What waits for this host can go."""
        for lane in self._router.lanes_waiting_for(link):
            self.mark_dirty(lane)

    def on_link_failed(self, link: Link) -> None:
        """A host could not be reached."""
        if self._router.map is not None:
            self._router.on_failed(link)

    def on_link_refused(self, link: Link, error: ActorGridError) -> None:
        """A host will not have this client: that is an answer, not a reason to go on asking.

        Unless others may see it otherwise: a new token or certificate reaches hosts one after another.
        """
        if self._router.map is None:
            if all(self._router.links.get(seed).has_refused for seed in self._seeds):
                self._refusal = error
                self._router.map_changed.set()
        elif isinstance(error, AccessDeniedError) and link.refused_for_s < REFUSED_FOR_GOOD_S:
            return
        for call in list(self._pending.values()):
            if call.connection is None and self._is_refused(call, link):
                if call.is_in_doubt:
                    doubt = OutcomeUnknownError(f"{call.title}: a send was lost, and {link.name} refuses this client: {error}")
                    self._fail(call, doubt)
                else:
                    self._fail(call, type(error)(*error.args))

    def _is_refused(self, call: PendingCall, link: Link) -> bool:
        """Whether nobody else can take `call` since the host of `link` refuses this client."""
        if not call.any_replica:
            return call.lane.link is link and not call.is_parked and not call.is_batch
        replicas = self._router.replicas_of(call.lane)
        return link in replicas and all(each is link or (each.has_refused and not each.is_connecting) for each in replicas)

    def on_link_lost(self, link: Link, connection: Connection, error: ActorGridError) -> None:
        """Whatever was sent on `connection` and not answered is in doubt; it is sent again under the same numbers."""
        if self._is_closed:
            return
        self._router.on_lost(link)
        for batch in list(self._batches.values()):
            if batch.connection is connection:
                self._dissolve(batch)
        lost = [call for call in self._pending.values() if call.connection is connection]
        for call in lost:
            call.connection = None
            call.is_in_doubt = True
            call.last_error = error
            self._send_again(call)
        if lost:
            self._router.ask_for_map()
        for lane in self._router.lanes_waiting_for(link):
            self.mark_dirty(lane)

    def on_link_leaving(self, link: Link) -> None:
        """A host stops: it answers what it has, and new calls wait for a new map or for its return."""
        self._router.ask_for_map()

    def on_link_map(self, link: Link, message: MapMessage) -> None:
        """A host sent its map, asked or not."""
        self._router.on_map(message)

    # -- ends

    def _tick(self) -> None:
        self._tick_timer = None
        now = self._loop.time()
        for call in self._deadlines.expired(self._pending, now):
            if isinstance(call, PendingBatch):
                self._expire(call)
                continue
            self._fail(call, error_at_deadline(call, self._timeout_s, is_begun=self._router.is_begun))
        self._deadlines.compact(self._pending)
        self._router.look(now)
        if self._pending and now >= self._next_rescue_at:
            self._rescue_from_silence(now)
        if self._pending:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)

    def _expire(self, batch: PendingBatch) -> None:
        """The time of `batch` is up: what each of its items raises is what the same call alone would."""
        if batch.items is None:
            self._dissolve(batch)
        for item in (batch.items or {}).values():
            if not item.done():
                self._fail(item, error_at_deadline(item, self._timeout_s, is_begun=self._router.is_begun))

    def _rescue_from_silence(self, now: float) -> None:
        """Look for a newer map while answers are overdue, and send again what waits for a host that is primary no more.

        A stopped process or a cut cable closes no connection. Sending again is safe: the new primary knows the number if the old one
        ran the call.
        """
        self._next_rescue_at = now + _SILENCE_S / 2
        for batch in list(self._batches.values()):
            if batch.connection is not None and batch.age_s(now, self._timeout_s) > _SILENCE_S:
                self._dissolve(batch)
        overdue = [call for call in self._pending.values() if call.connection is not None and call.age_s(now, self._timeout_s) > _SILENCE_S]
        if not overdue:
            return
        owing = {call.connection: None for call in overdue if call.connection is not None}
        self._router.ask_for_map(silent={connection.name for connection in owing})
        for call in overdue:
            link = call.lane.link
            if call.any_replica:
                self._any_reads.try_another(call)
            elif link is not None and call.connection is not None and link.name != call.connection.name:
                self._send_elsewhere(call)
        for connection in owing:
            if now - connection.heard_at > _SILENCE_S:
                connection.probe(_PROBE_PATIENCE_S)

    def forget(self, call: PendingCall) -> None:
        """`call` is over: it is in no table and is never sent again."""
        if self._pending.pop(call.number, None) is not None:
            self._pending_bytes -= len(call.args)

    def refuse_too_large(self, call: PendingCall, size: int, size_max: int) -> None:
        """A host allows smaller frames than the one `call` was made for."""
        why = f"{call.title}: {size} bytes are more than one call may have ({size_max})"
        self._fail(call, OutcomeUnknownError(f"{why}, and an earlier send was lost") if call.is_in_doubt else PayloadTooLargeError(why))

    def _fail(self, call: PendingCall, error: ActorGridError) -> None:
        call.lane.forget(call)
        if not call.done():
            call.set_exception(error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _leave_encoded(payload: Raw) -> Raw:
    return payload


def _decode_error(payload: Raw) -> ActorGridError:
    """The error of a reply.

    :raises ProtocolError: it is none
    """
    try:
        error = messages.decode_error(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise ProtocolError(f"a reply's error cannot be decoded: {why}") from None
    return error_of(error.error, error.message, error.details)
