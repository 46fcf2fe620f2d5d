"""One call that waits for its answer. It is the future that its caller awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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
