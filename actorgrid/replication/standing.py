"""What one replica is and knows, what it has written and may say: the ground of everything else that it does.

Here are I1 (epochs only grow; nothing is said in one before it is durable) and I17 (`StepDown` before anything of the next epoch).
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, NamedTuple, Protocol

from actorgrid.errors import InvariantViolation
from actorgrid.ids import PartitionId
from actorgrid.replication import messages
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.events import Effect, SaveEpoch, Send, StepDown
from actorgrid.replication.liveness import Liveness
from actorgrid.replication.log_index import LogIndex
from actorgrid.replication.messages import AppendAck, Release
from actorgrid.replication.progress import Progress

STORY_LENGTH: Final = 24
FOREVER_NS: Final = 1 << 62


class Role(enum.StrEnum):
    """What a replica is at the moment."""

    PRIMARY = "primary"
    ACTIVE_SECONDARY = "active_secondary"
    IDLE_SECONDARY = "idle_secondary"
    NONE = "none"


class Campaign(enum.Enum):
    """How far a secondary is on its way to be primary."""

    NONE = enum.auto()
    PRE = enum.auto()  # asks who would vote for it
    REAL = enum.auto()  # asks for votes


class Fortified(NamedTuple):
    """This replica accepted `primary` of `epoch`, and promised not to vote for another while that life of its host is supported."""

    primary: Member
    incarnation: int
    epoch: int
    number: int


class AskForVotes(NamedTuple):
    """What a candidate does once its vote for itself is durable."""

    release: Release | None


class Rng(Protocol):
    """The part of `random.Random` that is used."""

    def uniform(self, a: float, b: float) -> float: ...


#: What waits for a write to be durable: an acknowledgement up to a position, a message, or the next step of a campaign.
Waiting = int | Send | AskForVotes


class Standing:
    """A replica's state, its durable writes, its epoch and its office."""

    def __init__(self, partition: PartitionId, me: Member, liveness: Liveness, rng: Rng) -> None:
        self.partition = partition
        self.me = me
        self.role = Role.NONE
        self.serving = False
        self.epoch = 0
        self.voted_for = ""
        self.committed_lsn = 0
        self.synced_lsn = 0
        self.epoch_start_lsn = 0
        self.primary: Member | None = None
        self.wake_ns = 0
        self.rejected_total = 0
        self.log = LogIndex(1, 0, (), ())
        self._liveness = liveness
        self._times = liveness.times
        self._rng = rng
        self._recovered = False
        self._failed = False
        # Durable writes: the last one asked for and the last one done; lsn of each that appended; what to say after which.
        self._write_no = 0
        self._synced_no = 0
        self._unsynced: deque[tuple[int, int]] = deque()
        self._after: deque[tuple[int, int, Waiting]] = deque()  # (after this write, if still in this epoch, what)
        # As a secondary.
        self._primary_life = 0
        self._fortified: Fortified | None = None
        self._own_release: Release | None = None  # of the last epoch this replica was primary of, once it is not
        self._known_release: Release | None = None  # the last one of another that was heard of
        self._matched_lsn = 0  # up to here the log is the primary's of this epoch
        self._heard_ns = 0
        self._timeout_ns = 0
        self._urgent_ns = FOREVER_NS  # campaign then, whatever was heard
        self._campaign = Campaign.NONE
        self._campaign_until_ns = 0
        self._attempts = 0
        self._votes: dict[Member, None] = {}
        # As primary.
        self.progress: dict[Member, Progress] = {}
        self._lease_until_ns = 0
        self._configuration_pending = False
        self._swap_target: Member | None = None
        self._swap_until_ns = 0
        self._expected: Member | None = None  # who is to follow in office
        self._displaced_until_ns = FOREVER_NS  # another than who campaigns first is awaited until then
        self._up: dict[str, bool] = {}
        self._effects: list[Effect] = []
        self._story: deque[tuple[object, ...]] = deque(maxlen=STORY_LENGTH)  # (when, event, effects), or (when, name, numbers...)

    @property
    def last_lsn(self) -> int:
        return self.log.last_lsn

    @property
    def configuration(self) -> Configuration:
        return self.log.configuration

    @property
    def is_swapping(self) -> bool:
        return self._swap_target is not None

    # -- durable writes

    def _new_write(self) -> int:
        self._write_no += 1
        return self._write_no

    def _save_epoch(self) -> None:
        self._effects.append(SaveEpoch(self._new_write(), self.epoch, self.voted_for))

    def _after_writes(self, what: Waiting) -> None:
        """Say it once everything asked for so far is durable; at once if it is."""
        if self._synced_no >= self._write_no:
            self._say(what)
        else:
            self._after.append((self._write_no, self.epoch, what))

    def _say(self, what: Waiting) -> None:
        if isinstance(what, int):
            self._acknowledge(what)
        elif isinstance(what, Send):
            self._effects.append(what)

    def _acknowledge(self, lsn: int) -> None:
        primary = self.primary
        if primary is not None and primary != self.me:
            fortified = self._fortified
            is_current = fortified is not None and fortified.epoch == self.epoch and fortified.primary == primary
            number = fortified.number if fortified is not None and is_current else 0
            self._send(primary, AppendAck(self.partition, primary.incarnation, self.me.incarnation, self.epoch, lsn, number))

    def _send(self, to: Member, message: messages.Message) -> None:
        self._effects.append(Send(to.host, message))

    # -- epochs

    def _adopt(self, epoch: int, voted_for: str, why: str, now_ns: int) -> None:
        """Go to a higher epoch as a secondary of nobody yet (Ongaro 2014, §3.3)."""
        if epoch <= self.epoch:
            raise self._violation("I1", f"adopt epoch {epoch} in epoch {self.epoch}")
        self._leave_office(f"{why} in epoch {epoch}", "", now_ns)
        self.epoch, self.voted_for = epoch, voted_for
        self.primary = None
        self._matched_lsn = self.committed_lsn
        self._campaign = Campaign.NONE
        self._save_epoch()

    def _leave_office(self, why: str, successor: str, now_ns: int) -> None:
        """Serve no more, before anything is done in another epoch (I17)."""
        if self.role is not Role.PRIMARY:
            return
        self._own_release = Release(self.me.host, self._liveness.incarnation, self.epoch)
        self.serving = False
        self._lease_until_ns = 0
        self._swap_target = self._expected = None
        self.progress.clear()
        self.primary = None
        self._heard_ns = now_ns
        self._timeout_ns = self._random_timeout()
        self._urgent_ns = FOREVER_NS
        self.wake_ns = now_ns
        self._take_role()
        self._effects.append(StepDown(why, successor))

    def _take_role(self) -> None:
        """What the newest configuration makes of a replica that is not primary; whom it removes votes until it is committed (§4.2.2)."""
        configuration = self.configuration
        if self.log.is_voter(self.me, self.committed_lsn):
            self.role = Role.ACTIVE_SECONDARY
            if self.wake_ns == FOREVER_NS:
                self.wake_ns = 0  # from now on it watches the primary
        elif self.me in configuration.idle:
            self.role = Role.IDLE_SECONDARY
        else:
            self.role = Role.NONE

    def _random_timeout(self) -> int:
        return int(self._rng.uniform(self._times.election_low_ns, self._times.election_high_ns))

    # -- our own mistakes

    def _violation(self, invariant: str, what: str) -> InvariantViolation:
        return InvariantViolation(invariant, f"{what} (partition {self.partition}, {self.me}, epoch {self.epoch})", self.story())

    def story(self) -> list[str]:
        """The last events, oldest first, with the effects of those that are rare and of the last one."""
        lines = [" ".join([str(each) for each in told]) for told in self._story]
        return [*lines, f"effects of the last one, so far: {self._effects}"]
