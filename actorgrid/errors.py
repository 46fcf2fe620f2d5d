"""Every error ActorGrid raises, arranged by what the caller does next.

::

    ActorGridError
      RequestError
        UnknownActorTypeError
        UnknownMethodError
        InvalidArgumentError
        PayloadTooLargeError
        NonDeterministicTurnError
      ActorError
      ReentrancyError
      TransientError
        NotPrimaryError
        NoWriteQuorumError
        ReconfigurationPendingError
        HostUnavailableError
        OverloadedError
        DeadlockError
      OutcomeUnknownError
        DeadlineExceededError
        WriteInDoubtError
      SessionExpiredError
      AccessDeniedError
      SettingsError
      StorageError
        CorruptLogError
        DiskFullError
      ProtocolError
    InvariantViolation

``InvariantViolation`` is an ``AssertionError``: it is our bug, never the caller's, and it carries the story of what led to it.

Errors cross the wire as (class name, message, details); `to_wire` and `from_wire` are the only two places that know this.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AccessDeniedError",
    "ActorError",
    "ActorGridError",
    "CorruptLogError",
    "DeadlineExceededError",
    "DeadlockError",
    "DiskFullError",
    "HostUnavailableError",
    "InvalidArgumentError",
    "InvariantViolation",
    "NoWriteQuorumError",
    "NonDeterministicTurnError",
    "NotPrimaryError",
    "OutcomeUnknownError",
    "OverloadedError",
    "PayloadTooLargeError",
    "ProtocolError",
    "ReconfigurationPendingError",
    "ReentrancyError",
    "RequestError",
    "SessionExpiredError",
    "SettingsError",
    "StorageError",
    "TransientError",
    "UnknownActorTypeError",
    "UnknownMethodError",
    "WriteInDoubtError",
    "from_wire",
    "to_wire",
]


class ActorGridError(Exception):
    """Base of everything this library raises on purpose."""

    #: Names of the attributes that travel with the error over the wire, in this order.
    wire_details: ClassVar[tuple[str, ...]] = ()
    #: Names of attributes that travel only where they are set; a peer of an older release neither sends nor misses them.
    wire_details_optional: ClassVar[tuple[str, ...]] = ()


class RequestError(ActorGridError):
    """The call itself is wrong. Nothing happened; sending it again gives the same answer. Mend the call."""


class UnknownActorTypeError(RequestError):
    """No actor class of that name is loaded in the grid. The message lists those that are."""


class UnknownMethodError(RequestError):
    """The actor class has no remote method of that name. The message lists those it has."""


class InvalidArgumentError(RequestError):
    """An argument, an id or an option has the wrong type or value. The message names method, parameter, expected and given."""


class PayloadTooLargeError(RequestError):
    """A call or result is larger than one frame may be (`frame_bytes_max`). Split it, or store it in a `grid.Map`."""


class NonDeterministicTurnError(RequestError):
    """A turn that was executed again made another call under the request id of the first time.

    The grid refuses the second effect. Make the method decide the same way each time it runs (no clock, no randomness
    before its calls to other actors), or move the decision into state.
    """


class ActorError(ActorGridError):
    """The actor's method raised. The turn changed nothing; a retry of the same request id gets this same error.

    :ivar remote_type: qualified name of the exception class in the host, for example ``bank.InsufficientFunds``
    :ivar remote_text: ``str()`` of the exception
    :ivar remote_traceback: formatted traceback in the host, from the actor's own frames on
    :ivar actor: the actor, as ``Type/id``
    """

    wire_details: ClassVar[tuple[str, ...]] = ("remote_type", "remote_text", "remote_traceback", "actor")

    def __init__(self, message: str, *, remote_type: str = "", remote_text: str = "", remote_traceback: str = "", actor: str = "") -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_text = remote_text
        self.remote_traceback = remote_traceback
        self.actor = actor

    def __str__(self) -> str:
        head = str(self.args[0])
        return f"{head}\n\nin the host:\n{self.remote_traceback.rstrip()}" if self.remote_traceback else head


class ReentrancyError(ActorGridError):
    """A chain of calls came back to an actor that waits for that very chain, by a method that is not ``@grid.reentrant``.

    :ivar chain: the actors of the chain in call order, each as ``Type/id``; the last one is where the cycle closed
    """

    wire_details: ClassVar[tuple[str, ...]] = ("chain",)

    def __init__(self, message: str, *, chain: list[str] | None = None) -> None:
        super().__init__(message)
        self.chain = chain or []


class TransientError(ActorGridError):
    """Nothing happened. The client retries by itself until the deadline; you see this only when it gave up.

    :ivar retry_after_s: seconds the host asks the client to wait before the next try, 0 for "at once"
    """

    wire_details: ClassVar[tuple[str, ...]] = ("retry_after_s",)

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotPrimaryError(TransientError):
    """The host asked is not the partition's primary.

    :ivar partition: the partition
    :ivar primary: ``name@address:port`` of the primary as this host knows it, or the empty string
    :ivar epoch: epoch of that primary, 0 where it is not known; a client that knows a newer one does not follow the hint
    """

    wire_details: ClassVar[tuple[str, ...]] = ("retry_after_s", "partition", "primary")
    wire_details_optional: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(self, message: str, *, retry_after_s: float = 0.0, partition: int = -1, primary: str = "", epoch: int = 0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.partition = partition
        self.primary = primary
        self.epoch = epoch


class NoWriteQuorumError(TransientError):
    """Too few replicas of the partition answer to make a change durable."""


class ReconfigurationPendingError(TransientError):
    """The partition is changing its replicas right now and holds new calls back."""


class HostUnavailableError(TransientError):
    """No connection to the host could be made, or it is starting or stopping."""


class OverloadedError(TransientError):
    """A bounded queue is full: the actor's, the host's, or the session's window. Slow down, or add hosts."""


class DeadlockError(TransientError):
    """Two turns call each other's actors at the same moment, and neither can go on.

    Raised inside one of them, at its call; left alone it undoes that turn, frees its actors, and the client runs it again under the same
    request id. Calls that the turn had already made are answered from their records then.
    """


class OutcomeUnknownError(ActorGridError):
    """It may have happened or not. Ask again only with the same request id: use ``with_options(idempotency_key=...)``."""


class DeadlineExceededError(OutcomeUnknownError):
    """The deadline of the call passed before an answer came."""


class WriteInDoubtError(OutcomeUnknownError):
    """The change was handed to storage, which did not say whether it is durable."""


class SessionExpiredError(ActorGridError):
    """The grid no longer remembers whether this request id was executed, so it does not execute it.

    :ivar current_lsn: the partition's position when it refused; a client that has sent the request only this once may send it
        again with this position as ``since_lsn``, since nothing happened
    """

    wire_details: ClassVar[tuple[str, ...]] = ("current_lsn",)

    def __init__(self, message: str, *, current_lsn: int = 0) -> None:
        super().__init__(message)
        self.current_lsn = current_lsn


class AccessDeniedError(ActorGridError):
    """The credential does not allow this. The message says who asked, for which verb, and which rule refused it."""


class SettingsError(ActorGridError):
    """Raised at start only: a setting, an actor module or a data directory is wrong. All problems found are listed at once.

    :ivar problems: one sentence per problem
    """

    wire_details: ClassVar[tuple[str, ...]] = ("problems",)

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems) if len(problems) == 1 else "\n".join(f"- {p}" for p in problems))
        self.problems = list(problems)


class StorageError(ActorGridError):
    """The disk failed in a way that leaves the outcome of the last write unknown. The replica leaves duty (I12)."""


class CorruptLogError(StorageError):
    """A log record's checksum or order is wrong: bytes on disk changed after they had been synced."""


class DiskFullError(StorageError):
    """The disk of the data directory is full. Make room; the host is started again until its store opens."""


class ProtocolError(ActorGridError):
    """The peer broke the protocol; the connection is closed. The message says what was expected and what came."""


class InvariantViolation(AssertionError):
    """A bug of ours. Carries the invariant's number and the story: the last events of the object with their effects."""

    def __init__(self, invariant: str, what: str, story: list[str] | None = None) -> None:
        super().__init__(f"{invariant}: {what}" + ("".join(f"\n  {line}" for line in story) if story else ""))
        self.invariant = invariant
        self.story = story or []


def _tree(root: type[ActorGridError]) -> dict[str, type[ActorGridError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_NAME = _tree(ActorGridError)


def to_wire(error: ActorGridError) -> tuple[str, str, dict[str, Any]]:
    """(class name, message, details) of `error`, all of it encodable as MessagePack."""
    message = str(error.args[0]) if error.args else ""
    # A subclass that an application made of one of ours travels as ours.
    known = next(cls for cls in type(error).__mro__ if _BY_NAME.get(cls.__name__) is cls)
    details = {name: getattr(error, name) for name in type(error).wire_details}
    for name in type(error).wire_details_optional:
        if value := getattr(error, name):
            details[name] = value
    return known.__name__, message, details


def from_wire(name: str, message: str, details: dict[str, Any]) -> ActorGridError:
    """The error that a peer described. A class this release does not know comes back as its nearest kin, `ActorGridError`."""
    cls = _BY_NAME.get(name)
    if cls is None:
        return ActorGridError(f"{name}: {message}")
    if cls is SettingsError:
        return SettingsError(*(details.get("problems") or [message]))
    known = {key: details[key] for key in (*cls.wire_details, *cls.wire_details_optional) if key in details}
    return cls(message, **known)
