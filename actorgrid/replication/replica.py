"""One replica of one partition, pure: events in, effects out, time and everything else as arguments.

The protocol is Raft (Ongaro 2014; paragraphs are cited at the rules) in this project's words, with host leases for reads and for the
peace of a primary that works (``spec/Leases.tla``; its actions are named at the methods that are them). The shell around it stores, sends,
and tells what became of it.

Invariants asserted here: I1 (epochs only grow; one primary per epoch), I2 and I4 (what counts as committed), I3 (nothing committed is
truncated), I5 (configurations), I7 (messages of old epochs), I8 (`has_lease`), I17 (`StepDown` before anything of the next epoch).
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, assert_never

from actorgrid.errors import InvariantViolation
from actorgrid.ids import PartitionId
from actorgrid.replication import messages
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.events import (
    AppendConfiguration,
    AppendFirst,
    AppendProposed,
    AppendReceived,
    AppendRecords,
    Commit,
    CommitIdle,
    ConfigurationCommitted,
    ConfigurationProposed,
    ConfigurationRefused,
    CopyEnded,
    CopyInstalled,
    Effect,
    EntriesProposed,
    Event,
    Follow,
    HostDied,
    LogSent,
    LogStartMoved,
    MessageReceived,
    PeerDown,
    PeerPaused,
    PeerResumed,
    PeerUp,
    Recovered,
    ReplicaLost,
    SaveEpoch,
    Send,
    SendAppend,
    SendFromLog,
    Serve,
    StartCopy,
    StepDown,
    StorageFailed,
    SupportChanged,
    SwapAbandoned,
    SwapProposed,
    Synced,
    TimePassed,
    TruncateLog,
)
from actorgrid.replication.liveness import Liveness
from actorgrid.replication.log_index import LogIndex
from actorgrid.replication.messages import Append, AppendAck, AppendRejected, CampaignNow, Release, ReplicaMissing, Vote, VoteRequest
from actorgrid.replication.progress import Pace, Progress

STORY_LENGTH: Final = 64
#: Entries sent and not acknowledged: past it a secondary is fed from the log, chunk by chunk, and slows nobody down.
WINDOW_ENTRIES: Final = 32_768
#: An idle secondary votes once it is at most so far behind: little enough to catch up while entries wait for it.
PROMOTE_LAG_ENTRIES: Final = 4_096
#: Campaigns that follow each other quickly before there is patience.
QUICK_ATTEMPTS: Final = 4
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


def _told(event: AppendReceived) -> object:
    """What the story keeps of an append: not the records, which it must not keep alive."""
    m = event.message
    return ("append", event.host, event.incarnation, m.epoch, m.prev_lsn, m.prev_epoch, m.committed_lsn, event.heads)


#: What waits for a write to be durable: an acknowledgement up to a position, a message, or the next step of a campaign.
_Waiting = int | Send | AskForVotes


class Replica:
    """The state of one replica. All change goes through `step`.

    :param me: this replica
    :param liveness: of the host it is on; shared by all replicas there, changed by the shell
    :ivar wake_ns: when to step with `TimePassed`
    :ivar primary: who is primary of `epoch`, as far as known
    """

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
        self._after: deque[tuple[int, int, _Waiting]] = deque()  # (after this write, if still in this epoch, what)
        # As a secondary.
        self._primary_life = 0
        self._fortified: Fortified | None = None
        self._own_release: Release | None = None  # of the last epoch this replica was primary of, once it is not
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
        self._up: dict[str, bool] = {}
        self._effects: list[Effect] = []
        self._story: deque[tuple[int, object, list[Effect]]] = deque(maxlen=STORY_LENGTH)

    # -- reading

    @property
    def last_lsn(self) -> int:
        return self.log.last_lsn

    @property
    def configuration(self) -> Configuration:
        return self.log.configuration

    def is_caught_up(self, progress: Progress) -> bool:
        """Whether an idle secondary is near enough to the end of the log to vote."""
        return progress.pace is Pace.PIPELINE and self.log.last_lsn - progress.match_lsn <= PROMOTE_LAG_ENTRIES

    @property
    def is_swapping(self) -> bool:
        return self._swap_target is not None

    def has_lease(self, now_ns: int) -> bool:
        """Whether a read may be answered now: nobody else can be primary of a later epoch (ValidLease, I8)."""
        if not self.serving:
            return False
        if now_ns < self._lease_until_ns:
            return True
        self._lease_until_ns = self._compute_lease()
        return now_ns < self._lease_until_ns

    def _compute_lease(self) -> int:
        """A write quorum is fortified in this epoch, under support that has not run out; the end of that.

        A lease under a number that was followed by another stays good until its own end: its promise was kept.
        """
        ends = []
        for member in self.configuration.voters:
            if member == self.me:
                ends.append(FOREVER_NS)
                continue
            progress = self.progress.get(member)
            received = self._liveness.received(member.host)
            if progress is None or received is None or not self._is_fortified_under(progress.number, received.number):
                ends.append(0)
            else:
                ends.append(received.until_ns)
        ends.sort(reverse=True)
        return ends[self.configuration.write_quorum - 1]

    def _is_fortified_under(self, fortified_number: int, support_number: int) -> bool:
        return fortified_number != 0 and fortified_number == support_number

    def has_contact(self, now_ns: int) -> bool:
        """Whether a write quorum was heard within one support time: what is proposed can be expected to commit."""
        return self._contact_ns(now_ns) + self._times.support_ns > now_ns

    def _contact_ns(self, now_ns: int) -> int:
        """When a write quorum was heard for the last time: of each voter the last time, of those the quorum-th newest."""
        heard = []
        for member in self.configuration.voters:
            if member == self.me:
                heard.append(now_ns)
                continue
            progress = self.progress.get(member)
            heard.append(self._liveness.heard_ns(member.host) if progress is not None and not progress.is_missing else 0)
        heard.sort(reverse=True)
        return heard[self.configuration.write_quorum - 1]

    # -- the one way in

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event.

        :param now_ns: monotonic clock of this host, nanoseconds
        :return: what to do, in this order
        :raises InvariantViolation: a rule was broken; the replica must not be used any more
        """
        effects: list[Effect] = []
        self._effects = effects
        self._story.append((now_ns, event if type(event) is not AppendReceived else _told(event), effects))
        if self._failed:
            return effects
        committed_lsn, epoch = self.committed_lsn, self.epoch
        match event:
            case EntriesProposed(count):
                self._propose(count, now_ns)
            case AppendReceived():
                self._on_append(event, now_ns)
            case Synced(write_no):
                self._on_synced(write_no, now_ns)
            case MessageReceived():
                self._on_message(event.message, event.host, event.incarnation, now_ns)
            case TimePassed():
                self._on_time(now_ns)
            case CommitIdle():
                self._tell_commit(now_ns)
            case LogSent(to, last_lsn):
                self._on_log_sent(to, last_lsn, now_ns)
            case SupportChanged(host):
                self._ask_to_fortify(host, now_ns)
            case PeerUp(host):
                self._on_peer_up(host, now_ns)
            case PeerDown(host):
                self._up[host] = False
                for progress in self._progress_on(host):
                    progress.is_up = False
            case PeerPaused(host):
                for progress in self._progress_on(host):
                    progress.is_paused = True
            case PeerResumed(host):
                self._on_peer_resumed(host, now_ns)
            case HostDied(host, incarnation):
                self._on_host_died(host, incarnation, now_ns)
            case Recovered():
                self._on_recovered(event, now_ns)
            case LogStartMoved(start_lsn):
                self.log.drop_before(start_lsn)
            case ConfigurationProposed(configuration):
                self._propose_configuration(configuration, now_ns)
            case SwapProposed(target):
                self._propose_swap(target, now_ns)
            case CopyEnded(to, lsn):
                self._on_copy_ended(to, lsn, now_ns)
            case CopyInstalled(lsn, copied_epoch, configuration, configuration_lsn):
                self._on_copy_installed(lsn, copied_epoch, configuration, configuration_lsn)
            case StorageFailed(why):
                self._leave_duty(why)
            case _:
                assert_never(event)
        self._require(self.epoch >= epoch, "I1", f"epoch went back from {epoch} to {self.epoch}")
        self._require(
            committed_lsn <= self.committed_lsn <= self.log.last_lsn,
            "I3",
            f"committed {committed_lsn} -> {self.committed_lsn}, last_lsn {self.log.last_lsn}",
        )
        return effects

    # -- start

    def _on_recovered(self, event: Recovered, now_ns: int) -> None:
        self._require(not self._recovered, "I1", "recovered twice")
        self._require(event.applied_lsn <= event.last_lsn, "I3", f"applied {event.applied_lsn} is past last_lsn {event.last_lsn}")
        self._recovered = True
        self.epoch, self.voted_for = event.epoch, event.voted_for
        self.log = LogIndex(event.log_start_lsn, event.last_lsn, event.epochs, event.configurations)
        # Only what was committed is ever applied.
        self.committed_lsn = self._matched_lsn = event.applied_lsn
        self.synced_lsn = event.last_lsn
        self._heard_ns = now_ns
        self._timeout_ns = self._random_timeout()
        self._take_role()
        if self.role is Role.ACTIVE_SECONDARY:
            # Whoever should be primary asks first; the others give it time. If there is a primary, its support binds the voters.
            self._urgent_ns = max(now_ns, self._quiet_until_ns()) + self._rank_without("") * 5 * self._times.stagger_ns
        self.wake_ns = now_ns

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

    # -- durable writes

    def _new_write(self) -> int:
        self._write_no += 1
        return self._write_no

    def _save_epoch(self) -> None:
        self._effects.append(SaveEpoch(self._new_write(), self.epoch, self.voted_for))

    def _after_writes(self, what: _Waiting) -> None:
        """Say it once everything asked for so far is durable; at once if it is."""
        if self._synced_no >= self._write_no:
            self._say(what)
        else:
            self._after.append((self._write_no, self.epoch, what))

    def _on_synced(self, write_no: int, now_ns: int) -> None:
        self._require(write_no <= self._write_no, "I2", f"synced write {write_no}, asked for were {self._write_no}")
        self._synced_no = max(self._synced_no, write_no)
        unsynced = self._unsynced
        while unsynced and unsynced[0][0] <= write_no:
            self.synced_lsn = max(self.synced_lsn, unsynced.popleft()[1])
        after = self._after
        acknowledged = -1
        while after and after[0][0] <= write_no:
            _, epoch, what = after.popleft()
            if epoch != self.epoch:
                continue  # said by nobody any more
            if isinstance(what, int):
                acknowledged = what  # one answer for all appends of this sync
            elif isinstance(what, AskForVotes):
                self._ask_for_votes(what.release, now_ns)
            else:
                self._effects.append(what)
        if acknowledged >= 0:
            self._acknowledge(acknowledged)
        if self.role is Role.PRIMARY:
            self._advance_commit(now_ns)

    def _say(self, what: _Waiting) -> None:
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
        self._require(epoch > self.epoch, "I1", f"adopt epoch {epoch} in epoch {self.epoch}")
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
        self._swap_target = None
        self.progress.clear()
        self.primary = None
        self._heard_ns = now_ns
        self._timeout_ns = self._random_timeout()
        self._urgent_ns = FOREVER_NS
        self.wake_ns = now_ns
        self._take_role()
        self._effects.append(StepDown(why, successor))

    def _leave_duty(self, why: str) -> None:
        """Nothing is said any more after this, but who goes on."""
        successor = self._best_successor()
        if successor is not None:
            self._resign(why, successor, 0)
        else:
            self._effects.append(StepDown(why))
        self._failed = True
        self.serving = False
        self.role = Role.NONE
        self.progress.clear()

    # -- messages

    def _on_message(self, message: messages.Message, host: str, incarnation: int, now_ns: int) -> None:
        if not self._is_for_me(message.to):
            self.rejected_total += 1
            return
        match message:
            case AppendAck():
                self._on_ack(message, host, now_ns)
            case AppendRejected():
                self._on_rejected(message, host, now_ns)
            case VoteRequest():
                self._on_vote_request(message, host, now_ns)
            case Vote():
                self._on_vote(message, host, now_ns)
            case CampaignNow():
                self._on_campaign_now(message, host, incarnation, now_ns)
            case ReplicaMissing():
                self._on_replica_missing(message, host, incarnation, now_ns)
            case Append():
                raise AssertionError("an append comes as AppendReceived")
            case _:
                assert_never(message)

    # -- as a secondary: the log (Ongaro 2014, §3.5; Appended)

    def _on_append(self, event: AppendReceived, now_ns: int) -> None:
        message = event.message
        if not self._is_for_me(message.to):
            self.rejected_total += 1
            return
        if self._is_of_old_epoch(message.epoch):
            self._refuse_append(event, now_ns)
            return
        sender = Member(event.host, message.sender)
        self._require(
            self.role is not Role.PRIMARY or message.epoch > self.epoch, "I1", f"{sender} is primary of epoch {message.epoch} as well"
        )
        if message.epoch > self.epoch:
            self._adopt(message.epoch, "", f"{sender} is primary", now_ns)
        if self.primary != sender or self._primary_life != event.incarnation:
            self._follow(sender, event.incarnation)
            self._heard_ns = now_ns
        if self._urgent_ns != FOREVER_NS or self._campaign is not Campaign.NONE:
            self._stop_campaign(event)
        if self._fortify(sender, event.incarnation, message.epoch, now_ns):
            # A host that sends and does not beat has a disk that does not answer: it is as good as silent.
            self._heard_ns = now_ns
        end = self._find_match(message)
        if end < 0:
            return
        self._take_records(event, end)
        committed_lsn = min(message.committed_lsn, self._matched_lsn)
        if committed_lsn > self.committed_lsn:
            is_configured = committed_lsn >= self.log.configuration_lsn > self.committed_lsn
            self.committed_lsn = committed_lsn
            self._effects.append(Commit(committed_lsn))
            if is_configured:
                self._take_role()
        self._after_writes(self._matched_lsn)

    def _is_for_me(self, incarnation: int) -> bool:
        return incarnation == self.me.incarnation

    def _refuse_append(self, event: AppendReceived, now_ns: int) -> None:
        """Tell a primary of an old epoch that it is one (I7)."""
        self.rejected_total += 1
        message = event.message
        rejection = AppendRejected(self.partition, message.sender, self.me.incarnation, self.epoch, message.prev_lsn, 0)
        self._after_writes(Send(event.host, rejection))

    def _is_of_old_epoch(self, epoch: int) -> bool:
        return epoch < self.epoch

    def _follow(self, sender: Member, incarnation: int) -> None:
        self._require(self.primary in (None, sender), "I1", f"{sender} and {self.primary} are primaries of epoch {self.epoch}")
        self.primary = sender
        self._primary_life = incarnation
        self._campaign = Campaign.NONE
        self._attempts = 0
        self._timeout_ns = self._random_timeout()
        self._effects.append(Follow(sender.host, self.epoch))

    def _stop_campaign(self, append: AppendReceived) -> None:
        """There is a primary; unless this is the last that was heard of a dead one."""
        if not self._liveness.is_dead(append.host, append.incarnation):
            self._urgent_ns = FOREVER_NS
            self._campaign = Campaign.NONE

    def _fortify(self, primary: Member, incarnation: int, epoch: int, now_ns: int) -> bool:
        """Promise the primary of `epoch` not to vote for another, for as long as its host is supported; whether it is (Appended)."""
        number = self._liveness.support_number(primary.host, incarnation, now_ns)
        fortified = self._fortified
        if number:
            if fortified is None or fortified.number != number or fortified.epoch != epoch:
                self._fortified = Fortified(primary, incarnation, epoch, number)
        elif fortified is not None and (fortified.primary, fortified.epoch) == (primary, epoch):
            self._fortified = fortified._replace(number=0)
        return number != 0

    def _find_match(self, message: Append) -> int:
        """The position up to which the log is known to be the primary's, as far as `message` shows; -1 if its records do not fit."""
        prev_lsn = message.prev_lsn
        if prev_lsn <= self.committed_lsn:
            return self.committed_lsn  # what is committed is in every later primary's log (Leader Completeness, §3.6.3)
        if prev_lsn > self.log.last_lsn:
            hint_lsn = self.log.last_lsn
        elif self.log.epoch_at(prev_lsn) != message.prev_epoch:
            hint_lsn = self.log.hint_below(prev_lsn, message.prev_epoch)
        else:
            return prev_lsn
        rejection = AppendRejected(
            self.partition, message.sender, self.me.incarnation, self.epoch, prev_lsn, max(hint_lsn, self.committed_lsn)
        )
        assert self.primary is not None
        self._after_writes(Send(self.primary.host, rejection))
        return -1

    def _take_records(self, event: AppendReceived, end: int) -> None:
        """Skip what is here already, truncate what contradicts, append the rest (figure 3.1, AppendEntries 3 and 4)."""
        log, heads = self.log, event.heads
        skip, end = self._count_known(heads, end)
        if skip < len(heads):
            if log.last_lsn > end:
                self._truncate_from(end + 1)
            write_no = self._new_write()
            for head in heads[skip:]:
                self._require(head.first_lsn == log.last_lsn + 1, "I3", f"record {head} follows position {log.last_lsn}")
                self._require(log.last_epoch <= head.epoch <= event.message.epoch, "I3", f"record {head} follows epoch {log.last_epoch}")
                log.append(head.last_lsn, head.epoch)
            for lsn, configuration in event.message.configurations:
                if lsn > max(end, log.configuration_lsn):
                    log.add_configuration(lsn, configuration)
                    self._take_role()
            end = log.last_lsn
            self._unsynced.append((write_no, end))
            self._effects.append(AppendRecords(write_no, skip))
        if end > self._matched_lsn:
            self._matched_lsn = end

    def _count_known(self, heads: Sequence[RecordHead], end: int) -> tuple[int, int]:
        """How many of the records the log has already, and the position up to which it is then known to be the primary's."""
        log = self.log
        skip = 0
        for head in heads:
            if head.last_lsn > end:
                if head.first_lsn != end + 1:
                    self._require(False, "I3", f"record {head} follows position {end}")
                if head.last_lsn > log.last_lsn or log.epoch_at(head.last_lsn) != head.epoch:
                    break
                end = head.last_lsn
            skip += 1
        return skip, end

    def _truncate_from(self, lsn: int) -> None:
        self._require(lsn > self._truncation_bound(), "I3", f"truncate from {lsn}, committed are {self.committed_lsn}")
        self.log.truncate_from(lsn)
        self.synced_lsn = min(self.synced_lsn, lsn - 1)
        self._unsynced = deque((write_no, min(last_lsn, lsn - 1)) for write_no, last_lsn in self._unsynced)
        self._effects.append(TruncateLog(lsn))
        self._take_role()

    def _truncation_bound(self) -> int:
        return self.committed_lsn

    # -- as a secondary: who is primary (Ongaro 2014, §3.4, §4.2.3, §9.6; VoteAsked, Campaign)

    def _is_bound(self, now_ns: int) -> bool:
        """Whether a promise holds that has not run out, was not released, and whose holder is not known dead (Bound)."""
        fortified = self._fortified
        if fortified is None or self._liveness.supports_until_ns(fortified.primary.host, fortified.incarnation) <= now_ns:
            return False
        return not self._is_known_dead(fortified)

    def _learn_release(self, release: Release) -> None:
        """That a primary has stopped serving stays true, whoever tells it: the promise to it is no more (Release)."""
        if self._fortified is not None and self._frees(release, self._fortified):
            self._fortified = None

    def _frees(self, release: Release, fortified: Fortified) -> bool:
        holder = (fortified.primary.host, fortified.incarnation)
        return (release.host, release.incarnation) == holder and release.epoch >= fortified.epoch

    def _is_known_dead(self, fortified: Fortified) -> bool:
        return self._liveness.is_dead(fortified.primary.host, fortified.incarnation)

    def _may_vote(self, now_ns: int) -> bool:
        """MayVote."""
        return not self._is_bound(now_ns) and now_ns >= self._quiet_until_ns()

    def _quiet_until_ns(self) -> int:
        """A restarted host may have promised something to others; who votes alone, and knows that as committed, has nobody to (Restart)."""
        votes_alone = len(self.configuration.voters) == 1 and self.log.configuration_lsn <= self.committed_lsn
        return 0 if votes_alone else self._liveness.quiet_until_ns

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        """Whether the candidate's log is at least as far as this one (§3.6.1)."""
        return (request.last_epoch, request.last_lsn) >= (self.log.last_epoch, self.log.last_lsn)

    def _on_vote_request(self, request: VoteRequest, host: str, now_ns: int) -> None:
        candidate = Member(host, request.sender)
        if request.release is not None:
            self._learn_release(request.release)
        granted = (
            # Who was built votes, whatever its own configuration makes of it: the candidate's may be newer (§4.1).
            bool(self.configuration.voters)
            and request.epoch >= self.epoch
            and self._may_vote(now_ns)
            # A primary that works is not disturbed (§4.2.3).
            and not (self.role is Role.PRIMARY and self.has_lease(now_ns))
        )
        if request.pre:
            granted = granted and request.epoch > self.epoch
            if granted and not self._is_up_to_date(request):
                granted = False
                if self.role is Role.ACTIVE_SECONDARY:
                    self._urgent_ns = min(self._urgent_ns, now_ns)  # it cannot win, this one can
                    self.wake_ns = now_ns
            self._answer_vote(candidate, request, granted=granted)
            if request.release is None and self._own_release is not None and self.role is not Role.PRIMARY:
                self._request_vote(candidate, self.epoch + 1, pre=True, release=self._own_release)  # perhaps nobody has told it
            return
        if not granted:
            self._answer_vote(candidate, request, granted=False)
            return
        up_to_date = self._is_up_to_date(request)
        if request.epoch > self.epoch:
            self._adopt(request.epoch, str(candidate) if up_to_date else "", f"{candidate} campaigns", now_ns)
            granted = up_to_date
        elif up_to_date and self._may_give_vote(candidate):
            if not self.voted_for:
                self.voted_for = str(candidate)
                self._save_epoch()
        else:
            granted = False
        if granted:
            self._heard_ns = now_ns  # give it time
            self._urgent_ns = FOREVER_NS
        self._answer_vote(candidate, request, granted=granted)

    def _may_give_vote(self, candidate: Member) -> bool:
        return self.voted_for in ("", str(candidate))

    def _answer_vote(self, candidate: Member, request: VoteRequest, *, granted: bool) -> None:
        epoch = request.epoch if granted else self.epoch
        vote = Send(candidate.host, Vote(self.partition, candidate.incarnation, self.me.incarnation, epoch, request.pre, granted))
        if request.pre and granted:
            self._say(vote)  # it says nothing about the own epoch
        else:
            self._after_writes(vote)

    def _rank_without(self, host: str) -> int:
        others = [member for member in self.configuration.voters if member.host != host]
        return others.index(self.me) if self.me in others else len(others)

    def _on_host_died(self, host: str, incarnation: int, now_ns: int) -> None:
        """The process that was primary is known dead: campaign at once, one after another."""
        if self.primary is None or self.role is Role.PRIMARY or (self.primary.host, self._primary_life) != (host, incarnation):
            return
        self._urgent_ns = now_ns + self._rank_without(host) * self._times.stagger_ns
        self.wake_ns = self._urgent_ns

    def _primary_heard_ns(self) -> int:
        """When the primary was heard for the last time: by an append, or by a beat of its host that says it is primary still."""
        primary = self.primary
        if primary is not None and self._liveness.vouches(primary.host, self._primary_life, self.partition, self.epoch):
            return max(self._heard_ns, self._liveness.beaten_ns(primary.host))
        return self._heard_ns

    def _on_time(self, now_ns: int) -> None:
        if self.role is Role.PRIMARY:
            self._on_primary_time(now_ns)
            return
        self.wake_ns = FOREVER_NS
        if self.role is not Role.ACTIVE_SECONDARY:
            return
        if self._campaign is not Campaign.NONE:
            if now_ns < self._campaign_until_ns:
                self.wake_ns = self._campaign_until_ns
                return
            self._campaign = Campaign.NONE
        elif now_ns < (due_ns := min(self._urgent_ns, self._primary_heard_ns() + self._timeout_ns)):
            self.wake_ns = min(due_ns, now_ns + self._times.beat_ns)
            return
        if not self._may_vote(now_ns):
            self._ask_holder_of_promise(now_ns)
            return
        self._campaign = Campaign.PRE
        self._votes = {self.me: None}
        self._wait_for_votes(now_ns)
        self._request_votes(self.epoch + 1, pre=True, release=None)
        self._count_votes(now_ns)

    def _ask_holder_of_promise(self, now_ns: int) -> None:
        """The primary is silent and its host is not: perhaps it has left office, and its release was lost. Then it answers with that."""
        self.wake_ns = now_ns + self._times.stagger_ns
        if self._fortified is not None and self._is_bound(now_ns):
            self.wake_ns = now_ns + self._times.beat_ns
            self._request_vote(self._fortified.primary, self.epoch + 1, pre=True, release=None)

    def _wait_for_votes(self, now_ns: int) -> None:
        """Try again after a while, each at another time; soon at first, since whoever is asked may only just be starting."""
        self._attempts += 1
        shortest_ns = self._times.stagger_ns if self._attempts <= QUICK_ATTEMPTS else self._times.beat_ns
        self._campaign_until_ns = now_ns + int(self._rng.uniform(shortest_ns, 2 * shortest_ns))
        self.wake_ns = self._campaign_until_ns

    def _request_votes(self, epoch: int, *, pre: bool, release: Release | None) -> None:
        for member in self.configuration.voters:
            if member != self.me:
                self._request_vote(member, epoch, pre=pre, release=release or self._own_release)

    def _request_vote(self, member: Member, epoch: int, *, pre: bool, release: Release | None) -> None:
        log = self.log
        request = VoteRequest(self.partition, member.incarnation, self.me.incarnation, epoch, log.last_lsn, log.last_epoch, pre, release)
        self._send(member, request)

    def _campaign_for_real(self, release: Release | None, now_ns: int) -> None:
        """Go to the next epoch and vote for oneself; ask the others once that is durable (Campaign)."""
        self._campaign = Campaign.REAL
        self._votes = {}
        self.epoch = self._next_epoch()
        self.voted_for = str(self.me)
        self.primary = None
        self._matched_lsn = self.committed_lsn
        self._save_epoch()
        self._wait_for_votes(now_ns)
        self._after_writes(AskForVotes(release))

    def _next_epoch(self) -> int:
        return self.epoch + 1

    def _ask_for_votes(self, release: Release | None, now_ns: int) -> None:
        if self._campaign is not Campaign.REAL:
            return
        self._votes[self.me] = None
        self._request_votes(self.epoch, pre=False, release=release)
        self._count_votes(now_ns)

    def _on_vote(self, vote: Vote, host: str, now_ns: int) -> None:
        if not vote.granted:
            if vote.epoch > self.epoch:
                self._adopt(vote.epoch, "", f"{host} is", now_ns)
            return
        expected = (Campaign.PRE, self.epoch + 1) if vote.pre else (Campaign.REAL, self.epoch)
        if (self._campaign, vote.epoch) != expected:
            return
        self._votes[Member(host, vote.sender)] = None
        self._count_votes(now_ns)

    def _count_votes(self, now_ns: int) -> None:
        configuration = self.configuration
        if sum(member in self._votes for member in self._electorate()) < configuration.write_quorum:
            return
        if self._campaign is Campaign.PRE:
            if self._may_vote(now_ns):
                self._campaign_for_real(None, now_ns)
        elif self._campaign is Campaign.REAL and self.me in self._votes:
            self._take_office(now_ns)

    def _electorate(self) -> tuple[Member, ...]:
        return self.configuration.voters

    def _on_campaign_now(self, message: CampaignNow, host: str, incarnation: int, now_ns: int) -> None:
        """The primary has released its office to this replica: no need to wait, nor to ask first (§3.10; CampaignReleased)."""
        release = message.release
        if (
            message.epoch != self.epoch
            or self.role is not Role.ACTIVE_SECONDARY
            or (release.host, release.incarnation) != (host, incarnation)
        ):
            self.rejected_total += 1
            return
        self._learn_release(release)
        if self._may_vote(now_ns):
            self._campaign_for_real(release, now_ns)

    # -- in office (Elected)

    def _take_office(self, now_ns: int) -> None:
        self._require(self.role is Role.ACTIVE_SECONDARY, "I1", f"a {self.role} was elected")
        self.role = Role.PRIMARY
        self.serving = False
        self.primary = self.me
        self._campaign = Campaign.NONE
        self._fortified = None
        self._own_release = None
        self._configuration_pending = self.log.configuration_lsn > self.committed_lsn
        self._urgent_ns = FOREVER_NS
        self._lease_until_ns = 0
        self.wake_ns = now_ns + self._times.beat_ns
        prev_lsn, prev_epoch = self.log.last_lsn, self.log.last_epoch
        self.epoch_start_lsn = prev_lsn + 1
        self.progress = {}
        self._sync_progress(now_ns)
        write_no = self._new_write()
        self.log.append(prev_lsn + 1, self.epoch)
        self._unsynced.append((write_no, prev_lsn + 1))
        self._effects.append(Follow(self.me.host, self.epoch))
        self._effects.append(AppendFirst(write_no, self.epoch, prev_lsn + 1))
        for progress in self.progress.values():
            if progress.is_up:
                self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, prev_lsn + 1, self.committed_lsn))

    def _sync_progress(self, now_ns: int) -> None:
        """One for each other member of the newest configuration."""
        known = self.progress
        self.progress = {
            member: known.get(member) or Progress(member, self.log.last_lsn + 1, is_up=self._up.get(member.host, False), now_ns=now_ns)
            for member in self.configuration.members
            if member != self.me
        }

    def _progress_on(self, host: str) -> list[Progress]:
        return [progress for member, progress in self.progress.items() if member.host == host]

    def _propose(self, count: int, now_ns: int) -> None:
        self._require(
            self.role is Role.PRIMARY and self.serving and self._swap_target is None,
            "I1",
            f"entries proposed to a replica that does not serve ({self.role})",
        )
        log = self.log
        prev_lsn, prev_epoch = log.last_lsn, log.last_epoch
        write_no = self._new_write()
        log.append(prev_lsn + count, self.epoch)
        self._unsynced.append((write_no, log.last_lsn))
        self._effects.append(AppendProposed(write_no, self.epoch, prev_lsn + 1, count))
        self._send_new(prev_lsn, prev_epoch, now_ns)

    def _send_new(self, prev_lsn: int, prev_epoch: int, now_ns: int) -> None:
        """Send what was just appended to all who have what is before it (pipelining, §10.2.1)."""
        last_lsn, committed_lsn = self.log.last_lsn, self.committed_lsn
        for progress in self.progress.values():
            if (
                progress.next_lsn == prev_lsn + 1
                and progress.pace is Pace.PIPELINE
                and progress.is_up
                and not progress.is_paused
                and last_lsn - progress.match_lsn <= WINDOW_ENTRIES
            ):
                self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, last_lsn, committed_lsn))
                if progress.match_lsn == prev_lsn:
                    progress.moved_ns = now_ns  # the oldest that is not acknowledged
                progress.next_lsn = last_lsn + 1
                progress.told_lsn = committed_lsn

    def _feed(self, progress: Progress, now_ns: int) -> None:
        """Send the next thing this secondary needs from the log, or begin a copy."""
        if not progress.is_up or progress.is_paused or progress.pace is Pace.COPY:
            return
        next_lsn = progress.next_lsn
        prev_epoch = self.log.epoch_at(next_lsn - 1)
        if next_lsn < self.log.start_lsn or prev_epoch < 0:
            progress.pace = Pace.COPY
            progress.moved_ns = now_ns
            self._effects.append(StartCopy(progress.member))
            return
        progress.moved_ns = now_ns
        if next_lsn > self.log.last_lsn:
            self._send_empty(progress)
        else:
            progress.chunk_lsn = FOREVER_NS  # until it is known how far the chunk goes
            self._effects.append(SendFromLog(progress.member, self.epoch, next_lsn - 1, prev_epoch, self.committed_lsn))

    def _probe_again(self, progress: Progress) -> None:
        """Go back to what it is known to have; if the log does not reach that far any more, ask first whether it is there at all."""
        next_lsn = progress.match_lsn + 1 if progress.match_lsn else progress.next_lsn
        progress.probe_from(next_lsn if next_lsn >= self.log.start_lsn else self.log.last_lsn + 1)

    def _send_empty(self, progress: Progress) -> None:
        prev_lsn = progress.next_lsn - 1
        prev_epoch = self.log.epoch_at(prev_lsn)
        if prev_lsn < self.log.start_lsn - 1 or prev_epoch < 0:
            return  # the log has gone on without it; it is fed next, or copied
        self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, prev_lsn, self.committed_lsn))
        progress.told_lsn = self.committed_lsn

    def _on_log_sent(self, to: Member, last_lsn: int, now_ns: int) -> None:
        progress = self.progress.get(to)
        if progress is None or progress.pace is Pace.COPY:
            return
        progress.chunk_lsn = last_lsn
        progress.moved_ns = now_ns
        if progress.pace is Pace.PIPELINE and progress.next_lsn <= last_lsn:
            progress.next_lsn = last_lsn + 1

    def _of_this_office(self, epoch: int, host: str, sender: int, now_ns: int) -> Progress | None:
        """The secondary that answers, if the answer is for the epoch this replica is primary of."""
        if epoch > self.epoch:
            self._adopt(epoch, "", f"{host} is", now_ns)
            return None
        if self.role is not Role.PRIMARY or epoch != self.epoch:
            self.rejected_total += 1
            return None
        return self.progress.get(Member(host, sender))

    def _on_ack(self, ack: AppendAck, host: str, now_ns: int) -> None:
        progress = self._of_this_office(ack.epoch, host, ack.sender, now_ns)
        if progress is None:
            return
        self._require(ack.lsn <= self.log.last_lsn, "I2", f"{progress.member} acknowledged {ack.lsn}, appended are {self.log.last_lsn}")
        progress.is_missing = False
        # Accepted: the newest number counts.
        if ack.number > progress.number:
            progress.number = ack.number
        if ack.lsn > progress.match_lsn:
            progress.match_lsn = ack.lsn
            progress.moved_ns = now_ns
            self._advance_commit(now_ns)
            if self._swap_target is not None:
                self._hand_over_if_ready(now_ns)  # others may have committed it all before the target had it
            if self.role is not Role.PRIMARY:
                return
        is_first = progress.pace is Pace.PROBE
        if is_first:
            progress.pace = Pace.PIPELINE
            progress.next_lsn = progress.match_lsn + 1
        elif progress.next_lsn <= progress.match_lsn:
            progress.next_lsn = progress.match_lsn + 1
        if progress.next_lsn <= self.log.last_lsn:
            if progress.match_lsn >= progress.chunk_lsn:
                self._feed(progress, now_ns)
        elif is_first and progress.told_lsn < self.committed_lsn and not progress.is_paused:
            self._send_empty(progress)  # what was committed while it was being probed, nobody has told it

    def _on_rejected(self, rejection: AppendRejected, host: str, now_ns: int) -> None:
        progress = self._of_this_office(rejection.epoch, host, rejection.sender, now_ns)
        if progress is None or progress.pace is Pace.COPY:
            return
        is_stale = rejection.prev_lsn <= progress.match_lsn or rejection.prev_lsn >= progress.next_lsn
        if is_stale or (progress.pace is Pace.PROBE and rejection.prev_lsn != progress.next_lsn - 1):
            return
        progress.is_missing = False
        prev_lsn, hint_lsn = rejection.prev_lsn, rejection.hint_lsn
        best_lsn = hint_lsn if hint_lsn < prev_lsn else self.log.run_start(prev_lsn) - 1
        progress.probe_from(max(progress.match_lsn, best_lsn) + 1)
        self._feed(progress, now_ns)

    def _on_replica_missing(self, message: ReplicaMissing, host: str, incarnation: int, now_ns: int) -> None:
        """A replica is not there. One that never was is built; one that has said anything is no member any more (I6)."""
        member = Member(host, message.missing)
        if self.role is not Role.PRIMARY:
            if self._fortified is not None and (self._fortified.primary, self._fortified.incarnation) == (member, incarnation):
                self._fortified = None  # what is not there serves nothing
            return
        progress = self.progress.get(member)
        if progress is None or progress.pace is Pace.COPY:
            return
        if member in self.configuration.idle and message.successor <= message.missing and not progress.match_lsn:
            progress.pace = Pace.COPY
            progress.moved_ns = now_ns
            self._effects.append(StartCopy(member))
            return
        progress.is_missing = True
        self._effects.append(ReplicaLost(member, Member(host, max(message.successor, member.incarnation + 1))))

    def _advance_commit(self, now_ns: int) -> None:
        """What a write quorum has durably is committed, once an entry of this epoch is among it (§3.6.2; I2, I4)."""
        configuration = self.configuration
        lsn = self._quorum_lsn(configuration)
        if lsn <= self.committed_lsn or not self._may_commit(lsn):
            return
        self.committed_lsn = lsn
        self._effects.append(Commit(lsn))
        if not self.serving and self._swap_target is None:
            self.serving = True
            self._effects.append(Serve(self.epoch))
        if self._configuration_pending and self.log.configuration_lsn <= lsn:
            self._configuration_pending = False
            self._effects.append(ConfigurationCommitted(configuration))
            if self.me not in configuration.voters:
                self._resign("no longer a voter", self._best_successor(), now_ns)
                return
        self._hand_over_if_ready(now_ns)

    def _quorum_lsn(self, configuration: Configuration) -> int:
        """Up to where a write quorum has everything durably."""
        me, progress = self.me, self.progress
        lsns = [self._own_vote_lsn() if member == me else progress[member].match_lsn for member in configuration.voters]
        lsns.sort()
        return lsns[len(lsns) - configuration.write_quorum]

    def _own_vote_lsn(self) -> int:
        return self.synced_lsn

    def _may_commit(self, lsn: int) -> bool:
        return lsn >= self.epoch_start_lsn

    def _tell_commit(self, now_ns: int) -> None:
        if self.role is not Role.PRIMARY:
            return
        for progress in self.progress.values():
            if progress.told_lsn < self.committed_lsn and progress.pace is Pace.PIPELINE and progress.is_up and not progress.is_paused:
                self._send_empty(progress)

    def _ask_to_fortify(self, host: str, now_ns: int) -> None:
        """The host supports under a new number: only a new append makes its replicas promise again."""
        for progress in self._progress_on(host):
            if progress.is_up and progress.pace is Pace.PIPELINE:
                self._send_empty(progress)

    def _on_peer_up(self, host: str, now_ns: int) -> None:
        self._up[host] = True
        for progress in self._progress_on(host):
            progress.is_up = True
            progress.is_paused = False
            if progress.pace is not Pace.COPY:
                self._probe_again(progress)
                self._feed(progress, now_ns)
        if self.role is Role.ACTIVE_SECONDARY and self.primary is None:
            self.wake_ns = now_ns

    def _on_peer_resumed(self, host: str, now_ns: int) -> None:
        for progress in self._progress_on(host):
            progress.is_paused = False
            has_more = progress.next_lsn <= self.log.last_lsn and progress.match_lsn >= progress.chunk_lsn
            if progress.pace is Pace.PROBE or (progress.pace is Pace.PIPELINE and has_more):
                self._feed(progress, now_ns)

    def _on_primary_time(self, now_ns: int) -> None:
        self.wake_ns = now_ns + self._times.beat_ns
        if len(self.configuration.voters) > 1 and self._contact_ns(now_ns) + self._times.election_high_ns <= now_ns:
            # Nobody may be able to reach this primary while it can reach nobody: it must not look as if it were one (§6.2).
            self._leave_office("no write quorum was heard for an election timeout", "", now_ns)
            return
        if self._swap_target is not None and now_ns >= self._swap_until_ns:
            self._abandon_swap(f"{self._swap_target} did not get everything in time")
        for progress in self.progress.values():
            is_waiting = progress.pace is Pace.PROBE or progress.match_lsn < self.log.last_lsn
            if is_waiting and progress.pace is not Pace.COPY and now_ns - progress.moved_ns >= self._times.resend_ns:
                self._probe_again(progress)
                self._feed(progress, now_ns)
            elif progress.pace is Pace.PIPELINE and not self._is_fortified(progress, now_ns):
                self._send_empty(progress)

    def _is_fortified(self, progress: Progress, now_ns: int) -> bool:
        """Whether this secondary is fortified under the support its host gives now, or cannot be."""
        received = self._liveness.received(progress.member.host)
        return (
            received is None
            or received.number <= progress.number
            or received.until_ns <= now_ns
            or progress.is_paused
            or not progress.is_up
        )

    # -- configurations (Ongaro 2014, §4.1; I5)

    def _propose_configuration(self, configuration: Configuration, now_ns: int) -> None:
        why = self._why_not(configuration)
        if why:
            self._effects.append(ConfigurationRefused(configuration, why))
            return
        prev_lsn, prev_epoch = self.log.last_lsn, self.log.last_epoch
        write_no = self._new_write()
        lsn = prev_lsn + 1
        self.log.append(lsn, self.epoch)
        self.log.add_configuration(lsn, configuration)
        self._configuration_pending = True
        self._unsynced.append((write_no, lsn))
        self._effects.append(AppendConfiguration(write_no, self.epoch, lsn, configuration))
        known = dict(self.progress)
        self._sync_progress(now_ns)
        self._send_new(prev_lsn, prev_epoch, now_ns)
        for member, progress in self.progress.items():
            if member not in known:  # it has nothing yet
                progress.pace = Pace.COPY
                self._effects.append(StartCopy(member))
        self._lease_until_ns = 0

    def _why_not(self, configuration: Configuration) -> str:
        if self.role is not Role.PRIMARY or not self.serving:
            return "this replica is not a primary that has committed an entry of its epoch"
        if self._is_change_pending():
            return f"version {self.configuration.version} is not committed yet"
        if self._swap_target is not None:
            return "the primary is being swapped"
        why = self.configuration.refusal_of(configuration)
        if why:
            return why
        for member in configuration.voters:
            if member not in self.configuration.voters:
                progress = self.progress.get(member)
                if progress is None or not self.is_caught_up(progress):
                    return f"{member} has not caught up"
        return ""

    def _is_change_pending(self) -> bool:
        return self.log.configuration_lsn > self.committed_lsn

    # -- swap primary (Ongaro 2014, §3.10; Release)

    def _propose_swap(self, target: Member, now_ns: int) -> None:
        progress = self.progress.get(target)
        why = ""
        if self.role is not Role.PRIMARY or not self.serving:
            why = "this replica does not serve"
        elif target == self.me:
            why = f"{target} is primary"
        elif progress is None or target not in self.configuration.voters:
            why = f"{target} is no voter"
        elif progress.pace is not Pace.PIPELINE or not progress.is_up:
            why = f"{target} does not keep up"
        elif self.log.configuration_lsn > self.committed_lsn:
            why = "a configuration change is pending"
        if why:
            self._abandon_swap(why)  # also one that was under way: what the shell hears is that it goes on serving
            return
        self._swap_target = target
        self._swap_until_ns = now_ns + self._times.swap_ns
        self._hand_over_if_ready(now_ns)

    def _abandon_swap(self, why: str) -> None:
        self._swap_target = None
        self._effects.append(SwapAbandoned(why))

    def _hand_over_if_ready(self, now_ns: int) -> None:
        target = self._swap_target
        if target is None:
            return
        progress = self.progress.get(target)
        if progress is None:
            self._abandon_swap(f"{target} is gone")
        elif progress.match_lsn == self.log.last_lsn == self.committed_lsn:
            self._release(target, now_ns)

    def _release(self, target: Member, now_ns: int) -> None:
        """Stop serving, then say so: whoever is fortified by this primary is free to vote for `target`."""
        release = Release(self.me.host, self._liveness.incarnation, self.epoch)
        self._stop_before_release(target, now_ns)
        self._send(target, CampaignNow(self.partition, target.incarnation, self.me.incarnation, self.epoch, release))

    def _resign(self, why: str, successor: Member | None, now_ns: int) -> None:
        """Leave office for good; `successor` need not wait for the promises to run out."""
        epoch = self.epoch
        self._leave_office(why, successor.host if successor is not None else "", now_ns)
        if successor is not None and self._own_release is not None:
            self._send(successor, CampaignNow(self.partition, successor.incarnation, self.me.incarnation, epoch, self._own_release))

    def _best_successor(self) -> Member | None:
        """The voter that has most of the log, if any has anything."""
        having = [self.progress[member] for member in self.configuration.voters if member in self.progress]
        best = max((progress for progress in having if progress.is_up), key=lambda progress: progress.match_lsn, default=None)
        return best.member if best is not None and best.match_lsn else None

    def _stop_before_release(self, target: Member, now_ns: int) -> None:
        self._leave_office(f"handed over to {target}", target.host, now_ns)

    # -- copies

    def _on_copy_ended(self, to: Member, lsn: int, now_ns: int) -> None:
        progress = self.progress.get(to)
        if progress is None or progress.pace is not Pace.COPY:
            return
        progress.is_missing = progress.is_missing and not lsn
        progress.moved_ns = now_ns
        # After a copy that came to nothing the end of the log is tried: perhaps it has more than was known.
        progress.probe_from((lsn or self.log.last_lsn) + 1)
        if lsn:
            self._feed(progress, now_ns)

    def takes_copy(self, lsn: int, epoch: int) -> bool:
        """Whether a copy of the state at `lsn`, an entry of `epoch`, may take the place of what is here now.

        Not if it has less than is committed here, nor if the log here has that very entry: what follows it may be acknowledged (I2, I3).
        """
        return self.role is not Role.PRIMARY and lsn > self.committed_lsn and self.log.epoch_at(lsn) != epoch

    def _on_copy_installed(self, lsn: int, epoch: int, configuration: Configuration, configuration_lsn: int) -> None:
        self._require(self.role is not Role.PRIMARY, "I13", "a copy was installed in a primary")
        self._require(self.takes_copy(lsn, epoch), "I3", f"a copy at {lsn} replaces a log with {self.committed_lsn}..{self.log.last_lsn}")
        self.log.restart_after(lsn, epoch, configuration, configuration_lsn)
        self.committed_lsn = self._matched_lsn = lsn
        self._campaign = Campaign.NONE
        self._take_role()
        # What follows the copy on the disk is durable after it, and so is whatever is said from now on.
        self._after = deque(waiting for waiting in self._after if not isinstance(waiting[2], int))
        self.synced_lsn = 0
        self._save_epoch()
        self._unsynced = deque([(self._write_no, lsn)])

    # -- our own mistakes

    def _require(self, condition: bool, invariant: str, what: str) -> None:
        if not condition:
            raise InvariantViolation(invariant, f"{what} (partition {self.partition}, {self.me}, epoch {self.epoch})", self.story())

    def story(self) -> list[str]:
        """The last events with their effects, oldest first."""
        return [f"{now_ns} {event} -> {effects}" for now_ns, event, effects in self._story]
