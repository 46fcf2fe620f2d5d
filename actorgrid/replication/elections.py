"""Who becomes primary: votes, pre-votes and campaigns.

Ongaro 2014, §3.4, §3.6.1, §4.2.3 and §9.6; VoteAsked and Campaign of ``spec/Leases.tla``.
"""

from __future__ import annotations

from typing import Final

from actorgrid.replication.configuration import Member
from actorgrid.replication.events import Send
from actorgrid.replication.messages import CampaignNow, Release, Vote, VoteRequest
from actorgrid.replication.office import Office
from actorgrid.replication.standing import FOREVER_NS, AskForVotes, Campaign, Role

#: Campaigns that follow each other quickly before there is patience.
QUICK_ATTEMPTS: Final = 4


class Elections(Office):
    """Votes given and asked for."""

    # -- votes

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

    def _is_up_to_date(self, request: VoteRequest) -> bool:
        """Whether the candidate's log is at least as far as this one (§3.6.1)."""
        return (request.last_epoch, request.last_lsn) >= (self.log.last_epoch, self.log.last_lsn)

    def _may_give_vote(self, candidate: Member) -> bool:
        return self.voted_for in ("", str(candidate))

    def _answer_vote(self, candidate: Member, request: VoteRequest, *, granted: bool) -> None:
        epoch = request.epoch if granted else self.epoch
        vote = Send(candidate.host, Vote(self.partition, candidate.incarnation, self.me.incarnation, epoch, request.pre, granted))
        if request.pre and granted:
            self._say(vote)  # it says nothing about the own epoch
        else:
            self._after_writes(vote)

    # -- when to campaign

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

    # -- campaigns

    def _wait_for_votes(self, now_ns: int) -> None:
        """Try again after a while, each at another time; soon at first, since whoever is asked may only just be starting."""
        self._attempts += 1
        shortest_ns = self._times.stagger_ns if self._attempts <= QUICK_ATTEMPTS else self._times.beat_ns
        self._campaign_until_ns = now_ns + int(self._rng.uniform(shortest_ns, 2 * shortest_ns))
        self.wake_ns = self._campaign_until_ns

    def _request_votes(self, epoch: int, *, pre: bool, release: Release | None) -> None:
        for member in self.configuration.voters:
            if member != self.me:
                # Also the second time: who was handed the office may be too slow for its first campaign, and the others are bound still.
                self._request_vote(member, epoch, pre=pre, release=release or self._newest_release())

    def _newest_release(self) -> Release | None:
        own, known = self._own_release, self._known_release
        if own is None or known is None:
            return own or known
        return own if own.epoch >= known.epoch else known

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
        if release is not None:
            # Nobody else campaigns while an office is handed over: slow disks get the time they need.
            self.wake_ns = self._campaign_until_ns = max(self._campaign_until_ns, now_ns + 2 * self._times.beat_ns)
        self._after_writes(AskForVotes(release))

    def _next_epoch(self) -> int:
        return self.epoch + 1

    def _ask_for_votes(self, release: Release | None, now_ns: int) -> None:
        if self._campaign is not Campaign.REAL:
            return
        self._votes[self.me] = None
        self._count_votes(now_ns)  # a primary that hands over has voted already
        if self._campaign is Campaign.REAL:
            self._request_votes(self.epoch, pre=False, release=release)

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
