"""How a primary gets its log to the others: pipelined, from the log in chunks, or by a copy (Ongaro 2014, §3.5 and §10.2.1)."""

from __future__ import annotations

from typing import Final

from actorgrid.replication.configuration import Member
from actorgrid.replication.events import SendAppend, SendFromLog, StartCopy
from actorgrid.replication.progress import Pace, Progress
from actorgrid.replication.promises import Promises
from actorgrid.replication.standing import FOREVER_NS, Role

#: Entries sent and not acknowledged: past it a secondary is fed from the log, chunk by chunk, and slows nobody down.
WINDOW_ENTRIES: Final = 32_768
#: An awaited secondary that owes an answer for longer is late: three times what the others may wait, and they have answered.
LATE_NS: Final = 15_000_000
#: Whoever lost its place for being late has it again after so long.
DISPLACED_NS: Final = 1_000_000_000


class Feeding(Promises):
    """What is sent to whom, and when again."""

    def _sync_progress(self, now_ns: int) -> None:
        """One for each other member of the newest configuration."""
        known = self.progress
        self.progress = {
            member: known.get(member) or Progress(member, self.log.last_lsn + 1, is_up=self._up.get(member.host, False), now_ns=now_ns)
            for member in self.configuration.members
            if member != self.me
        }
        if self._displaced_until_ns == FOREVER_NS:
            self._choose_awaited_anew()
        else:
            self._choose_awaited()  # who is displaced stays so for its second

    # -- who is waited for

    def _choose_awaited(self) -> None:
        """Let as many be awaited as make a write quorum together with this replica: those that are, then who campaigns first after it.

        So the first to campaign has the longest log, and wins at once.
        """
        configuration, missing = self.configuration, self._awaited_count()
        for member, progress in self.progress.items():
            progress.is_awaited = progress.is_awaited and member != self._expected and member in configuration.voters and missing > 0
            missing -= progress.is_awaited
        for member in configuration.voters:
            chosen = self.progress.get(member)
            if missing > 0 and chosen is not None and not chosen.is_awaited:
                chosen.is_awaited = True
                missing -= 1
        expected = self.progress.get(self._expected) if self._expected is not None else None
        if expected is not None and expected.member in configuration.voters:
            expected.is_awaited = True  # as well, in nobody's place

    def _choose_awaited_anew(self) -> None:
        """Those that campaign first again. Else a host that was away or late would have the shorter logs, and follow nobody in office."""
        self._displaced_until_ns = FOREVER_NS
        for progress in self.progress.values():
            progress.is_awaited = False
        self._choose_awaited()

    def _awaited_count(self) -> int:
        configuration = self.configuration
        return configuration.write_quorum - (self.me in configuration.voters)

    def _displace_if_late(self, sooner: Progress, now_ns: int) -> None:
        """Await for a second the one that made a commit, in the place of one that is late: to be first by a hair says nothing."""
        if sooner.member not in self.configuration.voters:
            return
        slowest = None
        for each in self.progress.values():
            if not each.is_awaited or each.member == self._expected or each.match_lsn >= sooner.match_lsn:
                continue
            is_late = each.match_lsn < each.owed_lsn and now_ns - each.owed_ns > LATE_NS
            if is_late and (slowest is None or each.match_lsn < slowest.match_lsn):
                slowest = each
        if slowest is not None:
            slowest.is_awaited = False
            sooner.is_awaited = True
            self._displaced_until_ns = now_ns + DISPLACED_NS

    def _expect(self, target: Member | None) -> None:
        """Await `target` as well, until the office is left or nobody is expected; and what it was sent already at once."""
        self._expected = target
        if target is None:
            self._choose_awaited_anew()
            return
        progress = self.progress.get(target)
        if progress is not None and not progress.is_awaited and target in self.configuration.voters:
            progress.is_awaited = True
            if progress.match_lsn < self.log.last_lsn and progress.takes_appends:
                self._send_empty(progress)

    def _can_spare_others(self, prev_lsn: int) -> bool:
        """Whether a write quorum of what follows `prev_lsn` comes about without those that are not awaited."""
        missing = self._awaited_count()
        for progress in self.progress.values():
            if progress.is_awaited and not progress.is_missing and self._is_sent_new(progress, prev_lsn):
                missing -= 1
        return missing <= 0

    def _is_sent_new(self, progress: Progress, prev_lsn: int) -> bool:
        """Whether it is sent what was just appended behind `prev_lsn`, as all who have what is before it (pipelining, §10.2.1)."""
        if progress.next_lsn != prev_lsn + 1 or not progress.takes_appends:
            return False
        return self.log.last_lsn - progress.match_lsn <= WINDOW_ENTRIES

    # -- sending

    def _send_new(self, prev_lsn: int, prev_epoch: int, now_ns: int) -> None:
        """Send what was just appended."""
        last_lsn, committed_lsn = self.log.last_lsn, self.committed_lsn
        if now_ns >= self._displaced_until_ns:
            self._choose_awaited_anew()
        spares_others = self._can_spare_others(prev_lsn)
        for progress in self.progress.values():
            if self._is_sent_new(progress, prev_lsn):
                may_wait = spares_others and not progress.is_awaited
                self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, last_lsn, committed_lsn, may_wait))
                if progress.match_lsn == prev_lsn:
                    progress.moved_ns = now_ns  # the oldest that is not acknowledged
                if progress.match_lsn >= progress.owed_lsn:
                    progress.owed_lsn, progress.owed_ns = last_lsn, now_ns
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

    def _send_empty(self, progress: Progress, *, may_wait: bool = False) -> None:
        prev_lsn = progress.next_lsn - 1
        prev_epoch = self.log.epoch_at(prev_lsn)
        if prev_lsn < self.log.start_lsn - 1 or prev_epoch < 0:
            return  # the log has gone on without it; it is fed next, or copied
        self._effects.append(SendAppend(progress.member, self.epoch, prev_lsn, prev_epoch, prev_lsn, self.committed_lsn, may_wait))
        progress.told_lsn = self.committed_lsn

    def _on_log_sent(self, to: Member, last_lsn: int, now_ns: int) -> None:
        progress = self.progress.get(to)
        if progress is None or progress.pace is Pace.COPY:
            return
        progress.chunk_lsn = last_lsn
        progress.moved_ns = now_ns
        if progress.pace is Pace.PIPELINE and progress.next_lsn <= last_lsn:
            progress.next_lsn = last_lsn + 1

    def _tell_commit(self, now_ns: int) -> None:
        if self.role is not Role.PRIMARY:
            return
        for progress in self.progress.values():
            if progress.told_lsn < self.committed_lsn and progress.takes_appends:
                self._send_empty(progress, may_wait=True)

    # -- peers

    def _progress_on(self, host: str) -> list[Progress]:
        return [progress for member, progress in self.progress.items() if member.host == host]

    def _ask_to_fortify(self, host: str, now_ns: int) -> None:
        """The host supports under a new number: only a new append makes its replicas promise again."""
        for progress in self._progress_on(host):
            if progress.is_up and progress.pace is Pace.PIPELINE:
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
