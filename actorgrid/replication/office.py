"""What a replica does as primary: it appends, counts what is acknowledged, and knows when it may answer reads.

Here are I2 and I4 (what counts as committed) and I8 (`has_lease`).
"""

from __future__ import annotations

from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.events import (
    AppendFirst,
    AppendProposed,
    Commit,
    ConfigurationCommitted,
    Follow,
    ReplicaLost,
    SendAppend,
    Serve,
    StartCopy,
)
from actorgrid.replication.membership import Membership
from actorgrid.replication.messages import AppendAck, AppendRejected, ReplicaMissing
from actorgrid.replication.progress import Pace, Progress
from actorgrid.replication.standing import FOREVER_NS, Campaign, Role


class Office(Membership):
    """Taking office, commits, leases."""

    def _take_office(self, now_ns: int) -> None:
        if self.role is not Role.ACTIVE_SECONDARY:
            raise self._violation("I1", f"a {self.role} was elected")
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
        self._displaced_until_ns = FOREVER_NS
        self._sync_progress(now_ns)
        write_no = self._new_write()
        self.log.append(prev_lsn + 1, self.epoch)
        self._unsynced.append((write_no, prev_lsn + 1))
        self._effects.append(Follow(self.me.host, self.epoch))
        self._effects.append(AppendFirst(write_no, self.epoch, prev_lsn + 1))
        for progress in self.progress.values():
            if progress.is_up:
                self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, prev_lsn + 1, self.committed_lsn))

    def _propose(self, count: int, now_ns: int) -> None:
        if self.role is not Role.PRIMARY or not self.serving or self._swap_target is not None:
            raise self._violation("I1", f"entries proposed to a replica that does not serve ({self.role})")
        log = self.log
        prev_lsn, prev_epoch = log.last_lsn, log.last_epoch
        write_no = self._new_write()
        log.append(prev_lsn + count, self.epoch)
        self._unsynced.append((write_no, log.last_lsn))
        self._effects.append(AppendProposed(write_no, self.epoch, prev_lsn + 1, count))
        self._send_new(prev_lsn, prev_epoch, now_ns)

    # -- leases

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

    # -- answers of the secondaries

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
        if ack.lsn > self.log.last_lsn:
            raise self._violation("I2", f"{progress.member} acknowledged {ack.lsn}, appended are {self.log.last_lsn}")
        progress.is_missing = False
        # Accepted: the newest number counts.
        if ack.number > progress.number:
            progress.number = ack.number
        if ack.lsn > progress.match_lsn:
            progress.match_lsn = ack.lsn
            progress.moved_ns = now_ns
            committed_lsn = self.committed_lsn
            if ack.lsn > committed_lsn:  # else it is the answer of one that was not waited for
                self._advance_commit(now_ns)
                if self.committed_lsn > committed_lsn and not progress.is_awaited:
                    self._displace_if_late(progress, now_ns)
            if self._swap_target is not None:
                self._hand_over_if_ready(now_ns)  # others may have committed it all before the target had it
            if self.role is not Role.PRIMARY:
                return
        is_first = progress.pace is Pace.PROBE
        if is_first:
            progress.pace = Pace.PIPELINE
            progress.next_lsn = progress.match_lsn + 1
            if progress.member in self.configuration.voters:
                self._choose_awaited_anew()
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
        if message.successor <= message.missing and incarnation <= progress.built_in_life:
            return  # said before it was built, and heard after it
        progress.is_missing = True
        self._effects.append(ReplicaLost(member, Member(host, max(message.successor, member.incarnation + 1))))

    # -- commits

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
