"""One replica of one partition, pure: events in, effects out, time and everything else as arguments.

The rules are Raft's, in this project's words (Ongaro 2014). A configuration of one member needs no messages, and
that is what is here: its own vote elects it and its own sync is the write quorum. The shell around it does not know that; it appends
what `AppendLog` says, reports what became durable, and answers callers when `Commit` says so.

Invariants asserted: I1 (epochs only grow, and are durable before they are used), I2 and I4 (a commit is counted from synced entries,
and through one of the own epoch), I3 (committed positions are never appended to again).
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from typing import Final, assert_never

from actorgrid.errors import InvariantViolation
from actorgrid.ids import Epoch, Lsn, PartitionId

STORY_LENGTH: Final = 32


class Role(enum.StrEnum):
    """What a replica is at the moment."""

    PRIMARY = "primary"
    ACTIVE_SECONDARY = "active_secondary"
    IDLE_SECONDARY = "idle_secondary"
    NONE = "none"


# -- events: past tense, they happened


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """Storage was read: the highest durable epoch, the log's last position, and what is known to be committed."""

    epoch: Epoch
    last_lsn: Lsn
    committed_lsn: Lsn


@dataclasses.dataclass(frozen=True, slots=True)
class EpochSynced:
    """The epoch asked for by `SaveEpoch` is durable."""

    epoch: Epoch


@dataclasses.dataclass(frozen=True, slots=True)
class EntriesProposed:
    """`count` more entries stand ready to be appended."""

    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class LogSynced:
    """Everything up to `last_lsn` is durable here."""

    last_lsn: Lsn


@dataclasses.dataclass(frozen=True, slots=True)
class StorageFailed:
    """The store cannot say what is durable: this replica's duty ends (I12)."""

    why: str


Event = Recovered | EpochSynced | EntriesProposed | LogSynced | StorageFailed


# -- effects: imperative, the shell does them in this order


@dataclasses.dataclass(frozen=True, slots=True)
class SaveEpoch:
    """Make `epoch` durable, then report `EpochSynced`; nothing may be said in that epoch before (I1)."""

    epoch: Epoch


@dataclasses.dataclass(frozen=True, slots=True)
class AppendLog:
    """Write the proposed entries at `first_lsn` and following, in one atomic batch, sync, then report `LogSynced`."""

    epoch: Epoch
    first_lsn: Lsn
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class AppendFirst:
    """Append one empty entry at `lsn`, the first of `epoch` (I4), sync, then report `LogSynced`."""

    epoch: Epoch
    lsn: Lsn


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """Apply entries up to `lsn` in order and answer their callers."""

    lsn: Lsn


@dataclasses.dataclass(frozen=True, slots=True)
class Serve:
    """The first entry of the own epoch is committed: calls may be admitted."""

    epoch: Epoch


@dataclasses.dataclass(frozen=True, slots=True)
class StepDown:
    """Admit nothing more; answer what is pending as in doubt, what has not run as refused (I17)."""

    why: str


Effect = SaveEpoch | AppendLog | AppendFirst | Commit | Serve | StepDown


class Replica:
    """The state of one replica. All change goes through `step`."""

    __slots__ = ("_story", "committed_lsn", "epoch", "epoch_start_lsn", "last_lsn", "partition", "role", "serving", "synced_lsn")

    def __init__(self, partition: PartitionId) -> None:
        self.partition = partition
        self.role = Role.NONE
        self.serving = False
        self.epoch = Epoch(0)
        self.last_lsn = Lsn(0)
        self.synced_lsn = Lsn(0)
        self.committed_lsn = Lsn(0)
        self.epoch_start_lsn = Lsn(0)
        self._story: deque[tuple[int, Event, list[Effect]]] = deque(maxlen=STORY_LENGTH)

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event.

        :param now_ns: monotonic clock, nanoseconds
        :return: what to do, in this order
        :raises InvariantViolation: a rule was broken; the replica must not be used any more
        """
        match event:
            case EntriesProposed(count):
                effects = self._append(count)
            case LogSynced(last_lsn):
                effects = self._advance(last_lsn)
            case Recovered(epoch, last_lsn, committed_lsn):
                effects = self._stand_for_election(epoch, last_lsn, committed_lsn)
            case EpochSynced(epoch):
                effects = self._become_primary(epoch)
            case StorageFailed(why):
                effects = self._leave_duty(why)
            case _:
                assert_never(event)
        self._story.append((now_ns, event, effects))
        return effects

    def _stand_for_election(self, epoch: Epoch, last_lsn: Lsn, committed_lsn: Lsn) -> list[Effect]:
        self._require(self.role is Role.NONE and self.epoch == 0, "I1", f"recovered twice, in epoch {self.epoch}")
        self._require(committed_lsn <= last_lsn, "I3", f"committed_lsn {committed_lsn} is past last_lsn {last_lsn}")
        self.epoch = Epoch(epoch + 1)
        self.last_lsn = self.synced_lsn = last_lsn
        self.committed_lsn = committed_lsn
        return [SaveEpoch(self.epoch)]

    def _become_primary(self, epoch: Epoch) -> list[Effect]:
        self._require(epoch == self.epoch and self.role is Role.NONE, "I1", f"epoch {epoch} synced while in epoch {self.epoch}")
        self.role = Role.PRIMARY
        self.last_lsn = self.epoch_start_lsn = Lsn(self.last_lsn + 1)
        return [AppendFirst(self.epoch, self.last_lsn)]

    def _append(self, count: int) -> list[Effect]:
        self._require(self.role is Role.PRIMARY and self.serving, "I1", f"entries proposed to a replica that does not serve ({self.role})")
        first = Lsn(self.last_lsn + 1)
        self._require(first > self.committed_lsn, "I3", f"append at {first}, committed are {self.committed_lsn}")
        self.last_lsn = Lsn(self.last_lsn + count)
        return [AppendLog(self.epoch, first, count)]

    def _advance(self, last_lsn: Lsn) -> list[Effect]:
        self._require(
            self.synced_lsn <= last_lsn <= self.last_lsn, "I2", f"synced {last_lsn}, had {self.synced_lsn}, appended {self.last_lsn}"
        )
        if self.role is not Role.PRIMARY:
            return []
        self.synced_lsn = last_lsn
        # The write quorum of a configuration of one is itself. I4: counted only from the first entry of the own epoch on.
        if last_lsn < self.epoch_start_lsn or last_lsn == self.committed_lsn:
            return []
        self.committed_lsn = last_lsn
        if self.serving:
            return [Commit(last_lsn)]
        self.serving = True
        return [Commit(last_lsn), Serve(self.epoch)]

    def _leave_duty(self, why: str) -> list[Effect]:
        if self.role is Role.NONE:
            return []
        self.role = Role.NONE
        self.serving = False
        return [StepDown(why)]

    def _require(self, condition: bool, invariant: str, what: str) -> None:
        if not condition:
            raise InvariantViolation(invariant, f"{what} (partition {self.partition}, epoch {self.epoch})", self.story())

    def story(self) -> list[str]:
        """The last events with their effects, oldest first."""
        return [f"{now_ns} {event} -> {effects}" for now_ns, event, effects in self._story]
