"""The shell around one replica's core: it stores, sends and applies what the core wants, and tells the core what became of it.

What is special about being primary (activations, turns, callers) is the business of the `Office`, which hears when it opens, what is
committed, and when it closes. Sessions and state change only by committed records, in the same order on every replica (I9, I11): here, for
what others wrote; in the office, which has the decoded record at hand, for its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from actorgrid import ambient
from actorgrid.errors import CorruptLogError, ProtocolError
from actorgrid.ids import PartitionId
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Configuration, Member, encode_configuration
from actorgrid.replication.entry import (
    NO_CHANGES,
    NO_CLIENT,
    STATUS_CONFIGURATION,
    STATUS_INTERNAL,
    Entry,
    LogRecord,
    RecordHead,
    encode_record,
    read_head,
)
from actorgrid.replication.liveness import Liveness
from actorgrid.replication.messages import Append, AppendAck, Message
from actorgrid.replication.replica import Replica, Rng, Role
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.store import Batch, ReplicaPointer, Store

if TYPE_CHECKING:
    from actorgrid.host.commit import GroupCommit
    from actorgrid.host.peers import Peers

logger = logging.getLogger(__name__)

#: What a secondary that is behind is sent at a time; the next goes out when it is acknowledged.
CATCH_UP_BYTES: Final = 1 << 20
#: A host whose connection has stood for so long is past the quiet time that follows a restart (`Times.support_ns`, with a margin).
STEADY_S: Final = 2.0
#: More than this is not left waiting for its place in the state: memory, and what a new primary has to apply before it serves.
UNAPPLIED_ENTRIES_MAX: Final = 2048


class Office(Protocol):
    """What is done with a replica while it is primary."""

    def take_entries(self, epoch: int, first_lsn: int, now_ns: int) -> LogRecord:
        """The entries that were proposed, as one record."""

    @property
    def waiting_entries(self) -> int:
        """How many entries stand ready to be proposed."""

    def internal_record(self, epoch: int, lsn: int, entry: Entry) -> LogRecord:
        """A record with one entry that no turn made."""

    @property
    def first_in_flight_lsn(self) -> int:
        """The first position it has appended and not seen committed; 0 if none."""

    def on_commit(self, lsn: int) -> None:
        """Its entries up to `lsn` are committed."""

    def open(self, epoch: int) -> None:
        """Calls may be admitted: everything committed is in the state."""

    def close(self, why: str, successor: str) -> None:
        """Admit nothing more (I17)."""

    def swap_abandoned(self, why: str) -> None:
        """Go on admitting."""

    def on_applied(self) -> None:
        """The store has caught up with what is committed."""

    def rebuilt(self) -> None:
        """Everything here was replaced."""

    def forget(self, addresses: list[str]) -> None:
        """The state of these actors has changed under what was read of it."""


class ShellOwner(Protocol):
    """What a shell needs of its host."""

    def start_copy(self, shell: ReplicaShell, to: Member) -> None:
        """Send `to` a copy of the state."""

    def is_primary(self, partition: int, epoch: int, host: str) -> None:
        """`host` is primary of `partition`."""

    def office_closed(self, shell: ReplicaShell) -> None:
        """This replica is primary no more."""

    def retire(self, shell: ReplicaShell, why: str) -> None:
        """This replica's data cannot be trusted: it leaves duty for good, and is to be built anew (I6, I12)."""


class ReplicaShell:
    """One replica of one partition, in its host.

    :ivar core: the pure part
    :ivar durable: its part of the store; another object after a copy was installed
    :ivar lost: voters that have lost their data, with what can be built in their place
    """

    def __init__(
        self,
        pointer: ReplicaPointer,
        *,
        store: Store,
        settings: HostSettings,
        liveness: Liveness,
        rng: Rng,
        peers: Peers,
        commit: GroupCommit,
        owner: ShellOwner,
    ) -> None:
        self.partition = PartitionId(pointer.partition)
        self.pointer = pointer
        self.me = Member(liveness.me, pointer.incarnation)
        self.core = Replica(self.partition, self.me, liveness, rng)
        self.lost: dict[Member, Member] = {}
        self.wanted: list[Configuration] = []
        self.refused_why = ""
        self.is_over = False
        self._store = store
        self._settings = settings
        self._liveness = liveness
        self._peers = peers
        self._commit = commit
        self._owner = owner
        self._office: Office | None = None
        self._written_lsn = 0
        self._taken_lsn = 0
        self._write_no = 0
        self._written_no = 0
        self._syncing_no = 0
        self._urgent_no = 0  # somebody waits for the answer to this write
        self._answered_no = 0  # the last one that was durable when an answer left
        self._incoming: tuple[Append, list[RecordHead]] | None = None
        self._last_built: tuple[int, int, bytes] = (0, 0, b"")
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.SaveEpoch: self._save_epoch,
            ev.TruncateLog: self._truncate,
            ev.AppendRecords: self._append_records,
            ev.AppendProposed: self._append_proposed,
            ev.AppendFirst: self._append_first,
            ev.AppendConfiguration: self._append_configuration,
            ev.Send: self._send,
            ev.SendAppend: self._send_append,
            ev.SendFromLog: self._send_from_log,
            ev.StartCopy: self._start_copy,
            ev.Commit: self._on_commit,
            ev.Serve: self._serve,
            ev.Follow: self._follow,
            ev.StepDown: self._step_down,
            ev.SwapAbandoned: self._swap_abandoned,
            ev.ConfigurationRefused: self._configuration_refused,
            ev.ConfigurationCommitted: self._configuration_committed,
            ev.ReplicaLost: self._replica_lost,
        }
        self._open_store(pointer)

    # -- start

    def _open_store(self, pointer: ReplicaPointer) -> None:
        self.pointer = pointer
        self.sessions = SessionTable(self._settings.sessions_max, self._settings.session_bytes_max)
        self.durable = ReplicaStore(pointer, self._store, self.sessions, self._settings)

    def recover(self) -> None:
        """Read what the store has.

        :raises CorruptLogError: it cannot be trusted
        """
        found = self.durable.recover()
        self._taken_lsn = found.applied_lsn
        self.durable.collects_changes = True
        self._recovered = found

    def begin(self, office: Office) -> None:
        """Take part."""
        self._office = office
        found = self._recovered
        self.step(
            ev.Recovered(
                found.epoch, found.voted_for, found.log_start_lsn, found.last_lsn, found.applied_lsn, found.epochs, found.configurations
            )
        )
        for link in self._peers.links.values():
            if link.connection is not None:
                self.step(ev.PeerUp(link.name))

    def installed(self, pointer: ReplicaPointer) -> None:
        """A copy is in place, durable: go on from it.

        :raises CorruptLogError: it cannot be read back
        """
        self._open_store(pointer)
        found = self.durable.recover()
        self._taken_lsn = found.applied_lsn
        self.durable.collects_changes = True
        configuration_lsn, configuration = found.configurations[0]
        epoch = found.epochs[-1][1] if found.epochs else 0
        assert self._office is not None
        self._office.rebuilt()
        self.step(ev.CopyInstalled(found.last_lsn, epoch, configuration, configuration_lsn))

    # -- events

    def step(self, event: ev.Event) -> None:
        """Let the core take `event`, and do what it wants."""
        if self.is_over:
            return
        handlers = self._handlers
        for effect in self.core.step(event, ambient.monotonic_ns()):
            handlers[type(effect)](effect)

    def on_message(self, message: Message, host: str, incarnation: int) -> None:
        """A message for this replica arrived.

        :raises ProtocolError: its records are damaged
        """
        if type(message) is not Append:
            self.step(ev.MessageReceived(message, host, incarnation))
            return
        try:
            heads = [read_head(record) for record in message.records]
        except CorruptLogError as error:
            raise ProtocolError(f"append of {host} to partition {self.partition}: {error}") from None
        if not message.may_wait:
            self._urgent_no = self._write_no + 1  # its records get this number; without any it is answered after an earlier one
        self._incoming = (message, heads)
        self.step(ev.AppendReceived(message, heads, host, incarnation))
        self._incoming = None
        if not message.may_wait and self._written_no < self._write_no:
            self._commit.mark(self)  # the answer may wait for a write that nobody waited for until now

    def repair(self) -> None:
        """Mend the configuration where it is broken, as primary (design.md, section 9).

        A lost replica is replaced by what can be built on its host, and what is built and has caught up votes.
        """
        core = self.core
        if not core.serving:
            return
        configuration = core.configuration
        if not (self.lost or configuration.idle) or core.log.configuration_lsn > core.committed_lsn or core.is_swapping or self.wanted:
            return
        for member, successor in list(self.lost.items()):
            if member not in configuration.members:
                del self.lost[member]
            elif member in configuration.idle or len(configuration.voters) > 1:
                self.want(configuration.replaced(member, successor))
                return
        for member in configuration.idle:
            progress = core.progress.get(member)
            if progress is not None and core.is_caught_up(progress):
                self.want(configuration.promoted(member))
                return

    def may_lead(self, member: Member) -> bool:
        """Whether `member` could be primary at once: a host that has just restarted votes for nobody, itself included, for a while."""
        return self._peers.is_steady(member.host, STEADY_S)

    def want(self, configuration: Configuration) -> None:
        """Propose `configuration` with the next batch."""
        self.wanted.append(configuration)
        self._commit.mark(self)

    # -- writing (`commit.Writer`)

    def write(self, batch: Batch, now_ns: int) -> None:
        if self.is_over:
            return
        office = self._office
        if office is not None:
            count = office.waiting_entries
            if count and self.core.serving and not self.core.is_swapping:
                self.step(ev.EntriesProposed(count))
            if self.wanted:
                wanted, self.wanted = self.wanted, []
                for configuration in wanted:
                    self.step(ev.ConfigurationProposed(configuration))
        if self.core.committed_lsn - self.durable.applied_lsn >= UNAPPLIED_ENTRIES_MAX:
            self._apply(batch)

    def written(self) -> None:
        self._written_no = self._write_no

    def begin_sync(self) -> None:
        self._syncing_no = self._written_no

    def synced(self, now_ns: int) -> None:
        self.step(ev.Synced(self._syncing_no))

    def write_applied(self, batch: Batch) -> None:
        if not self.is_over and self.has_unapplied:
            self._apply(batch)

    def idle(self) -> None:
        if self.core.role is Role.PRIMARY:
            self.step(ev.CommitIdle())

    @property
    def has_unapplied(self) -> bool:
        return not self.is_over and self.core.committed_lsn > self.durable.applied_lsn

    def _apply(self, batch: Batch) -> None:
        """Put what is committed into the state; its log is in the store, or comes with the same batch."""
        if self.core.role is not Role.PRIMARY:
            self._take(self.core.committed_lsn)
        start_lsn = self.durable.log_start_lsn
        if self.durable.apply(batch, self.core.committed_lsn):
            if self.durable.log_start_lsn != start_lsn:
                self.step(ev.LogStartMoved(self.durable.log_start_lsn))
            changed = self.durable.take_changed_addresses()
            if changed and self._office is not None and self.core.role is not Role.PRIMARY:
                self._commit.after_write(lambda: self._office.forget(changed) if self._office is not None else None)
            self._commit.after_write(self._after_apply)

    def _after_apply(self) -> None:
        if self._office is not None:
            self._office.on_applied()

    def _take(self, lsn: int) -> None:
        """Bring sessions and pending state up to `lsn`, from records that others wrote or that were here before."""
        if lsn <= self._taken_lsn:
            return
        try:
            for record in self.durable.take_committed(lsn):
                self.sessions.apply(record)
                self.durable.committed(record)
                self._taken_lsn = record.last_lsn
        except CorruptLogError as error:
            self._owner.retire(self, str(error))

    def taken(self, record: LogRecord) -> None:
        """The office has applied its own `record` to the sessions."""
        self.durable.committed(record)
        self._taken_lsn = record.last_lsn

    def hears_quorum(self, now_ns: int) -> bool:
        """Whether the hosts of a write quorum, this one among them, were heard within one support time."""
        configuration, liveness = self.core.configuration, self._liveness
        since_ns = now_ns - liveness.times.support_ns
        heard = sum(member == self.me or liveness.heard_ns(member.host) > since_ns for member in configuration.voters)
        return heard >= configuration.write_quorum

    # -- effects: durable

    def _save_epoch(self, effect: ev.SaveEpoch) -> None:
        self.durable.save_epoch(self._commit.open_batch(self), effect.epoch, effect.voted_for)
        self._write_no = effect.write_no

    def _truncate(self, effect: ev.TruncateLog) -> None:
        self.durable.truncate_suffix(self._commit.open_batch(self), effect.from_lsn)

    def _append_records(self, effect: ev.AppendRecords) -> None:
        assert self._incoming is not None
        message, heads = self._incoming
        batch = self._commit.open_batch(self, may_wait=message.may_wait)
        append = self.durable.append
        for record, head in zip(message.records[effect.skip :], heads[effect.skip :], strict=True):
            append(batch, record, head)
        self._write_no = effect.write_no

    def _append_proposed(self, effect: ev.AppendProposed) -> None:
        assert self._office is not None
        self._append(effect.write_no, self._office.take_entries(effect.epoch, effect.first_lsn, ambient.monotonic_ns()))

    def _append_first(self, effect: ev.AppendFirst) -> None:
        assert self._office is not None
        entry = Entry(NO_CLIENT, 0, (), 0, "", STATUS_INTERNAL, b"", NO_CHANGES)
        self._append(effect.write_no, self._office.internal_record(effect.epoch, effect.lsn, entry))

    def _append_configuration(self, effect: ev.AppendConfiguration) -> None:
        assert self._office is not None
        logger.info("configuration proposed partition=%d configuration=%s", self.partition, effect.configuration)
        entry = Entry(NO_CLIENT, 0, (), 0, "", STATUS_CONFIGURATION, encode_configuration(effect.configuration), NO_CHANGES)
        self._append(effect.write_no, self._office.internal_record(effect.epoch, effect.lsn, entry))

    def _append(self, write_no: int, record: LogRecord) -> None:
        data = encode_record(record)
        head = RecordHead(record.epoch, record.first_lsn, record.last_lsn)
        self.durable.append(self._commit.open_batch(self), data, head, record.time_ms)
        self._last_built = (head.first_lsn, head.last_lsn, data)
        self._write_no = write_no

    # -- effects: sending

    def _send(self, effect: ev.Send) -> None:
        message = effect.message
        if type(message) is AppendAck:
            may_wait = self._urgent_no <= self._answered_no
            self._answered_no = self._syncing_no
            self._peers.send(effect.host, message, may_wait=may_wait)
        else:
            self._peers.send(effect.host, message)

    def _send_append(self, effect: ev.SendAppend) -> None:
        prev_lsn, last_lsn = effect.prev_lsn, effect.last_lsn
        records: list[bytes] = []
        if last_lsn > prev_lsn:
            first_lsn, built_lsn, data = self._last_built
            is_last_built = first_lsn == prev_lsn + 1 and built_lsn == last_lsn
            records = [data] if is_last_built else self._records(prev_lsn, last_lsn)
        message = self._append_to(effect, last_lsn, records)
        message.may_wait = effect.may_wait
        self._peers.send(effect.to.host, message, may_wait=effect.may_wait)

    def _append_to(self, effect: ev.SendAppend | ev.SendFromLog, last_lsn: int, records: list[bytes]) -> Append:
        log = self.core.log
        prev_lsn = effect.prev_lsn
        configurations = log.configurations_between(prev_lsn, last_lsn) if log.configuration_lsn > prev_lsn else []
        return Append(
            self.partition,
            effect.to.incarnation,
            self.me.incarnation,
            effect.epoch,
            prev_lsn,
            effect.prev_epoch,
            effect.committed_lsn,
            records,
            configurations,
        )

    def _records(self, prev_lsn: int, last_lsn: int) -> list[bytes]:
        records: list[bytes] = []
        while prev_lsn < last_lsn:
            for item in self.durable.read_log(prev_lsn + 1, CATCH_UP_BYTES):
                if item.head.last_lsn > last_lsn:
                    return records
                records.append(item.data)
                prev_lsn = item.head.last_lsn
        return records

    def _send_from_log(self, effect: ev.SendFromLog) -> None:
        try:
            items = self.durable.read_log(effect.prev_lsn + 1, CATCH_UP_BYTES)
        except CorruptLogError as error:
            self._owner.retire(self, str(error))
            return
        last_lsn = items[-1].head.last_lsn
        self._peers.send(effect.to.host, self._append_to(effect, last_lsn, [item.data for item in items]))
        self.step(ev.LogSent(effect.to, last_lsn))

    def _start_copy(self, effect: ev.StartCopy) -> None:
        self._owner.start_copy(self, effect.to)

    # -- effects: office

    def _on_commit(self, effect: ev.Commit) -> None:
        self._commit.has_unapplied(self)
        if self.core.role is not Role.PRIMARY:
            return
        office = self._office
        assert office is not None
        first_lsn = office.first_in_flight_lsn
        before_lsn = min(effect.lsn, first_lsn - 1) if first_lsn else effect.lsn
        if before_lsn > self._taken_lsn:
            # What an earlier primary left in the log is committed by this one's first entry.
            self._take(before_lsn)
        office.on_commit(effect.lsn)

    def _serve(self, effect: ev.Serve) -> None:
        assert self._office is not None
        logger.info("primary partition=%d epoch=%d last_lsn=%d", self.partition, effect.epoch, self.core.last_lsn)
        self.durable.collects_changes = False
        self._commit.apply_now(self)
        self._office.open(effect.epoch)
        self._owner.is_primary(self.partition, effect.epoch, self.me.host)
        self._peers.announce(self.partition, effect.epoch)

    def _follow(self, effect: ev.Follow) -> None:
        # Nobody is told where to call before the primary serves: it announces that itself.
        logger.debug("follows partition=%d epoch=%d primary=%s", self.partition, effect.epoch, effect.host)

    def _step_down(self, effect: ev.StepDown) -> None:
        assert self._office is not None
        logger.info("stepped down partition=%d epoch=%d why=%s", self.partition, self.core.epoch, effect.why)
        self.lost.clear()
        self.wanted.clear()
        self._peers.announce(self.partition, 0)
        self._office.close(effect.why, effect.successor)
        self._owner.office_closed(self)
        self.durable.collects_changes = True

    def _swap_abandoned(self, effect: ev.SwapAbandoned) -> None:
        assert self._office is not None
        self._office.swap_abandoned(effect.why)

    def _configuration_refused(self, effect: ev.ConfigurationRefused) -> None:
        self.refused_why = effect.why

    def _configuration_committed(self, effect: ev.ConfigurationCommitted) -> None:
        logger.info("configuration partition=%d configuration=%s", self.partition, effect.configuration)

    def _replica_lost(self, effect: ev.ReplicaLost) -> None:
        if effect.member not in self.lost:
            logger.warning("replica lost partition=%d member=%s successor=%s", self.partition, effect.member, effect.successor)
        self.lost[effect.member] = effect.successor

    # -- end

    def leave(self, why: str) -> None:
        """This replica's duty ends."""
        if not self.is_over:
            self.step(ev.StorageFailed(why))
            self.is_over = True

    def read_uncommitted(self) -> list[LogRecord]:
        """Everything in the log that the state does not have, committed or not.

        :raises CorruptLogError: it cannot be trusted
        """
        return list(self.durable.take_committed(self.durable.last_lsn))

    def begin_anew(
        self, batch: Batch, records: list[LogRecord], pointer: ReplicaPointer, configuration: Configuration, lsn: int, epoch: int
    ) -> None:
        """Let `batch` make what is here, with `records`, the beginning of another replica; this one has left its duty."""
        durable = self.durable
        for record in records:
            self.sessions.apply(record)
            durable.committed(record)
        durable.apply(batch, durable.last_lsn)
        durable.begin_anew(batch, pointer, configuration, lsn, epoch)
