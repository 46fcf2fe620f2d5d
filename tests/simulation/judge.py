"""What must hold after every step of every replica in a simulated grid (design.md, section 13).

The judge stands beside the real shells: it sees each event and effect of each core before the shell does it, and looks at the disks
themselves, which no host can. What it knows it takes from disks and messages where it can, not from what a core believes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from actorgrid import ambient
from actorgrid.errors import InvariantViolation
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.membership import PROMOTE_LAG_ENTRIES
from actorgrid.replication.replica import Role
from actorgrid.storage import keys
from actorgrid.storage.store import ACTIVE, ReplicaPointer
from actorgrid.testing.simulation import SimCluster

_decode_pointer = msgspec.msgpack.Decoder(ReplicaPointer).decode
_decode_epoch = msgspec.msgpack.Decoder(tuple[int, str]).decode

NO_CONFIGURATION = Configuration(0, ())


class Before(NamedTuple):
    """What a replica was before a step."""

    role: Role
    epoch: int
    committed_lsn: int
    configuration: Configuration
    configuration_lsn: int


class PartitionRecord:
    """What has become true of one partition and stays so."""

    def __init__(self) -> None:
        self.primaries: dict[int, Member] = {}
        self.elected_in: dict[int, str] = {}  # the process, by epoch
        self.ended: dict[int, None] = {}
        self.votes: dict[tuple[int, Member], Member] = {}
        #: By its last position: first position, epoch, digest of the bytes, and the epoch of the primary that committed it.
        self.committed: dict[int, tuple[int, int, int, int]] = {}
        self.committed_lsn = 0
        self.epochs_with_commits: dict[int, None] = {}
        self.said: dict[Member, int] = {}


class Disk:
    """What is durable of one replica, as it lies on the disk."""

    def __init__(self, get: Any, partition: int) -> None:
        self._get = get
        stored = get(False, keys.pointer_key(partition))
        self.pointer = _decode_pointer(stored) if stored is not None else None
        self.prefix = keys.replica_prefix(partition, self.pointer.generation) if self.pointer is not None else b""

    def is_of(self, member: Member) -> bool:
        pointer = self.pointer
        return pointer is not None and pointer.incarnation == member.incarnation and pointer.state == ACTIVE

    @property
    def promise(self) -> tuple[int, str]:
        stored = self._get(False, self.prefix + keys.META_EPOCH)
        return _decode_epoch(stored) if stored is not None else (0, "")

    @property
    def applied_lsn(self) -> int:
        stored = self._get(False, self.prefix + keys.META_APPLIED)
        return int.from_bytes(stored[:8], "big") if stored is not None else 0

    def has(self, last_lsn: int, digest: int) -> bool:
        stored = self._get(True, self.prefix + keys.lsn_key(last_lsn))
        if stored is not None:
            return xxh3_64_intdigest(stored) == digest
        return self.applied_lsn >= last_lsn


class Judge:
    """Raises nothing in the grid, which would take it for a bug of its own: `problems` of the world has what was broken."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.partitions: dict[int, PartitionRecord] = {}
        self.lost_disks: dict[str, list[Any]] = {}
        self._is_in_office = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See every step of every shell until the end of the block."""
        judge, real = self, ReplicaShell.step

        def step(shell: ReplicaShell, event: ev.Event) -> None:
            if shell.is_over:
                return
            core = shell.core
            if isinstance(event, ev.Recovered):
                before = Before(core.role, core.epoch, core.committed_lsn, NO_CONFIGURATION, 0)
            else:
                before = Before(core.role, core.epoch, core.committed_lsn, core.configuration, core.log.configuration_lsn)
            effects = core.step(event, ambient.monotonic_ns())
            judge.guarded(lambda: judge.sees_step(shell, event, before, effects))
            handlers = shell._handlers
            for effect in effects:
                judge.guarded(lambda effect=effect: judge.sees_effect(shell, before, effect))
                handlers[type(effect)](effect)
            judge.guarded(lambda: judge.sees_leases(shell.partition))

        ReplicaShell.step = step  # type: ignore[method-assign]
        try:
            yield
        finally:
            ReplicaShell.step = real  # type: ignore[method-assign]

    def guarded(self, looking: Any) -> None:
        try:
            looking()
        except InvariantViolation as violation:
            self.world.problems.append(f"{violation.invariant}: {violation}")

    def require(self, condition: bool, invariant: str, what: str) -> None:
        if not condition:
            raise InvariantViolation(invariant, what)

    def record(self, partition: int) -> PartitionRecord:
        return self.partitions.setdefault(partition, PartitionRecord())

    def disk_of(self, shell: ReplicaShell) -> Disk:
        return Disk(self.cluster.hosts[shell.me.host].disk.durable_get, shell.partition)

    def disk_is_damaged(self, name: str) -> None:
        """What `name` has promised so far counts as promised, whatever becomes of its disk."""
        image = self.cluster.hosts[name].disk.image()
        self.lost_disks.setdefault(name, []).append(image)

    # -- a step

    def sees_step(self, shell: ReplicaShell, event: ev.Event, before: Before, effects: list[ev.Effect]) -> None:
        core, record = shell.core, self.record(shell.partition)
        self._is_in_office = before.role is Role.PRIMARY
        if isinstance(event, ev.Recovered) and shell.me.host not in self.lost_disks:
            said = record.said.get(shell.me, 0)
            self.require(core.epoch >= said, "I1", f"{shell.me} comes back with epoch {core.epoch}, and spoke in epoch {said}")
        self.require(core.epoch >= before.epoch, "I1", f"{shell.me} went from epoch {before.epoch} back to {core.epoch}")
        if before.role is Role.PRIMARY and (core.role is not Role.PRIMARY or core.epoch != before.epoch):
            record.ended[before.epoch] = None
            for effect in effects:
                if isinstance(effect, ev.StepDown):
                    break
                epoch = getattr(effect.message if isinstance(effect, ev.Send) else effect, "epoch", 0)
                self.require(epoch <= before.epoch, "I17", f"{shell.me}, primary of epoch {before.epoch}, does {effect} first")
            else:
                self.require(False, "I17", f"{shell.me} is primary of epoch {before.epoch} no more and has not said so")
        if core.role is Role.PRIMARY:
            self._sees_primary(shell, record)

    def _sees_primary(self, shell: ReplicaShell, record: PartitionRecord) -> None:
        core = shell.core
        process = self.cluster.hosts[shell.me.host].process
        life = process.name if process is not None else "?"
        known = record.primaries.get(core.epoch)
        if known is not None:
            self.require(
                known == shell.me, "I1", f"{shell.me} and {known} are primaries of epoch {core.epoch} of partition {shell.partition}"
            )
            is_same = record.elected_in[core.epoch] == life and core.epoch not in record.ended
            self.require(is_same, "I1", f"{shell.me} is primary of epoch {core.epoch} a second time")
            return
        record.primaries[core.epoch] = shell.me
        record.elected_in[core.epoch] = life
        self.world.counts["elections"] += 1
        promise = self.disk_of(shell).promise
        self.require(promise == (core.epoch, str(shell.me)), "I1", f"{shell.me} was elected in {core.epoch}, its disk says {promise}")
        record.votes.setdefault((core.epoch, shell.me), shell.me)
        votes = [member for member in core.configuration.voters if record.votes.get((core.epoch, member)) == shell.me]
        self.require(
            len(votes) >= core.configuration.write_quorum,
            "I5",
            f"{shell.me} is primary of epoch {core.epoch} of partition {shell.partition} by {votes} of {core.configuration}",
        )
        self.require(
            core.last_lsn >= record.committed_lsn or record.committed[record.committed_lsn][3] > core.epoch,
            "I3",
            f"{shell.me} is primary of epoch {core.epoch} with log up to {core.last_lsn}, committed is {record.committed_lsn}",
        )

    # -- an effect

    def sees_effect(self, shell: ReplicaShell, before: Before, effect: ev.Effect) -> None:
        match effect:
            case ev.Send(to, message):
                self._sees_message(shell, to, message)
            case ev.SendAppend(epoch=epoch) | ev.SendFromLog(epoch=epoch):
                self._is_durable(shell, epoch, effect)
                is_primary = self.record(shell.partition).primaries.get(epoch) == shell.me
                self.require(is_primary, "I1", f"{shell.me} appends in epoch {epoch}")
            case ev.StepDown():
                self._is_in_office = False
            case ev.Commit(lsn):
                self._sees_commit(shell, before, lsn)
            case ev.TruncateLog(from_lsn):
                self._sees_truncation(shell, before, from_lsn)
            case ev.AppendConfiguration():
                self._sees_configuration(shell, before, effect)
            case ev.Serve(epoch):
                has_one = epoch in self.record(shell.partition).epochs_with_commits
                self.require(has_one, "I4", f"{shell.me} serves epoch {epoch} without a committed entry of it")
            case _:
                pass

    def _is_durable(self, shell: ReplicaShell, epoch: int, what: object) -> None:
        durable = self.disk_of(shell).promise[0]
        self.require(durable >= epoch, "I1", f"{shell.me} says {what!r:.200}, durable is epoch {durable}")
        said = self.record(shell.partition).said
        said[shell.me] = max(said.get(shell.me, 0), epoch)

    def _sees_message(self, shell: ReplicaShell, to: str, message: msg.Message) -> None:
        match message:
            case msg.AppendAck(epoch=epoch, lsn=lsn):
                self._is_durable(shell, epoch, message)
                if lsn > shell.durable.log_start_lsn - 1:
                    item = next(shell.durable.log.items(lsn), None)
                    assert item is not None
                    has_it = self.disk_of(shell).has(item.head.last_lsn, xxh3_64_intdigest(item.data))
                    self.require(has_it, "I2", f"{shell.me} acknowledges {lsn}, which is not durable")
            case msg.AppendRejected(epoch=epoch):
                self._is_durable(shell, epoch, message)
            case msg.Vote(epoch=epoch, pre=pre, granted=granted):
                if not granted:
                    self._is_durable(shell, epoch, message)
                elif not pre:
                    self._is_durable(shell, epoch, message)
                    candidate = Member(to, message.to)
                    promise = self.disk_of(shell).promise
                    self.require(promise == (epoch, str(candidate)), "I1", f"the vote {message} of {shell.me} is not durable: {promise}")
                    self._votes(shell, epoch, candidate)
            case msg.VoteRequest(epoch=epoch, pre=False):
                self._is_durable(shell, epoch, message)
                promise = self.disk_of(shell).promise
                self.require(promise[1] == str(shell.me), "I1", f"{shell.me} campaigns in epoch {epoch} without its own vote: {promise}")
                self._votes(shell, epoch, shell.me)
            case msg.CampaignNow(release=release):
                self._is_durable(shell, release.epoch, message)
            case _:
                pass

    def _votes(self, shell: ReplicaShell, epoch: int, candidate: Member) -> None:
        first = self.record(shell.partition).votes.setdefault((epoch, shell.me), candidate)
        self.require(first == candidate, "I1", f"{shell.me} votes for {candidate} in epoch {epoch}, and did for {first}")

    # -- what is committed

    def _sees_commit(self, shell: ReplicaShell, before: Before, lsn: int) -> None:
        record, core = self.record(shell.partition), shell.core
        is_primary = before.role is Role.PRIMARY
        epoch = before.epoch if self._is_in_office else core.epoch
        self.require(before.committed_lsn < lsn <= core.last_lsn, "I3", f"{shell.me} commits {lsn}, it has {core.last_lsn}")
        for item in shell.durable.log.items(before.committed_lsn + 1):
            head = item.head
            if head.last_lsn > lsn:
                break
            digest = xxh3_64_intdigest(item.data)
            known = record.committed.get(head.last_lsn)
            if known is not None:
                same = known[:3] == (head.first_lsn, head.epoch, digest)
                self.require(same, "I3", f"{shell.me} commits {head} of partition {shell.partition}, where {known} is committed")
                continue
            self.require(head.last_lsn > record.committed_lsn, "I3", f"{shell.me} commits {head}, which lies inside of what is committed")
            self.require(is_primary, "I2", f"{shell.me} commits {head} of partition {shell.partition}, which no primary has committed")
            record.committed[head.last_lsn] = (head.first_lsn, head.epoch, digest, epoch)
            record.committed_lsn = head.last_lsn
            record.epochs_with_commits[head.epoch] = None
            if head.last_lsn == lsn:
                self._has_quorum(shell, epoch, head.epoch, lsn, digest)
        self.world.counts["commits"] += 1

    def _has_quorum(self, shell: ReplicaShell, office: int, epoch: int, lsn: int, digest: int) -> None:
        self.require(epoch == office, "I4", f"{shell.me} in epoch {office} commits {lsn}, an entry of epoch {epoch}")
        configuration = shell.core.configuration
        having = [member for member in configuration.voters if self._has_durably(shell.partition, member, lsn, digest)]
        enough = len(having) >= configuration.write_quorum
        self.require(
            enough, "I2", f"{shell.me} commits {lsn} of partition {shell.partition}, durable on {having} of {configuration.voters}"
        )

    def _has_durably(self, partition: int, member: Member, lsn: int, digest: int) -> bool:
        host = self.cluster.hosts.get(member.host)
        if host is None:
            return False
        gets = [host.disk.durable_get, *(image.get for image in self.lost_disks.get(member.host, ()))]
        return any((disk := Disk(get, partition)).is_of(member) and disk.has(lsn, digest) for get in gets)

    def _sees_truncation(self, shell: ReplicaShell, before: Before, from_lsn: int) -> None:
        record = self.record(shell.partition)
        self.world.counts["truncations"] += 1
        self.require(from_lsn > shell.durable.applied_lsn, "I3", f"{shell.me} truncates from {from_lsn}, it has applied more")
        for item in shell.durable.log.items(from_lsn):
            known = record.committed.get(item.head.last_lsn)
            # By a primary of long ago, who is behind may lose what was committed later without it: it has not acknowledged that.
            is_committed = known is not None and known[2] == xxh3_64_intdigest(item.data) and known[3] <= shell.core.epoch
            self.require(not is_committed, "I3", f"{shell.me} truncates the committed {item.head}")

    # -- configurations, leases

    def _sees_configuration(self, shell: ReplicaShell, before: Before, effect: ev.AppendConfiguration) -> None:
        old, new, core = before.configuration, effect.configuration, shell.core
        self.world.counts["configurations"] += 1
        changed = [member for member in (*old.voters, *new.voters) if (member in old.voters) != (member in new.voters)]
        self.require(len(changed) <= 1 and new.version == old.version + 1, "I5", f"{new} follows {old}")
        self.require(before.configuration_lsn <= before.committed_lsn, "I5", f"{new} is proposed, and {old} is not committed")
        own = core.epoch in self.record(shell.partition).epochs_with_commits
        self.require(own, "I5", f"{shell.me} proposes {new} before an entry of its epoch {core.epoch} is committed")
        for member in changed:
            if member in new.voters:
                progress = core.progress.get(member)
                lag = core.last_lsn - progress.match_lsn if progress is not None else core.last_lsn
                self.require(lag <= PROMOTE_LAG_ENTRIES, "I13", f"{member} is to vote, and is {lag} entries behind")
                disk = Disk(self.cluster.hosts[member.host].disk.durable_get, shell.partition)
                self.require(disk.is_of(member), "I13", f"{member} is to vote, and its disk knows it not: {disk.pointer}")

    def sees_leases(self, partition: int) -> None:
        """While a replica has a lease nobody is primary of a later epoch (I8). Clocks run on in hosts that stand still."""
        primaries = []
        for host in self.cluster.hosts.values():
            shell = host.host.shells.get(partition) if host.host is not None else None
            if shell is not None and not shell.is_over and shell.core.role is Role.PRIMARY and host.process is not None:
                primaries.append((shell.core, host.process.loop.local_ns))
        for core, local_ns in primaries if len(primaries) > 1 else ():
            for other, _ in primaries:
                if other.epoch > core.epoch:
                    has_lease = core.has_lease(local_ns)
                    self.require(
                        not has_lease, "I8", f"{core.me} has a lease of epoch {core.epoch}, {other.me} is primary of {other.epoch}"
                    )
                    self.world.counts["old primaries without a lease"] += 1
