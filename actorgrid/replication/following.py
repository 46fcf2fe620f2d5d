"""What a replica does as secondary: it takes what its primary appends (Ongaro 2014, §3.5; Appended of ``spec/Leases.tla``).

Here are I3 (nothing committed is truncated) and I7 (appends of old epochs).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from actorgrid.replication.configuration import Member
from actorgrid.replication.elections import Elections
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.events import AppendReceived, AppendRecords, Commit, Follow, Send, TruncateLog
from actorgrid.replication.messages import Append, AppendRejected
from actorgrid.replication.standing import FOREVER_NS, Campaign, Role


class Following(Elections):
    """The log as the primary wants it."""

    def _on_append(self, event: AppendReceived, now_ns: int) -> None:
        message = event.message
        if not self._is_for_me(message.to):
            self.rejected_total += 1
            return
        if self._is_of_old_epoch(message.epoch):
            self._refuse_append(event, now_ns)
            return
        sender = self.primary
        if sender is None or sender.incarnation != message.sender or sender.host != event.host:
            sender = Member(event.host, message.sender)
        if self.role is Role.PRIMARY and message.epoch <= self.epoch:
            raise self._violation("I1", f"{sender} is primary of epoch {message.epoch} as well")
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
        if self.primary not in (None, sender):
            raise self._violation("I1", f"{sender} and {self.primary} are primaries of epoch {self.epoch}")
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
                if head.first_lsn != log.last_lsn + 1:
                    raise self._violation("I3", f"record {head} follows position {log.last_lsn}")
                if not log.last_epoch <= head.epoch <= event.message.epoch:
                    raise self._violation("I3", f"record {head} follows epoch {log.last_epoch}")
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
                if head.last_lsn > log.last_lsn or log.epoch_at(head.last_lsn) != head.epoch:
                    break
                end = head.last_lsn
            skip += 1
        return skip, end

    def _truncate_from(self, lsn: int) -> None:
        if lsn <= self._truncation_bound():
            raise self._violation("I3", f"truncate from {lsn}, committed are {self.committed_lsn}")
        self.log.truncate_from(lsn)
        self.synced_lsn = min(self.synced_lsn, lsn - 1)
        self._unsynced = deque([(write_no, min(last_lsn, lsn - 1)) for write_no, last_lsn in self._unsynced])
        self._effects.append(TruncateLog(lsn))
        self._take_role()

    def _truncation_bound(self) -> int:
        return self.committed_lsn
