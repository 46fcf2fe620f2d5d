"""Bugs to switch on: each is a core with one small method wrong, and each must be found (faults.md, rule 10).

The first eight are the ones that `Leases.tla` names; `Bug` is what they are called there.
"""

from __future__ import annotations

from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.events import AppendReceived, Recovered, Send, Serve
from actorgrid.replication.liveness import Liveness
from actorgrid.replication.log_index import LogIndex
from actorgrid.replication.messages import AppendAck, Release, VoteRequest
from actorgrid.replication.progress import Progress
from actorgrid.replication.replica import AskForVotes, Fortified, Replica, Role

# -- the bugs of Leases.tla


class VotesWhileBound(Replica):
    """Bug = "votes while bound"."""

    def _is_bound(self, now_ns: int) -> bool:
        return False


class LeaseCountedFromReceipt(Liveness):
    """Bug = "lease counted from receipt"."""

    def _lease_end_ns(self, sent_ns: int, now_ns: int) -> int:
        return now_ns + self.times.lease_ns


class OldLeaseRevived(Replica):
    """Bug = "old lease revived"."""

    def _is_fortified_under(self, fortified_number: int, support_number: int) -> bool:
        return fortified_number != 0


class ServesAfterRelease(Replica):
    """Bug = "serves after release"."""

    def _stop_before_release(self, target: Member, now_ns: int) -> None:
        self._swap_target = None


class OldEpochFortifies(Replica):
    """Bug = "old epoch fortifies"."""

    def _refuse_append(self, event: AppendReceived, now_ns: int) -> None:
        message = event.message
        sender = Member(event.host, message.sender)
        self._fortify(sender, event.incarnation, message.epoch, now_ns)
        number = self._fortified.number if self._fortified is not None else 0
        ack = AppendAck(self.partition, message.sender, self.me.incarnation, message.epoch, 0, number)
        self._after_writes(Send(event.host, ack))


class NoQuietTimeAfterARestart(Replica):
    """Bug = "no quiet time after a restart"."""

    def _quiet_until_ns(self) -> int:
        return 0


class ReleaseOfAnyEpoch(Replica):
    """Bug = "release of any epoch"."""

    def _frees(self, release: Release, fortified: Fortified) -> bool:
        return (release.host, release.incarnation) == (fortified.primary.host, fortified.incarnation)


class DeathOfAnyIncarnation(Replica):
    """Bug = "death of any incarnation"."""

    def _is_known_dead(self, fortified: Fortified) -> bool:
        return any(self._liveness.is_dead(fortified.primary.host, life) for life in range(1, fortified.incarnation + 1))


# -- leases, beyond the model


class LeaseOffByTheDriftMargin(Liveness):
    """A lease as long as the support: clocks that differ make it last longer than the promise."""

    def _lease_end_ns(self, sent_ns: int, now_ns: int) -> int:
        return sent_ns + self.times.support_ns


class LoneVoterForgetsItsPromise(Replica):
    """A voter that is the only one of a configuration nobody has committed yet counts as alone (I8)."""

    def _quiet_until_ns(self) -> int:
        return self._liveness.quiet_until_ns if len(self.configuration.voters) > 1 else 0


# -- elections


class EpochNotDurable(Replica):
    """Epoch and vote are kept in memory only (I1)."""

    def _save_epoch(self) -> None:
        pass


class EpochUsedAgainAfterARestart(Replica):
    """The first campaign after a start takes the epoch that the disk has (I1)."""

    def _next_epoch(self) -> int:
        return max(1, self.epoch if self.voted_for in ("", str(self.me)) else self.epoch + 1)


class VotesTwiceInOneEpoch(Replica):
    """Whom it voted for is forgotten (I1)."""

    def _may_give_vote(self, candidate: Member) -> bool:
        self.voted_for = ""
        return True


class VotesWithoutComparingLogs(Replica):
    """Any candidate will do (Leader Completeness, I3)."""

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        return True


class IdleSecondaryElects(Replica):
    """An idle secondary's vote counts (I5)."""

    def _electorate(self) -> tuple[Member, ...]:
        return self.configuration.members

    def _request_votes(self, epoch: int, *, pre: bool, release: Release | None) -> None:
        for member in self.configuration.members:
            if member != self.me:
                self._request_vote(member, epoch, pre=pre, release=release)


class ReleaseIsForgotten(Replica):
    """Who left office does not say so again: a lost hand-over leaves everybody bound to it for ever (liveness)."""

    def _request_votes(self, epoch: int, *, pre: bool, release: Release | None) -> None:
        self._own_release = None
        super()._request_votes(epoch, pre=pre, release=release)

    def _ask_holder_of_promise(self, now_ns: int) -> None:
        self.wake_ns = now_ns + self._times.stagger_ns


# -- the log


class AcknowledgesBeforeTheSync(Replica):
    """What is not durable is acknowledged (I2)."""

    def _after_writes(self, what: int | Send | AskForVotes) -> None:
        if isinstance(what, int):
            self._acknowledge(what)
        else:
            super()._after_writes(what)


class VotesBeforeTheSync(Replica):
    """A vote is given before it is durable (I1)."""

    def _after_writes(self, what: int | Send | AskForVotes) -> None:
        if isinstance(what, Send):
            self._effects.append(what)
        else:
            super()._after_writes(what)


class CountsItsUnsyncedEntries(Replica):
    """The primary counts what it has only written (I2)."""

    def _own_vote_lsn(self) -> int:
        return self.log.last_lsn


class CommitsWithOneLess(Replica):
    """A write quorum is half of the voters (I2)."""

    def _quorum_lsn(self, configuration: Configuration) -> int:
        lsns = [self._own_vote_lsn() if member == self.me else self.progress[member].match_lsn for member in configuration.voters]
        return sorted(lsns)[len(lsns) - max(1, configuration.write_quorum - 1)]


class CountsAnIdleSecondary(Replica):
    """An idle secondary's acknowledgement counts (I5)."""

    def _quorum_lsn(self, configuration: Configuration) -> int:
        lsns = [self._own_vote_lsn() if member == self.me else self.progress[member].match_lsn for member in configuration.members]
        return sorted(lsns)[len(lsns) - configuration.write_quorum]


class CommitsEntriesOfAnOlderEpoch(Replica):
    """What a quorum has is committed, whoever appended it (I4; figure 3.7 of Ongaro 2014)."""

    def _may_commit(self, lsn: int) -> bool:
        return True


class ServesBeforeItsFirstEntryIsCommitted(Replica):
    """Calls are admitted as soon as it is elected (I4)."""

    def _take_office(self, now_ns: int) -> None:
        super()._take_office(now_ns)
        self.serving = True
        self._effects.append(Serve(self.epoch))


class NoEpochCheckOfAppends(Replica):
    """Appends of a primary of long ago are taken (I7)."""

    def _is_of_old_epoch(self, epoch: int) -> bool:
        return False


class TruncatesWithoutLooking(Replica):
    """Every append makes the log end where it ends: a late one cuts off what was acknowledged since (I3)."""

    def _count_known(self, heads: list[RecordHead], end: int) -> tuple[int, int]:
        return 0, (heads[0].first_lsn - 1 if heads else end)

    def _truncation_bound(self) -> int:
        return 0


class IgnoresTheReplicaIncarnation(Replica):
    """What was meant for a replica that was here before is taken (I7)."""

    def _is_for_me(self, incarnation: int) -> bool:
        return True


# -- configurations and copies


class SecondChangeWhileOneIsPending(Replica):
    """A configuration is proposed before the last one is committed (I5)."""

    def _is_change_pending(self) -> bool:
        return False


class PromotesBeforeItHasCaughtUp(Replica):
    """An idle secondary votes as soon as somebody wants it (I13)."""

    def is_caught_up(self, progress: Progress) -> bool:
        return True


class TakesAnyCopy(Replica):
    """A copy that is not older than what is known committed takes the place of a log that has more (I2)."""

    def takes_copy(self, lsn: int, epoch: int) -> bool:
        return self.role is not Role.PRIMARY and lsn >= self.committed_lsn


class OldConfigurationsAreForgotten(Replica):
    """Who is fed from the log does not learn the configurations in it that were committed long ago (I5)."""

    def _on_recovered(self, event: Recovered, now_ns: int) -> None:
        super()._on_recovered(event, now_ns)
        self.log.__class__ = ForgetfulLogIndex

    def _advance_commit(self, now_ns: int) -> None:
        super()._advance_commit(now_ns)
        known = self.log._configurations
        while len(known) > 1 and known[1][0] <= self.committed_lsn:
            known.pop(0)


class ForgetfulLogIndex(LogIndex):
    __slots__ = ()

    def configurations_between(self, after_lsn: int, last_lsn: int) -> list[tuple[int, Configuration]]:
        return [(lsn, configuration) for lsn, configuration in self._configurations if after_lsn < lsn <= last_lsn]
