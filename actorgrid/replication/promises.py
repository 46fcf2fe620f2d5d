"""What a replica has promised to a primary, and when it is free to vote for another (``spec/Leases.tla``; its actions are named)."""

from __future__ import annotations

from actorgrid.replication.configuration import Member
from actorgrid.replication.messages import Release
from actorgrid.replication.standing import Fortified, Standing


class Promises(Standing):
    """Fortification, releases, and the quiet time after a restart."""

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

    def _is_bound(self, now_ns: int) -> bool:
        """Whether a promise holds that has not run out, was not released, and whose holder is not known dead (Bound)."""
        fortified = self._fortified
        if fortified is None or self._liveness.supports_until_ns(fortified.primary.host, fortified.incarnation) <= now_ns:
            return False
        return not self._is_known_dead(fortified)

    def _learn_release(self, release: Release) -> None:
        """That a primary has stopped serving stays true, whoever tells it: the promise to it is no more (Release)."""
        if self._known_release is None or release.epoch >= self._known_release.epoch:
            self._known_release = release
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
