"""What must hold after every step of every replica in a simulated grid (design.md, section 13).

The judge stands beside the real shells: it sees each event and effect of each core before the shell does it, and looks at the disks
themselves, which no host can. What it knows it takes from disks and messages where it can, not from what a core believes.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest

from actorgrid.client.map import PartitionMap
from actorgrid.client.router import Router
from actorgrid.errors import InvariantViolation, WriteInDoubtError
from actorgrid.host.bootstrap import SYSTEM_PARTITION
from actorgrid.host.manager import Manager
from actorgrid.host.orders import Orders
from actorgrid.host.outgoing import OutgoingCalls
from actorgrid.host.partition import HostedPartition
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.host.replicas import Replicas
from actorgrid.host.turn import Turn
from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.membership import PROMOTE_LAG_ENTRIES
from actorgrid.replication.replica import Role
from actorgrid.storage import keys
from actorgrid.storage.store import ACTIVE, ReplicaPointer
from actorgrid.testing.simulation import SimCluster
from actorgrid.testing.simulation.disk import SimHome
from actorgrid.wire.messages import decode_error
from placement import Intent
from placement.plan import Rule

_decode_pointer = msgspec.msgpack.Decoder(ReplicaPointer).decode
_decode_epoch = msgspec.msgpack.Decoder(tuple[int, str]).decode

NO_CONFIGURATION = Configuration(0, ())
#: Why a replica leaves duty whose data are whole.
REPLACED = "the primary of epoch"
#: A primary that is about to be swapped away is ordered to go within so long.
SWAP_ORDERED_WITHIN_S = 3.0


class Before(NamedTuple):
    """What a replica was before a step."""

    role: Role
    epoch: int
    committed_lsn: int
    configuration: Configuration
    configuration_lsn: int


class Over(NamedTuple):
    """A turn that is over: its answer, and what must be committed before that is given."""

    lsn: int
    status: int
    payload: bytes


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
        self.configuration = NO_CONFIGURATION  # the newest that a primary has committed


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
        #: Whether something was done to this host's disk that the grid has not mended yet.
        self.is_damaged: Callable[[str], bool] = lambda host: False
        #: Told of each replica that a host has retired.
        self.retired: Callable[[str], None] = lambda host: None
        self._befores: dict[ReplicaShell, Before] = {}
        self._is_eventful = False
        self._is_in_office = False
        self._over: dict[Turn, Over] = {}  # turns that are over, and not answered yet
        self._internal_lsn: dict[int, int] = {}  # by partition, the last change that no call made
        self._intents: dict[str, int] = {}  # by node, as operators were told last
        self._asked: dict[str, int] = {}  # how often something was asked for a node
        self._to_be_swapped_s: dict[tuple[str, int], float] = {}  # (node, partition) -> since when a drain says so

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See every step of every shell, and what hosts, managers and clients do, until the end of the block."""
        watched: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
            (ReplicaShell, "step", self._watched_step),
            (HostedPartition, "log", self._watched_log),
            (HostedPartition, "answer_read", self._watched_answer_read),
            (HostedPartition, "open", self._watched_open),
            (HostedPartition, "log_internal", self._watched_log_internal),
            (Turn, "answer", self._watched_answer),
            (Replicas, "begin", self._watched_begin),
            (Replicas, "drop_replica", self._watched_drop),
            (Replicas, "_retire", self._watched_retire),
            (SimHome, "condemn", self._watched_condemn),
            (OutgoingCalls, "_call_local", self._watched_call),
            (OutgoingCalls, "_call_remote", self._watched_call),
            (Router, "_adopt", self._watched_adopt),
            (Orders, "_led", self._watched_led),
            (Manager, "operate", self._watched_operate),
            (Manager, "_take_office", self._watched_take_office),
            (Manager, "_keep_roster", self._watched_keep_roster),
            (Manager, "_tick", self._watched_tick),
        )
        with contextlib.ExitStack() as undo:
            for owner, name, watching in watched:
                real = getattr(owner, name)
                undo.callback(setattr, owner, name, real)
                setattr(owner, name, watching(real))
            yield

    def _watched_step(self, real: Any) -> Any:
        def step(shell: ReplicaShell, event: ev.Event) -> None:
            if not shell.is_over and "step" not in vars(shell.core):
                self._watch(shell)
            self._is_eventful = False
            real(shell, event)
            if self._is_eventful:
                self.guarded(lambda: self.sees_leases(shell.partition))

        return step

    def _watch(self, shell: ReplicaShell) -> None:
        """See what goes into the core of `shell` and what comes out; the shell does its own work."""
        core, core_step, befores = shell.core, shell.core.step, self._befores

        def step(event: ev.Event, now_ns: int) -> list[ev.Effect]:
            if isinstance(event, ev.Recovered):
                before = Before(core.role, core.epoch, core.committed_lsn, NO_CONFIGURATION, 0)
            else:
                before = Before(core.role, core.epoch, core.committed_lsn, core.configuration, core.log.configuration_lsn)
            effects = core_step(event, now_ns)
            befores[shell] = before
            # Most steps are looks at the clock that lead to nothing.
            if effects or core.role is not before.role or core.epoch != before.epoch:
                self._is_eventful = True
                self.guarded(lambda: self.sees_step(shell, event, before, effects))
            return effects

        def watched(handler: Any) -> Any:
            def handle(effect: ev.Effect) -> None:
                before = befores[shell]
                self.guarded(lambda: self.sees_effect(shell, before, effect))
                handler(effect)
                befores[shell] = before  # what the shell does may be a step of its own

            return handle

        core.step = step  # type: ignore[method-assign]
        shell._handlers = {kind: watched(handler) for kind, handler in shell._handlers.items()}

    def guarded(self, looking: Any) -> None:
        try:
            looking()
        except InvariantViolation as violation:
            self.world.problems.append(str(violation))

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
        if isinstance(event, ev.Recovered) and not self.is_damaged(shell.me.host):
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
        is_primary, epoch = self._is_in_office, before.epoch  # who leaves office and follows another in one step is told of commits
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
        if is_primary and core.log.configuration_lsn <= lsn and core.configuration.version > record.configuration.version:
            record.configuration = core.configuration
        self.require(record.committed_lsn >= lsn, "I2", f"{shell.me} commits {lsn} of partition {shell.partition}, where no record ends")
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
        gone = [member for member in changed if member in old.voters]
        if gone and new.on_host(gone[0].host) is None:
            self._sees_removal(shell, gone[0], new)
        for member in changed:
            if member in new.voters:
                progress = core.progress.get(member)
                lag = core.last_lsn - progress.match_lsn if progress is not None else core.last_lsn
                self.require(lag <= PROMOTE_LAG_ENTRIES, "I13", f"{member} is to vote, and is {lag} entries behind")
                disk = Disk(self.cluster.hosts[member.host].disk.durable_get, shell.partition)
                is_there = disk.is_of(member) or self.is_damaged(member.host)  # who proposes may not know yet what became of it
                self.require(is_there, "I13", f"{member} is to vote, and its disk knows it not: {disk.pointer}")

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

    def _sees_removal(self, shell: ReplicaShell, gone: Member, new: Configuration) -> None:
        """A voter goes, and is not built anew in its place: a planned step, after which a write quorum has everything (I14)."""
        size = self.cluster.replica_set_size
        self.require(len(new.voters) >= size, "I14", f"{gone} is removed, which leaves {new} of {size} replicas")
        record = self.record(shell.partition)
        if record.committed_lsn:
            digest = record.committed[record.committed_lsn][2]
            having = [member for member in new.voters if self._has_durably(shell.partition, member, record.committed_lsn, digest)]
            enough = len(having) >= new.write_quorum
            self.require(enough, "I14", f"{gone} is removed, and {record.committed_lsn} is durable on {having} alone of {new}")

    # -- answers

    def _watched_log(self, real: Any) -> Any:
        def log(partition: HostedPartition, turn: Turn, status: int, payload: bytes, changes: Any) -> None:
            self._over[turn] = Over(partition._next_lsn, status, payload)
            real(partition, turn, status, payload, changes)

        return log

    def _watched_answer_read(self, real: Any) -> Any:
        def answer_read(partition: HostedPartition, turn: Turn, status: int, payload: bytes) -> None:
            self._over[turn] = Over(turn.activation.last_lsn, status, payload)
            real(partition, turn, status, payload)

        return answer_read

    def _watched_answer(self, real: Any) -> Any:
        def answer(turn: Turn, status: int, payload: bytes) -> None:
            over = self._over.pop(turn, None)
            if over is not None:
                self.guarded(lambda: self._sees_answer(turn, over, status, payload))
            real(turn, status, payload)

        return answer

    def _sees_answer(self, turn: Turn, over: Over, status: int, payload: bytes) -> None:
        shell = turn.activation.partition.shell
        record = self.record(shell.partition)
        if (status, payload) != (over.status, over.payload):
            if not turn.method.read:
                error = decode_error(payload).error
                self.require(error == WriteInDoubtError.__name__, "I17", f"{shell.me} may have written {turn}, and answers {error}")
            return
        is_committed = over.lsn <= record.committed_lsn
        self.require(is_committed, "I2", f"{shell.me} answers {turn}, which is of {over.lsn}, committed is {record.committed_lsn}")
        if turn.method.read:
            epoch, newest = shell.core.epoch, max(record.primaries, default=0)
            what = f"{shell.me} in epoch {epoch} answers {turn}, and {record.primaries.get(newest)} is primary of {newest}"
            self.require(record.primaries.get(newest) == shell.me, "I8", what)

    def _watched_open(self, real: Any) -> Any:
        def opened(partition: HostedPartition, epoch: int) -> None:
            real(partition, epoch)
            left = [each.address for each in partition.activations.values() if not each.dead]
            what = f"{partition.shell.me} begins its office in epoch {epoch} with what it had in memory of {left}"
            self.guarded(lambda: self.require(not left, "I3", what))

        return opened

    def _watched_log_internal(self, real: Any) -> Any:
        def log_internal(partition: HostedPartition, address: str, changes: Any) -> int:
            lsn: int = real(partition, address, changes)
            self._internal_lsn[partition.id] = lsn
            return lsn

        return log_internal

    def _watched_call(self, real: Any) -> Any:
        async def call(calls: OutgoingCalls, turn: Turn, *rest: Any) -> Any:
            partition = turn.activation.partition
            seen, committed = turn.activation.last_lsn, self.record(partition.id).committed_lsn
            what = f"{partition.shell.me}: {turn} has seen {seen} and calls others, committed is {committed}"
            self.guarded(lambda: self.require(seen <= committed, "I2", what))
            return await real(calls, turn, *rest)

        return call

    # -- hosts

    def _watched_begin(self, real: Any) -> Any:
        def begin(replicas: Replicas) -> None:
            self.guarded(lambda: self._sees_start(replicas))
            real(replicas)

        return begin

    def _sees_start(self, replicas: Replicas) -> None:
        """A host starts with the data of its replicas and with no others (I13)."""
        name = replicas._config.name
        names = self.cluster.hosts[name].disk._families[0].names
        at = bisect_left(names, keys.COPYING_PREFIX)
        is_there = at < len(names) and names[at].startswith(keys.COPYING_PREFIX)
        self.require(not is_there, "I13", f"{name} has started, and a half-built copy is there still")
        known = {keys.replica_prefix(pointer.partition, pointer.generation) for pointer in replicas.pointers.values()}
        at = 0
        while at < len(names) and not names[at].startswith(keys.HOST):
            prefix = names[at][: keys.PREFIX_BYTES]
            self.require(prefix in known, "I13", f"{name} has started with data of no replica: {names[at][:40]!r}")
            at = bisect_left(names, keys.after(prefix))

    def _watched_drop(self, real: Any) -> Any:
        def drop_replica(replicas: Replicas, shell: ReplicaShell, why: str) -> None:
            self.guarded(lambda: self._sees_drop(shell, why))
            real(replicas, shell, why)

        return drop_replica

    def _sees_drop(self, shell: ReplicaShell, why: str) -> None:
        configuration = self.record(shell.partition).configuration
        is_member = shell.me in configuration.members
        self.require(not is_member, "I6", f"the data of {shell.me} are dropped ({why}), a member of {configuration}")

    def _watched_retire(self, real: Any) -> Any:
        def retire(replicas: Replicas, pointer: ReplicaPointer, why: str, *rest: Any) -> None:
            name = replicas._config.name
            is_explained = self.is_damaged(name) or why.startswith(REPLACED)
            what = f"{name} cannot trust its replica of partition {pointer.partition}, and nobody has damaged its disk: {why}"
            self.guarded(lambda: self.require(is_explained, "I3", what))
            if not why.startswith(REPLACED):
                self.retired(name)
            real(replicas, pointer, why, *rest)

        return retire

    def _watched_condemn(self, real: Any) -> Any:
        def condemn(home: SimHome, why: str) -> None:
            name = next(name for name, host in self.cluster.hosts.items() if host.disk is home._disk)
            what = f"{name} cannot trust its store, and nobody has damaged its disk: {why}"
            self.guarded(lambda: self.require(self.is_damaged(name), "I3", what))
            real(home, why)

        return condemn

    # -- placement

    def _watched_led(self, real: Any) -> Any:
        def led(orders: Orders, number: int, arguments: dict[str, Any]) -> HostedPartition:
            partition: HostedPartition = real(orders, number, arguments)
            version, decided_on = partition.replica.configuration.version, arguments.get("version")
            what = f"an order decided on configuration {decided_on} of partition {number} is carried out on {version}: {arguments}"
            self.guarded(lambda: self.require(version == decided_on, "orders", what))
            return partition

        return led

    def _watched_operate(self, real: Any) -> Any:
        async def operate(manager: Manager, verb: str, arguments: dict[str, Any]) -> Any:
            if verb not in ("drain", "undrain") or arguments.get("estimate"):
                return await real(manager, verb, arguments)
            node = str(arguments.get("node"))
            self._intents.pop(node, None)  # in doubt until it is answered, and nothing else was asked for since
            number = self._asked[node] = self._asked.get(node, 0) + 1
            is_change = verb == "drain" or node in manager._state.intents
            answer = await real(manager, verb, arguments)
            if self._asked[node] != number:
                return answer
            lsn, committed_lsn = self._internal_lsn.get(SYSTEM_PARTITION, 0), self.record(SYSTEM_PARTITION).committed_lsn
            what = f"{verb} of {node} is answered, logged at {lsn}, committed is {committed_lsn}"
            self.guarded(lambda: self.require(lsn <= committed_lsn or not is_change, "drains", what))
            record = manager._state.intents.get(node)
            if verb == "undrain":
                pending = manager._logged.intents.get(node)
                what = f"the drain of {node} was taken back, and {pending} is logged"
                self.guarded(lambda: self.require(pending is None, "drains", what))
                self.guarded(lambda: self.require(record is None, "drains", f"the drain of {node} was taken back, and is {record}"))
            elif not arguments.get("by"):
                wanted = Intent[str(arguments["intent"]).upper()]
                is_known = record is not None and record.intent >= wanted
                self.guarded(lambda: self.require(is_known, "drains", f"{wanted} of {node} was answered, and is {record}"))
                self._intents[node] = wanted
            return answer

        return operate

    def _watched_take_office(self, real: Any) -> Any:
        def take_office(manager: Manager, system: HostedPartition) -> None:
            real(manager, system)
            self._to_be_swapped_s.clear()
            state = manager._state
            nodes = {record.node for record in state.nodes.values()}
            for node, wanted in self._intents.items():
                record = state.intents.get(node)
                is_known = node not in nodes or (record is not None and record.intent >= wanted)
                what = f"an operator was told of {Intent(wanted)} of {node}, the next manager on {manager._me} knows {record}"
                self.guarded(lambda is_known=is_known, what=what: self.require(is_known, "drains", what))

        return take_office

    def _watched_keep_roster(self, real: Any) -> Any:
        async def keep_roster(manager: Manager, overview: Any) -> None:
            before = list(manager._state.hosts)
            await real(manager, overview)
            for host in before:
                if host not in manager._state.hosts:
                    self.guarded(lambda host=host: self._sees_host_forgotten(host))

        return keep_roster

    def _sees_host_forgotten(self, host: str) -> None:
        for partition, record in self.partitions.items():
            member = record.configuration.on_host(host)
            self.require(member is None, "roster", f"{host} is forgotten, and {member} is a member of partition {partition}")

    def _watched_tick(self, real: Any) -> Any:
        async def tick(manager: Manager, system: HostedPartition) -> None:
            await real(manager, system)
            self.guarded(lambda: self._sees_drains(manager))

        return tick

    def _sees_drains(self, manager: Manager) -> None:
        """What a drain says to be about to happen, happens."""
        now_s, waiting = self.cluster.now_s, self._to_be_swapped_s
        said = {
            (drain.node, pending.partition)
            for drain in (manager.plan.drains if manager.plan is not None else ())
            for pending in drain.pending
            if pending.rule is Rule.PRIMARY_HERE
            and pending.partition not in manager.moves.under_way()
            and pending.partition not in manager.moves._refused
        }
        for each in [each for each in waiting if each not in said]:
            del waiting[each]
        for node, partition in said:
            since_s = waiting.setdefault((node, partition), now_s)
            what = f"the primary of partition {partition} is about to leave {node} for {now_s - since_s:.2f} s, and nobody has ordered that"
            self.require(now_s - since_s < SWAP_ORDERED_WITHIN_S, "drains", what)

    # -- clients

    def _watched_adopt(self, real: Any) -> Any:
        def adopt(router: Router, new: PartitionMap) -> None:
            old = router.map
            if old is not None:
                for partition, (before, after) in enumerate(zip(old.epochs, new.epochs, strict=False), 1):
                    what = f"a client that knew epoch {before} of partition {partition} follows epoch {after}"
                    self.guarded(lambda before=before, after=after, what=what: self.require(after >= before, "maps", what))
            real(router, new)

        return adopt
