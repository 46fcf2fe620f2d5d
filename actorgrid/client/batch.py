"""A `map` of reads: its items travel in one message for each partition, with one future for each message.

A call of its own costs a future, a place in four tables, and an encoding and a decoding. A read that asks the primary, without key or
chain, needs none of these as long as nothing unusual happens, so here its items are entries of lists. What is unusual makes calls of them
again (see `PendingBatch`), and then everything is as for other calls; nothing is decided twice.

Items are looked at before anything is sent: a malformed one is found first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from actorgrid.actor.methods import Method
from actorgrid.client.lane import Lane
from actorgrid.client.pending import PendingBatch
from actorgrid.errors import ActorGridError, InvalidArgumentError, OverloadedError
from actorgrid.ids import ACTOR_ID_BYTES_MAX, PartitionId, make_address, partitions_of
from actorgrid.wire.framing import array_header
from actorgrid.wire.messages import encode

if TYPE_CHECKING:
    from actorgrid.client.caller import Caller

#: Fewer reads are not worth a message of their own kind.
ITEMS_MIN: Final = 8
_ARRAY_OF_EIGHT: Final = b"\x98"


class Group:
    """Items of a map that go to one partition.

    :ivar positions: their places in the map
    :ivar args: encoded, for each item, or one for all
    """

    __slots__ = ("addresses", "args", "lane", "positions")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.positions: list[int] = []
        self.addresses: list[str] = []
        self.args: list[bytes] = []

    def args_of(self, start: int, stop: int) -> list[bytes]:
        """The encoded arguments of some items."""
        return self.args if len(self.args) == 1 else self.args[start:stop]


class ReadMap:
    """One `map` of reads.

    :ivar results: in order of the items
    :ivar errors: places in `results` where an error is
    """

    def __init__(self, caller: Caller, method: Method, timeout_s: float | None, size: int) -> None:
        self.results: list[Any] = [None] * size
        self.errors: list[int] = []
        self._caller = caller
        self._method = method
        self._timeout_s = timeout_s
        self._groups: dict[int, Group] = {}
        self._batches: list[PendingBatch] = []

    def prepare(self, type_name: str, items: Sequence[Any], return_errors: bool) -> bool:
        """Look at the items; whether they can go as batches. If not, nothing has happened.

        :raises InvalidArgumentError: an item is malformed, and errors are not to be returned
        """
        method, caller, groups = self._method, self._caller, self._groups
        partition_count = caller.partition_map.partition_count
        prefix = f"{type_name}\0"
        no_args = b""
        is_uniform = True
        positions: list[int] = []
        addresses: list[str] = []
        args: list[bytes] = []
        for position, item in enumerate(items):
            try:
                if type(item) is tuple and len(item) == 1:
                    actor_id: Any = item[0]
                    encoded = no_args
                    if not encoded:
                        encoded = no_args = method.encode_args((), {})
                else:
                    actor_id, given = split_item(item)
                    encoded = method.encode_args(given, {})
                    is_uniform = False
                # What follows is `make_address`, for ids that are plainly right.
                if type(actor_id) is str and actor_id.isascii() and 0 < len(actor_id) <= ACTOR_ID_BYTES_MAX and "\0" not in actor_id:
                    addresses.append(prefix + actor_id)
                else:
                    addresses.append(make_address(type_name, actor_id))
            except ActorGridError as error:
                if not return_errors:
                    raise
                self.results[position] = error
                self.errors.append(position)
                continue
            positions.append(position)
            args.append(encoded)
        for place, partition in enumerate(partitions_of(addresses, partition_count)):
            group = groups.get(partition)
            if group is None:
                lane = caller.lane(PartitionId(partition))
                if not caller.can_batch(lane):
                    return False
                group = groups[partition] = Group(lane)
            group.positions.append(positions[place])
            group.addresses.append(addresses[place])
            group.args.append(args[place])
        if is_uniform:
            for group in groups.values():
                group.args = [no_args]
        return True

    async def run(self) -> None:
        """Send the items, and wait until each has its result or its error."""
        try:
            for group in self._groups.values():
                start = 0
                while start < len(group.positions):
                    start = await self._submit_some(group, start)
            for batch in self._batches:
                if not batch.done():
                    await batch
        finally:
            for batch in self._batches:
                batch.cancel()

    async def _submit_some(self, group: Group, start: int) -> int:
        """Submit the next items of `group`, as many as fit into a message and the client's bounds; the place of the first one left."""
        caller, stop = self._caller, len(group.positions)
        try:
            fitting = caller.batch_items(group, start)
            if not fitting:
                caller.check_room(group.lane, len(group.args_of(start, start + 1)[0]))
                fitting = 1
            end = start + fitting
            batch = caller.submit_batch(
                group.lane,
                self._method,
                group.addresses if fitting == stop else group.addresses[start:end],
                group.args_of(start, end),
                group.positions if fitting == stop else group.positions[start:end],
                self.results,
                self.errors,
                self._timeout_s,
            )
            self._batches.append(batch)
            return end
        except OverloadedError as error:
            waiting = [batch for batch in self._batches if not batch.done()]
            if waiting:
                await asyncio.wait(waiting[:1])
                return start
            reason: ActorGridError = error
        except ActorGridError as error:
            reason = error
        for position in group.positions[start:]:
            self.results[position] = reason
            self.errors.append(position)
        return stop


def split_item(item: Any) -> tuple[Any, tuple[Any, ...]]:
    """Actor id and arguments of an item of a `map`.

    :raises InvalidArgumentError: it has none
    """
    if not isinstance(item, Sequence) or isinstance(item, str | bytes) or not item:
        raise InvalidArgumentError(f"map: expected (actor id, *arguments), got {item!r:.80}")
    return item[0], tuple(item[1:])


def encode_batch(batch: PendingBatch, timeout_ms: int, lowest_anywhere: int, since_lsn: int) -> bytes:
    """A `Batch`; its last element, the arguments, is encoded already."""
    header = encode((batch.number, batch.lane.partition, lowest_anywhere, since_lsn, batch.method, timeout_ms, batch.addresses))
    parts = batch.items_args
    return b"".join((_ARRAY_OF_EIGHT, header[1:], array_header(len(parts)), *parts))


def put(results: list[Any], positions: list[int], values: Iterable[Any]) -> None:
    """Put each value into its place."""
    for position, value in zip(positions, values, strict=True):
        results[position] = value
