"""What must hold in every run of the simulated cluster, checked at every effect of every step (design.md, section 13).

The judge sees all hosts and their disks at once, which no host can. Nothing here uses what the core believes where it can look at what is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from core_disks import ReplicaDisk, next_digest

from actorgrid.errors import InvariantViolation
from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.replica import PROMOTE_LAG_ENTRIES, Replica, Role

if TYPE_CHECKING:
    from core_cluster import Cluster, Host


class Before(NamedTuple):
    """What a replica was before a step."""

    role: Role
    epoch: int
    committed_lsn: int
    configuration: Configuration
    configuration_lsn: int


class PartitionRecord:
    """What has become true of one partition and stays so.

    :ivar committed: (epoch, value) of each committed entry, from position 1 on; `digests` of the state after each, from position 0 on
    :ivar votes: who got the vote of whom in which epoch, durably
    :ivar lost: the disks that are gone, as they were
    """

    def __init__(self) -> None:
        self.primaries: dict[int, Member] = {}
        self.elected_in: dict[int, int] = {}  # the life of its host, by epoch
        self.ended: set[int] = set()  # epochs whose primary has stepped down
        self.committed: list[tuple[int, int]] = []
        self.committed_in: list[int] = []  # the epoch of the primary that committed each
        self.digests: list[int] = [0]
        self.votes: dict[tuple[int, Member], Member] = {}
        self.said: dict[Member, int] = {}
        self.lost: dict[Member, ReplicaDisk] = {}
        self.configurations: dict[int, Configuration] = {}
        self.reads_at = Counter[int]()


class Judge:
    """Raises `InvariantViolation` when a run breaks a rule; counts what happened in it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.partitions = {partition: PartitionRecord() for partition in cluster.partitions}
        self.counts: Counter[str] = Counter()
        self._is_in_office = False  # the replica whose effects are being done

    def violated(self, invariant: str, what: str) -> InvariantViolation:
        return InvariantViolation(invariant, what, self._cluster.tail())

    def require(self, condition: bool, invariant: str, what: str) -> None:
        if not condition:
            raise self.violated(invariant, what)

    # -- around a step

    def before(self, replica: Replica) -> Before:
        return Before(replica.role, replica.epoch, replica.committed_lsn, replica.configuration, replica.log.configuration_lsn)

    def sees_step(self, host: Host, replica: Replica, before: Before, effects: list[ev.Effect]) -> None:
        """The replica has moved; its effects were not done yet."""
        self._is_in_office = before.role is Role.PRIMARY
        self.require(replica.epoch >= before.epoch, "I1", f"{replica.me} went from epoch {before.epoch} back to {replica.epoch}")
        if before.role is Role.PRIMARY and (replica.role is not Role.PRIMARY or replica.epoch != before.epoch):
            self._sees_step_down(replica, before, effects)
        if replica.role is Role.PRIMARY:
            self._sees_primary(host, replica)

    def _sees_step_down(self, replica: Replica, before: Before, effects: list[ev.Effect]) -> None:
        """I17: who was primary says so before it does anything of a later epoch."""
        self.counts["step downs"] += 1
        self._record(replica).ended.add(before.epoch)
        for effect in effects:
            if isinstance(effect, ev.StepDown):
                return
            self.require(_epoch_of(effect) <= before.epoch, "I17", f"{replica.me}, primary of epoch {before.epoch}, does {effect} first")
        raise self.violated("I17", f"{replica.me} is primary of epoch {before.epoch} no more and has not said so")

    def sees_effect(self, host: Host, replica: Replica, before: Before, effect: ev.Effect) -> None:
        """`effect` is about to be done; those before it are."""
        match effect:
            case ev.Send(to, message):
                self._sees_message(host, replica, to, message)
            case ev.SendAppend(epoch=epoch) | ev.SendFromLog(epoch=epoch):
                self._is_durable(host, replica, epoch, effect)
                self.require(self._record(replica).primaries.get(epoch) == replica.me, "I1", f"{replica.me} appends in epoch {epoch}")
            case ev.StepDown():
                self._is_in_office = False  # what this step still does is done in another epoch, if it has gone to one
            case ev.Commit(lsn):
                self._sees_commit(host, replica, before, lsn)
            case ev.TruncateLog(from_lsn):
                self._sees_truncation(host, replica, from_lsn)
            case ev.AppendConfiguration():
                self._sees_configuration(replica, before, effect)
            case ev.Serve(epoch):
                committed = self._record(replica).committed
                has_one = any(each == epoch for each, _ in reversed(committed))  # a later primary may have committed more
                self.require(has_one, "I4", f"{replica.me} serves epoch {epoch} without an entry of it")
            case _:
                pass

    def sees_end_of_step(self, replica: Replica) -> None:
        """Everything the step wanted is done."""
        self.sees_leases(replica.partition)

    # -- I1

    def _record(self, replica: Replica) -> PartitionRecord:
        return self.partitions[replica.partition]

    def _is_durable(self, host: Host, replica: Replica, epoch: int, what: object) -> None:
        """I1: what is said in an epoch is said after the epoch is durable."""
        durable = host.disk.durable[replica.partition, replica.me.incarnation]
        self.require(durable.epoch >= epoch, "I1", f"{replica.me} says {what}, durable is epoch {durable.epoch}")
        said = self._record(replica).said
        said[replica.me] = max(said.get(replica.me, 0), epoch)

    def _sees_message(self, host: Host, replica: Replica, to: str, message: msg.Message) -> None:
        durable = host.disk.durable[replica.partition, replica.me.incarnation]
        match message:
            case msg.AppendAck(epoch=epoch, lsn=lsn):
                self._is_durable(host, replica, epoch, message)
                here = host.disk.view[replica.partition, replica.me.incarnation]
                is_there = lsn <= here.state.lsn or (lsn <= here.last_lsn and durable.has(lsn, here.epoch_at(lsn)))
                self.require(is_there and lsn <= durable.last_lsn, "I2", f"{replica.me} acknowledges {lsn}, durable is {durable.last_lsn}")
            case msg.AppendRejected(epoch=epoch):
                self._is_durable(host, replica, epoch, message)
            case msg.Vote(epoch=epoch, pre=pre, granted=granted):
                if not granted:
                    self._is_durable(host, replica, epoch, message)
                elif not pre:
                    self._is_durable(host, replica, epoch, message)
                    candidate = Member(to, message.to)
                    self.require(
                        (durable.epoch, durable.voted_for) == (epoch, str(candidate)),
                        "I1",
                        f"the vote {message} of {replica.me} is not durable",
                    )
                    first = self._record(replica).votes.setdefault((epoch, replica.me), candidate)
                    self.require(first == candidate, "I1", f"{replica.me} votes for {candidate} in epoch {epoch}, and did for {first}")
            case msg.VoteRequest(epoch=epoch, pre=False):
                self._is_durable(host, replica, epoch, message)
                self.require(durable.voted_for == str(replica.me), "I1", f"{replica.me} campaigns in epoch {epoch} without its own vote")
                first = self._record(replica).votes.setdefault((epoch, replica.me), replica.me)
                self.require(first == replica.me, "I1", f"{replica.me} campaigns in epoch {epoch}, and voted for {first}")
            case msg.CampaignNow(release=release):
                self._is_durable(host, replica, release.epoch, message)
            case _:
                pass

    def _sees_primary(self, host: Host, replica: Replica) -> None:
        """I1: one primary per epoch, elected by a quorum of voters; it has everything that is committed (Leader Completeness)."""
        record = self._record(replica)
        known = record.primaries.get(replica.epoch)
        if known is not None:
            self.require(known == replica.me, "I1", f"{replica.me} and {known} are primaries of epoch {replica.epoch}")
            is_same = record.elected_in[replica.epoch] == host.incarnation and replica.epoch not in record.ended
            self.require(is_same, "I1", f"{replica.me} is primary of epoch {replica.epoch} a second time")
            return
        record.primaries[replica.epoch] = replica.me
        record.elected_in[replica.epoch] = host.incarnation
        self.counts["elections"] += 1
        durable = host.disk.durable[replica.partition, replica.me.incarnation]
        self.require(
            (durable.epoch, durable.voted_for) == (replica.epoch, str(replica.me)), "I1", f"{replica.me} was elected unknown to its disk"
        )
        record.votes.setdefault((replica.epoch, replica.me), replica.me)
        configuration = replica.configuration
        votes = [member for member in configuration.voters if record.votes.get((replica.epoch, member)) == replica.me]
        self.require(
            len(votes) >= configuration.write_quorum,
            "I5",
            f"{replica.me} is primary of epoch {replica.epoch} by {votes} of {configuration}",
        )
        view = host.disk.view[replica.partition, replica.me.incarnation]
        for lsn in range(view.state.lsn + 1, len(record.committed) + 1):
            if record.committed_in[lsn - 1] > replica.epoch:
                break  # it was elected long ago, and hears of it only now
            has_it = lsn <= view.last_lsn and view.entry_at(lsn) == record.committed[lsn - 1]
            self.require(has_it, "I3", f"{replica.me} is primary of epoch {replica.epoch} without the committed entry {lsn}")

    # -- I2, I3, I4

    def _sees_commit(self, host: Host, replica: Replica, before: Before, lsn: int) -> None:
        record = self._record(replica)
        view = host.disk.view[replica.partition, replica.me.incarnation]
        self.require(before.committed_lsn < lsn <= view.last_lsn, "I3", f"{replica.me} commits {lsn}, it has {view.last_lsn}")
        is_primary, epoch = self._is_in_office, before.epoch  # who leaves office and follows another in one step is told of commits
        if is_primary:
            self._has_quorum(replica, epoch, view, lsn)
        for each in range(before.committed_lsn + 1, lsn + 1):
            entry = view.entry_at(each)
            if each <= len(record.committed):
                known = record.committed[each - 1]
                self.require(known == entry, "I3", f"{replica.me} commits {entry} at {each}, where {known} is committed")
            else:
                self.require(is_primary, "I2", f"{replica.me} commits {each}, which no primary has committed")
                record.committed.append(entry)
                record.committed_in.append(epoch)
                record.digests.append(next_digest(record.digests[-1], *entry))
                found = view.record_at(each)
                if found.configuration is not None:
                    record.configurations[each] = found.configuration
        self.counts["commits"] += 1

    def _has_quorum(self, replica: Replica, office: int, view: ReplicaDisk, lsn: int) -> None:
        epoch = view.epoch_at(lsn)
        self.require(epoch == office, "I4", f"{replica.me} in epoch {office} commits {lsn}, an entry of epoch {epoch}")
        configuration = replica.configuration
        having = [member for member in configuration.voters if self._has_durably(replica.partition, member, lsn, epoch)]
        self.require(
            len(having) >= configuration.write_quorum, "I2", f"{replica.me} commits {lsn}, durable on {having} of {configuration.voters}"
        )

    def disk_of(self, partition: int, member: Member) -> ReplicaDisk | None:
        """What is durable of a replica; of one whose disk was lost what was, since it will not vote again."""
        host = self._cluster.hosts[member.host]
        return host.disk.durable.get((partition, member.incarnation)) or self.partitions[partition].lost.get(member)

    def _has_durably(self, partition: int, member: Member, lsn: int, epoch: int) -> bool:
        disk = self.disk_of(partition, member)
        return disk is not None and disk.has(lsn, epoch)

    def _sees_truncation(self, host: Host, replica: Replica, from_lsn: int) -> None:
        record = self._record(replica)
        view = host.disk.view[replica.partition, replica.me.incarnation]
        self.counts["truncations"] += 1
        self.require(from_lsn > view.state.lsn, "I3", f"{replica.me} truncates from {from_lsn}, it has applied {view.state.lsn}")
        for lsn in range(from_lsn, min(view.last_lsn, len(record.committed)) + 1):
            # By a primary of long ago, who is behind may lose what was committed later without it: it has not acknowledged that.
            is_committed = view.entry_at(lsn) == record.committed[lsn - 1] and record.committed_in[lsn - 1] <= replica.epoch
            self.require(not is_committed, "I3", f"{replica.me} truncates the committed entry {lsn}")

    def sees_recovery(self, host: Host, partition: int, incarnation: int) -> None:
        """A disk was read: it has what was said, and a state that is the committed one."""
        record = self.partitions[partition]
        disk = host.disk.durable[partition, incarnation]
        member = Member(host.name, incarnation)
        said = record.said.get(member, 0)
        self.require(disk.epoch >= said, "I1", f"{member} comes back with epoch {disk.epoch}, and spoke in epoch {said}")
        self.sees_state(partition, member, disk)

    def sees_state(self, partition: int, member: Member, disk: ReplicaDisk) -> None:
        """I3: the state is what the committed entries make of it."""
        record = self.partitions[partition]
        lsn = disk.state.lsn
        self.require(lsn < len(record.digests), "I3", f"{member} has applied {lsn}, committed are {len(record.committed)}")
        self.require(disk.state.digest == record.digests[lsn], "I3", f"the state of {member} at {lsn} is not the committed one")

    # -- I5

    def _sees_configuration(self, replica: Replica, before: Before, effect: ev.AppendConfiguration) -> None:
        old, new = before.configuration, effect.configuration
        self.counts["configurations"] += 1
        changed = set(old.voters) ^ set(new.voters)
        self.require(len(changed) <= 1 and new.version == old.version + 1, "I5", f"{new} follows {old}")
        self.require(before.configuration_lsn <= before.committed_lsn, "I5", f"{new} is proposed, and {old} is not committed")
        committed = self._record(replica).committed
        own = any(epoch == replica.epoch for epoch, _ in committed)
        self.require(own, "I5", f"{replica.me} proposes {new} before an entry of its epoch {replica.epoch} is committed")
        for member in changed & set(new.voters):
            disk = self.disk_of(replica.partition, member)
            lag = replica.last_lsn - disk.last_lsn if disk is not None else replica.last_lsn
            self.require(disk is not None and lag <= PROMOTE_LAG_ENTRIES, "I13", f"{member} is to vote, and is {lag} entries behind")

    # -- I8

    def sees_leases(self, partition: int) -> None:
        """LeaseExcludesSuccessor: while a replica has a lease nobody is primary of a later epoch. Clocks run in frozen hosts, too."""
        primaries = [
            (replica, host)
            for host in self._cluster.hosts.values()
            if (replica := host.replicas.get(partition)) is not None and replica.role is Role.PRIMARY
        ]
        if len(primaries) < 2:
            return
        for replica, host in primaries:
            for other, _ in primaries:
                if other.epoch > replica.epoch:
                    has_lease = replica.has_lease(host.local_ns)
                    self.require(
                        not has_lease, "I8", f"{replica.me} has a lease of epoch {replica.epoch}, {other.me} is primary of {other.epoch}"
                    )
                    self.counts["old primaries without a lease"] += 1


def _epoch_of(effect: ev.Effect) -> int:
    message = effect.message if isinstance(effect, ev.Send) else effect
    return getattr(message, "epoch", 0)
