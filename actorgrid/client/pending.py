"""One call that waits for its answer. It is the future that its caller awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from actorgrid.errors import ActorGridError, DeadlineExceededError, HostUnavailableError, OutcomeUnknownError, TransientError
from actorgrid.ids import show_address

if TYPE_CHECKING:
    from actorgrid.client.connection import Connection
    from actorgrid.client.lane import Lane

R = TypeVar("R")


class Origin(NamedTuple):
    """Who is behind a call that a host makes inside a turn: the request id and chain of the turn's own request."""

    client_id: bytes
    number: int
    path: tuple[int, ...]
    chain: tuple[str, ...]
    again: bool
    lowest_anywhere: int


class Answer(asyncio.Future[R]):
    """What a call returns, to be awaited: its answer.

    :ivar applied_lsn: for a read with ``consistency="any"`` the position of the partition's log that its answer reflects, known with the
        answer; 0 for every other call. Of two reads of one actor the one with the higher position saw the later state.
    """

    __slots__ = ()

    applied_lsn: int = 0


class PendingCall(Answer[Any]):
    """A submitted call.

    It is itself the future, since one object is cheaper than two and since overriding `cancel` is the only way to hear at once
    of a cancellation without a done-callback on every call.

    The attributes in ``__slots__`` are set for every call. Those with a default belong to retries and rare options; they live in
    the instance's dict and cost nothing until used.

    :ivar number: correlation number on every connection; for an ordinary client also the request number
    :ivar args: the encoded arguments; the same bytes in every send
    :ivar encoded: the first send, encoded; None once it has been sent, or when the next send is a retry
    :ivar connection: where the send that is not answered yet went, or None
    :ivar since_lsn: the partition's hint when it was first sent
    """

    __slots__ = ("address", "args", "connection", "deadline", "decode", "encoded", "lane", "method", "number", "since_lsn")

    number: int
    lane: Lane
    address: str
    method: str
    args: bytes
    encoded: bytes | None
    decode: Callable[[Any], Any]
    deadline: float
    connection: Connection | None
    since_lsn: int

    #: own timeout, where it is not the client's default
    timeout_s: float | None = None
    #: idempotency key
    key: str | None = None
    #: set for calls made by a host inside a turn
    origin: Origin | None = None
    #: sends after the first
    resends: int = 0
    #: a send was lost, or its answer was "in doubt": from here on only a result or the call's own error ends the doubt
    is_in_doubt: bool = False
    #: it waits for its retry time
    is_parked: bool = False
    #: how often a host refused it as too old although it cannot have been executed
    expirations: int = 0
    #: refusals so far, which make the backoff grow
    refusals: int = 0
    #: the newest epoch whose primary it was taken to while another host still owed the answer
    followed_epoch: int = 0
    #: a read that a secondary may answer too
    any_replica: bool = False
    #: for such a read: hosts it need not be sent to again before it has waited
    tried: tuple[str, ...] = ()
    last_error: ActorGridError | None = None
    #: it is a `PendingBatch`
    is_batch: bool = False

    def cancel(self, msg: Any = None) -> bool:
        """Give the call up: it counts as answered, is never sent again, and a late reply is ignored."""
        if not super().cancel(msg):
            return False
        self.lane.forget(self)
        return True

    @property
    def title(self) -> str:
        """``Type/id.method``, for messages."""
        return f"{show_address(self.address)}.{self.method}"

    @property
    def attempts(self) -> int:
        """Sends so far."""
        return self.resends + (self.encoded is None)

    def age_s(self, now: float, default_timeout_s: float) -> float:
        """Seconds since it was submitted."""
        return now - self.deadline + (self.timeout_s or default_timeout_s)


class BatchOwner(Protocol):
    """What a batch tells; the `Caller` is one."""

    def end_batch(self, batch: PendingBatch) -> None:
        """`batch` is over: every item of it has its answer, or nobody waits for it any more."""


class PendingBatch(PendingCall):
    """Reads of one `map` to one partition that travel as one message, and the future of the whole.

    It has a number of its own, the one before its first item's, and is pending under it until every item is over: so its number holds
    ``lowest`` and ``lowest_anywhere`` back for all of them. As long as nothing unusual happens there is nothing else of an item but its
    place in the lists here. When something does, the items concerned become calls of their own (`BatchItem`), under the numbers that they
    have, and go the way of all calls.

    :ivar addresses: of the items
    :ivar items_args: the encoded arguments of each, or a single one that is the same for all
    :ivar size: bytes of arguments, over all items
    :ivar results: of the whole map
    :ivar positions: where in `results` each item's result belongs
    :ivar errors: positions of the whole map where an error is
    :ivar answered: by item, whether it has its result; None while none or all have
    :ivar left: items that have none
    :ivar items: those that are calls of their own, by index; None while none is
    :ivar decode_all: makes results of an array of them
    """

    is_batch = True
    owner: BatchOwner
    addresses: list[str]
    items_args: list[bytes]
    size: int
    results: list[Any]
    positions: list[int]
    errors: list[int]
    left: int
    decode_all: Callable[[Any], list[Any]]
    answered: bytearray | None = None
    items: dict[int, BatchItem] | None = None

    def settle(self, index: int, result: Any, *, is_error: bool) -> None:
        """Item `index` has its result, or its error."""
        answered = self.answered
        if answered is None:
            answered = self.answered = bytearray(len(self.addresses))
        if answered[index]:
            return
        answered[index] = True
        position = self.positions[index]
        self.results[position] = result
        if is_error:
            self.errors.append(position)
        self.left -= 1
        if not self.left and not self.done():
            self.owner.end_batch(self)
            if self.items is not None:
                self.items = {}  # they refer to the batch
            self.set_result(None)

    def args_of(self, index: int) -> bytes:
        """The encoded arguments of one item."""
        return self.items_args[index if len(self.items_args) > 1 else 0]

    def cancel(self, msg: Any = None) -> bool:
        """Give all items up: no answer to any of them is wanted any more."""
        if not asyncio.Future.cancel(self, msg):
            return False
        self.owner.end_batch(self)
        if self.items is not None:
            items, self.items = self.items, {}
            for item in items.values():
                item.cancel(msg)
        return True


class BatchItem(PendingCall):
    """An item of a batch that has become a call of its own. Nobody awaits it: its end is told to the batch.

    :ivar index: its place in the batch
    """

    batch: PendingBatch
    index: int

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self.batch.settle(self.index, result, is_error=False)

    def set_exception(self, error: Any) -> None:
        super().set_exception(error)
        self.exception()
        self.batch.settle(self.index, error, is_error=True)


def error_at_deadline(call: PendingCall, default_timeout_s: float, *, is_begun: bool) -> ActorGridError:
    """What `call` raises when its time is up: "unknown" if any send may have been executed, else why nothing happened.

    :param is_begun: a primary of some partition has been heard of
    """
    timeout_s = call.timeout_s or default_timeout_s
    link = call.lane.link
    last_error = call.last_error or (link.last_error if link is not None else None)
    if call.is_in_doubt or call.connection is not None:
        last = f"; last error: {last_error}" if last_error is not None else ""
        tries = f"{call.attempts} attempt{'s' if call.attempts != 1 else ''}"
        return DeadlineExceededError(f"{call.title}: outcome unknown, no answer within {timeout_s:g} s and {tries}{last}")
    if isinstance(call.last_error, TransientError):
        return call.last_error
    if link is None:
        hint = "" if is_begun else "; no partition has had one: a new grid is begun with `actorgrid init`"
        return HostUnavailableError(
            f"{call.title}: nothing sent within {timeout_s:g} s: partition {call.lane.partition} has no primary{hint}"
        )
    return HostUnavailableError(f"{call.title}: nothing sent within {timeout_s:g} s: {last_error or f'{link.name} takes no calls'}")


def error_at_close(call: PendingCall) -> ActorGridError:
    """What `call` raises when its client is closed."""
    if call.is_in_doubt or call.connection is not None:
        return OutcomeUnknownError(f"{call.title}: outcome unknown, the client was closed after {call.attempts} attempts without an answer")
    return HostUnavailableError(f"{call.title}: the client was closed before the call was sent, or after it had been refused")
