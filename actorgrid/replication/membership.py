"""Who belongs to a partition and who is its primary, changed on purpose: configurations, hand-overs, copies.

Configurations change by one replica at a time, through the log (Ongaro 2014, §4.1; I5); a primary hands over with `CampaignNow` (§3.10).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.events import AppendConfiguration, ConfigurationRefused, Send, StartCopy, StepDown, SwapAbandoned
from actorgrid.replication.feeding import Feeding
from actorgrid.replication.messages import CampaignNow, Release, Vote
from actorgrid.replication.progress import Pace, Progress
from actorgrid.replication.standing import Campaign, Role

#: An idle secondary votes once it is at most so far behind: little enough to catch up while entries wait for it.
PROMOTE_LAG_ENTRIES: Final = 4_096


class Membership(Feeding):
    """Configurations, swaps of the primary, copies."""

    # -- configurations

    def is_caught_up(self, progress: Progress) -> bool:
        """Whether a secondary is there, and near enough to the end of the log to vote and to follow in office."""
        if not progress.is_up or progress.is_missing:
            return False  # one that is gone makes the write quorum larger, and no easier to reach
        return progress.pace is Pace.PIPELINE and self.log.last_lsn - progress.match_lsn <= PROMOTE_LAG_ENTRIES

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
        gone = 0
        for member in configuration.voters:
            progress = self.progress.get(member)
            gone += progress is not None and progress.is_missing
            if member not in self.configuration.voters and (progress is None or not self.is_caught_up(progress)):
                return f"{member} has not caught up, or is away"
        if len(configuration.voters) - gone < configuration.write_quorum:
            return f"{gone} of its {len(configuration.voters)} voters are gone, and the others are no write quorum"
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
        self._expect(None)
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
        """Stop serving, then say so: whoever is fortified by this primary is free to vote for `target`.

        This replica votes for it unasked: it knows that `target` has everything, and that nobody else can have asked before. So the first
        vote is made durable while `target` does the same with its own, and nobody has to be asked.
        """
        epoch = self.epoch
        release = Release(self.me.host, self._liveness.incarnation, epoch)
        self._stop_before_release(target, now_ns)
        self._send(target, CampaignNow(self.partition, target.incarnation, self.me.incarnation, epoch, release))
        if self.role is Role.ACTIVE_SECONDARY:
            self._adopt(epoch + 1, str(target), f"{target} follows", now_ns)
            vote = Vote(self.partition, target.incarnation, self.me.incarnation, epoch + 1, pre=False, granted=True)
            self._after_writes(Send(target.host, vote))

    def _stop_before_release(self, target: Member, now_ns: int) -> None:
        self._leave_office(f"handed over to {target}", target.host, now_ns)

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

    # -- copies

    def _on_copy_ended(self, to: Member, lsn: int, now_ns: int) -> None:
        progress = self.progress.get(to)
        if progress is None or progress.pace is not Pace.COPY:
            return
        progress.moved_ns = now_ns
        if lsn:
            progress.is_missing = False
            progress.built_in_life = self._liveness.life_of(to.host)
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
        if self.role is Role.PRIMARY:
            raise self._violation("I13", "a copy was installed in a primary")
        if not self.takes_copy(lsn, epoch):
            raise self._violation("I3", f"a copy at {lsn} replaces a log with {self.committed_lsn}..{self.log.last_lsn}")
        self.log.restart_after(lsn, epoch, configuration, configuration_lsn)
        self.committed_lsn = self._matched_lsn = lsn
        self._campaign = Campaign.NONE
        self._take_role()
        # What follows the copy on the disk is durable after it, and so is whatever is said from now on.
        self._after = deque([waiting for waiting in self._after if not isinstance(waiting[2], int)])
        self.synced_lsn = 0
        self._save_epoch()
        self._unsynced = deque([(self._write_no, lsn)])
