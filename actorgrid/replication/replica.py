"""One replica of one partition, pure: events in, effects out, time and everything else as arguments.

The protocol is Raft (Ongaro 2014; paragraphs are cited at the rules) in this project's words, with host leases for reads and for the
peace of a primary that works (``spec/Leases.tla``; its actions are named at the methods that are them). The shell around it stores, sends,
and tells what became of it.

Invariants asserted here: I1 (epochs only grow; one primary per epoch), I2 and I4 (what counts as committed), I3 (nothing committed is
truncated), I5 (configurations), I7 (messages of old epochs), I8 (`has_lease`), I17 (`StepDown` before anything of the next epoch).
"""

from __future__ import annotations

from typing import assert_never

from actorgrid.replication import messages
from actorgrid.replication.events import (
    AppendReceived,
    CommitIdle,
    ConfigurationProposed,
    CopyEnded,
    CopyInstalled,
    Effect,
    EntriesProposed,
    Event,
    HostDied,
    LogSent,
    LogStartMoved,
    MessageReceived,
    PeerDown,
    PeerPaused,
    PeerResumed,
    PeerUp,
    Recovered,
    StorageFailed,
    SupportChanged,
    SwapExpected,
    SwapProposed,
    Synced,
    TimePassed,
)
from actorgrid.replication.feeding import WINDOW_ENTRIES
from actorgrid.replication.following import Following
from actorgrid.replication.log_index import LogIndex
from actorgrid.replication.membership import PROMOTE_LAG_ENTRIES
from actorgrid.replication.messages import Append, AppendAck, AppendRejected, CampaignNow, ReplicaMissing, Vote, VoteRequest
from actorgrid.replication.standing import FOREVER_NS, STORY_LENGTH, AskForVotes, Fortified, Rng, Role

__all__ = [
    "FOREVER_NS",
    "PROMOTE_LAG_ENTRIES",
    "STORY_LENGTH",
    "WINDOW_ENTRIES",
    "AskForVotes",
    "Fortified",
    "Replica",
    "Rng",
    "Role",
]


class Replica(Following):
    """The state of one replica. All change goes through `step`.

    :param me: this replica
    :param liveness: of the host it is on; shared by all replicas there, changed by the shell
    :ivar wake_ns: when to step with `TimePassed`
    :ivar primary: who is primary of `epoch`, as far as known
    """

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event.

        :param now_ns: monotonic clock of this host, nanoseconds
        :return: what to do, in this order
        :raises InvariantViolation: a rule was broken; the replica must not be used any more
        """
        effects: list[Effect] = []
        self._effects = effects
        if self._failed:
            return effects
        committed_lsn, epoch = self.committed_lsn, self.epoch
        story = self._story.append
        # By type, those that come with every batch first: a `match` looks at each kind in turn. Of these the story has a few numbers and
        # nothing else: objects that it kept would be gone from the caches when it lets them go, which cost a twelfth of a loaded host.
        if type(event) is AppendReceived:
            message = event.message
            story((now_ns, "AppendReceived", event.host, message.epoch, message.prev_lsn, len(event.heads), message.committed_lsn))
            self._on_append(event, now_ns)
        elif type(event) is Synced:
            story((now_ns, "Synced", event.write_no))
            self._on_synced(event.write_no, now_ns)
        elif type(event) is MessageReceived:
            self._tell_message(event, effects, now_ns)
            self._on_message(event.message, event.host, event.incarnation, now_ns)
        elif type(event) is EntriesProposed:
            story((now_ns, "EntriesProposed", event.count))
            self._propose(event.count, now_ns)
        else:
            story((now_ns, event, effects))
            self._take_rare(event, now_ns)
        if self.epoch < epoch:
            raise self._violation("I1", f"epoch went back from {epoch} to {self.epoch}")
        if not committed_lsn <= self.committed_lsn <= self.log.last_lsn:
            raise self._violation("I3", f"committed {committed_lsn} -> {self.committed_lsn}, last_lsn {self.log.last_lsn}")
        return effects

    def _tell_message(self, event: MessageReceived, effects: list[Effect], now_ns: int) -> None:
        message = event.message
        if type(message) is AppendAck:
            self._story.append((now_ns, "AppendAck", event.host, message.epoch, message.lsn, message.number))
        else:
            self._story.append((now_ns, event, effects))

    def _take_rare(self, event: Event, now_ns: int) -> None:
        match event:
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
            case SwapExpected(target):
                self._expect(target)
            case SwapProposed(target):
                self._propose_swap(target, now_ns)
            case CopyEnded(to, lsn):
                self._on_copy_ended(to, lsn, now_ns)
            case CopyInstalled(lsn, copied_epoch, configuration, configuration_lsn):
                self._on_copy_installed(lsn, copied_epoch, configuration, configuration_lsn)
            case StorageFailed(why):
                self._leave_duty(why)
            case AppendReceived() | Synced() | MessageReceived() | EntriesProposed():
                raise AssertionError(f"{type(event).__name__} is not rare")
            case _:
                assert_never(event)

    def _on_recovered(self, event: Recovered, now_ns: int) -> None:
        if self._recovered:
            raise self._violation("I1", "recovered twice")
        if event.applied_lsn > event.last_lsn:
            raise self._violation("I3", f"applied {event.applied_lsn} is past last_lsn {event.last_lsn}")
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

    def _on_synced(self, write_no: int, now_ns: int) -> None:
        if write_no > self._write_no:
            raise self._violation("I2", f"synced write {write_no}, asked for were {self._write_no}")
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
        if self.role is Role.PRIMARY and self.synced_lsn > self.committed_lsn:
            self._advance_commit(now_ns)

    def _on_message(self, message: messages.Message, host: str, incarnation: int, now_ns: int) -> None:
        if not self._is_for_me(message.to):
            self.rejected_total += 1
            return
        if type(message) is AppendAck:
            self._on_ack(message, host, now_ns)
            return
        match message:
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
            case Append() | AppendAck():
                raise AssertionError(f"{type(message).__name__} comes another way")
            case _:
                assert_never(message)
