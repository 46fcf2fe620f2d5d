"""The in-memory instance of one actor, and the calls that wait for it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from actorgrid import ambient
from actorgrid.actor.definition import ActorType
from actorgrid.actor.fields import ActorState
from actorgrid.host.turn import Turn
from actorgrid.ids import hash64

if TYPE_CHECKING:
    from actorgrid.host.partition import HostedPartition

#: Instance, dictionaries and our own bookkeeping; the encoded fields come on top. Measured by ``python -m bench memory``.
ACTIVATION_BYTES: Final = 1024


class Activation:
    """One actor in memory.

    :ivar running: the turns under way: usually none or one; more when a reentrant call came back to the waiting one (innermost last)
    :ivar queue: turns that wait, oldest first; None while it is empty, since most actors never have one
    :ivar last_lsn: the actor's last log entry; what it says may be told to others once that is committed
    :ivar load_parts: see `actorgrid.host.load`
    :ivar ready: ``on_activate`` has run, or there is none
    :ivar dead: thrown away; whatever a turn of it still does counts for nothing
    """

    __slots__ = (
        "actor_type",
        "address",
        "bytes",
        "dead",
        "hash64",
        "last_lsn",
        "last_used_s",
        "load_parts",
        "partition",
        "queue",
        "ready",
        "running",
        "state",
        "used",
    )

    def __init__(self, partition: HostedPartition, address: str, actor_type: ActorType, state: ActorState) -> None:
        self.partition = partition
        self.address = address
        self.hash64 = hash64(address)
        self.actor_type = actor_type
        self.state = state
        self.running: tuple[Turn, ...] = ()
        self.queue: deque[Turn] | None = None
        self.last_lsn = 0
        self.last_used_s = ambient.monotonic()
        self.used = True
        self.load_parts = 0
        self.ready = "on_activate" not in actor_type.hooks
        self.dead = False
        self.bytes = self.size_bytes()

    def size_bytes(self) -> int:
        """Estimate of the memory it takes: encoded fields are held twice, as bytes and as objects."""
        return ACTIVATION_BYTES + 3 * self.state.encoded_bytes

    def settle(self) -> None:
        """Let collections forget what the store has by now."""
        if self.state.view is not None and not self.running:
            self.state.view.settle(self.partition.applied_lsn)

    @property
    def droppable(self) -> bool:
        """Nothing is running or waiting, and the store has all of its state."""
        return not self.running and self.queue is None and self.last_lsn <= self.partition.applied_lsn
