"""Hosts with replicas, in one process: virtual time, a network, disks, clocks that drift, and a judge of every step.

Everything is decided by the arguments and the calls: the same calls give the same run. Two ways to drive it:

- *by hand*: messages wait in `in_flight` until `deliver`, `drop` or `duplicate`; disks sync when told to. Time passes with `run`.
- *by itself* (``auto=True``): messages arrive and disks sync after random latencies; `run` is then a whole simulation.

The shell around a core is played as `actorgrid.host` does it. What a shell must do for the core to be safe:

- effects are done in order; a write is visible at once, durable by a sync that covers it; `LogSent` follows at once;
- a replica object is made once per life of its host;
- every append or vote request to a replica that a host does not have is answered with `ReplicaMissing`;
- only replica incarnations are built that were never there before;
- a copy takes the place of a replica only if `Replica.takes_copy` says so at that very moment.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from core_disks import Appended, Applied, Created, Dropped, HostDisk, Installed, LogStart, Record, SavedEpoch, State, Truncated
from core_judge import Judge

from actorgrid.ids import PartitionId
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.liveness import MS, Announcement, Liveness, Times
from actorgrid.replication.messages import Append, Message, ReplicaMissing, VoteRequest
from actorgrid.replication.replica import Replica, Role

#: A connection between hosts that do not hear each other is given up after so long, as `actorgrid.host.peers` does.
SILENCE_NS = 1_500 * MS
STEPS_AT_ONE_TIME_MAX = 10_000


class Beat(NamedTuple):
    sent_ns: int
    announcement: Announcement


class BeatAnswer(NamedTuple):
    number: int
    sent_ns: int
    target_life: int


class Envelope(NamedTuple):
    """Something on its way. `records` are those of an append."""

    number: int
    source: str
    target: str
    source_life: int
    payload: Message | Beat | BeatAnswer
    records: tuple[Record, ...] = ()


class CopyJob(NamedTuple):
    number: int
    partition: int
    source: Member
    source_life: int
    to: Member
    epoch: int
    state: State


class Host:
    """One host: its clock, its disk, and while it is alive its replicas."""

    def __init__(self, cluster: Cluster, name: str, rate: int, offset_ns: int) -> None:
        self._cluster = cluster
        self.name = name
        self.rate = rate  # of its clock, per mille of true time
        self.offset_ns = offset_ns
        self.incarnation = 0
        self.is_alive = False
        self.is_paused = False
        self.disk = HostDisk()
        self.replicas: dict[int, Replica] = {}
        self.liveness: Liveness
        self.connected: dict[str, None] = {}
        self.primaries: dict[int, int] = {}
        self.primaries_version = 1
        self.beat_ns = 0
        self.syncing = 0  # writes under a sync that is running
        self.sync_begun_ns = 0
        self.held: list[Callable[[], None]] = []  # what happened while it was paused
        self.incoming: tuple[Record, ...] = ()

    @property
    def local_ns(self) -> int:
        return self.offset_ns + self._cluster.now_ns * self.rate // 1000

    def true_ns(self, local_ns: int) -> int:
        """When its clock shows `local_ns`."""
        return -((self.offset_ns - local_ns) * 1000 // self.rate)

    @property
    def runs(self) -> bool:
        return self.is_alive and not self.is_paused

    def announce(self, partition: int, epoch: int) -> None:
        if epoch:
            self.primaries[partition] = epoch
        elif self.primaries.pop(partition, None) is None:
            return
        self.primaries_version += 1


class Cluster:
    """Hosts, and what is between them.

    :param voters: hosts with a voter of the first configuration; by default all
    :param rates: of the hosts' clocks, per mille; they may differ by 10 % (I8 hangs on it)
    :param auto: whether messages and syncs take care of themselves
    :param replica_class: another core, with a planted bug
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        voters: Sequence[str] = (),
        partitions: Sequence[int] = (1,),
        seed: int = 0,
        rates: Sequence[int] = (),
        auto: bool = False,
        times: Times | None = None,
        replica_class: type[Replica] = Replica,
        liveness_class: type[Liveness] = Liveness,
    ) -> None:
        self.rng = random.Random(seed)
        self.times = times or Times()
        self.partitions = tuple(partitions)
        self.is_auto = auto
        self.now_ns = 1_000 * MS
        self.in_flight: dict[int, Envelope] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.lossy: set[tuple[str, str]] = set()  #: who has lost a message to whom
        self.copies: dict[int, CopyJob] = {}
        self.faults: Counter[str] = Counter()
        self.latency_ns: Callable[[], int] = lambda: int(self.rng.uniform(0.1, 3) * MS)
        self.sync_ns: Callable[[], int] = lambda: int(self.rng.uniform(0.5, 8) * MS)
        self.copy_ns: Callable[[], int] = lambda: int(self.rng.uniform(20, 300) * MS)
        self.loss = 0.0
        self.doubling = 0.0
        self.holds_beats = False  # by hand: beats and their answers wait as other messages do
        self.on_effect: Callable[[Host, Replica, ev.Effect], None] = lambda host, replica, effect: None
        self.chunk_records = 3
        self._replica_class = replica_class
        self._liveness_class = liveness_class
        self._numbers = 0
        self._values = 0
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._trace: deque[tuple[int, str, int, object, object]] = deque(maxlen=3_000)
        self._unheard_ns: dict[tuple[str, str], int] = {}
        offsets = [self.rng.randrange(10**12) for _ in hosts]
        self.hosts = {
            name: Host(self, name, rates[index] if rates else 1000, offsets[index] if auto else 0) for index, name in enumerate(hosts)
        }
        self.judge = Judge(self)
        configuration = Configuration(1, tuple(Member(name, 1) for name in voters or hosts))
        first = State(0, 0, 0, configuration, 0)
        for member in configuration.voters:
            for partition in partitions:
                self.hosts[member.host].disk.write((partition, 1), Created(first, 0))
            disk = self.hosts[member.host].disk
            disk.sync(len(disk.unsynced))
            disk.is_new = True
        for name in hosts:
            self.start(name)
        for host in self.hosts.values():
            host.disk.is_new = not host.disk.durable
        if not auto:
            self.connect_all()

    # -- looking

    def tail(self, count: int = 120) -> list[str]:
        """What happened last."""
        return [self._shown(*each) for each in list(self._trace)[-count:]]

    def _shown(self, now_ns: int, host: str, partition: int, what: object, effects: object) -> str:
        return f"{now_ns / MS:.3f}ms {host} p{partition} {what} -> {effects}"

    def replica(self, name: str, partition: int | None = None) -> Replica:
        return self.hosts[name].replicas[self.partitions[0] if partition is None else partition]

    def replicas(self, partition: int | None = None) -> list[tuple[Host, Replica]]:
        """Of the hosts that are alive."""
        wanted = self.partitions[0] if partition is None else partition
        return [(host, host.replicas[wanted]) for host in self.hosts.values() if wanted in host.replicas]

    def primary(self, partition: int | None = None) -> tuple[Host, Replica] | None:
        """Who is primary of the latest epoch."""
        found = [pair for pair in self.replicas(partition) if pair[1].role is Role.PRIMARY]
        return max(found, key=lambda pair: pair[1].epoch, default=None)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def note(self, what: str, host: str = "") -> None:
        """For the trace."""
        self._trace.append((self.now_ns, host, -1, what, ""))

    # -- steps

    def step(self, host: Host, partition: int, event: ev.Event) -> list[ev.Effect]:
        """One step of one replica, and everything it wants done."""
        replica = host.replicas[partition]
        before = self.judge.before(replica)
        told = event
        effects = replica.step(event, host.local_ns)
        self._trace.append((self.now_ns, host.name, partition, told, effects))
        self.judge.sees_step(host, replica, before, effects)
        later: list[ev.Event] = []
        for effect in effects:
            self.judge.sees_effect(host, replica, before, effect)
            self._do(host, replica, effect, later)
            self.on_effect(host, replica, effect)
        self.judge.sees_end_of_step(replica)
        self._sync_soon(host)
        for each in later:
            self.step(host, partition, each)
        return effects

    def step_all(self, host: Host, event: ev.Event) -> None:
        for partition in list(host.replicas):
            self.step(host, partition, event)

    def _do(self, host: Host, replica: Replica, effect: ev.Effect, later: list[ev.Event]) -> None:
        partition = replica.partition
        key = (partition, replica.me.incarnation)
        disk = host.disk
        match effect:
            case ev.SaveEpoch(write_no, epoch, voted_for):
                disk.write(key, SavedEpoch(epoch, voted_for), write_no)
            case ev.TruncateLog(from_lsn):
                disk.write(key, Truncated(from_lsn))
            case ev.AppendRecords(write_no, skip):
                disk.write(key, Appended(host.incoming[skip:]), write_no)
            case ev.AppendProposed(write_no, epoch, first_lsn, count):
                disk.write(key, Appended((self._new_record(epoch, first_lsn, count),)), write_no)
            case ev.AppendFirst(write_no, epoch, lsn):
                disk.write(key, Appended((self._new_record(epoch, lsn, 1),)), write_no)
            case ev.AppendConfiguration(write_no, epoch, lsn, configuration):
                disk.write(key, Appended((self._new_record(epoch, lsn, 1)._replace(configuration=configuration),)), write_no)
            case ev.Send(to, message):
                self._send(host, to, message)
            case ev.SendAppend(last_lsn=last_lsn, prev_lsn=prev_lsn):
                records = [record for record in disk.view[key].records_after(prev_lsn) if record.last_lsn <= last_lsn]
                assert not records or (records[0].first_lsn, records[-1].last_lsn) == (prev_lsn + 1, last_lsn)
                self._send_append(host, replica, effect, last_lsn, records)
            case ev.SendFromLog(prev_lsn=prev_lsn):
                records = disk.view[key].records_after(prev_lsn)[: self.chunk_records]
                assert prev_lsn >= disk.view[key].start_lsn - 1, (
                    f"the log begins at {disk.view[key].start_lsn}, wanted is what follows {prev_lsn}"
                )
                self._send_append(host, replica, effect, records[-1].last_lsn, records)
                later.append(ev.LogSent(effect.to, records[-1].last_lsn))
            case ev.StartCopy(to):
                self._start_copy(host, replica, to)
            case ev.Commit(lsn):
                disk.write(key, Applied(lsn))
            case ev.Serve(epoch):
                host.announce(partition, epoch)
                host.liveness.is_primary(partition, epoch, host.name)
            case ev.Follow(primary, epoch):
                host.liveness.is_primary(partition, epoch, primary)
            case ev.StepDown():
                host.announce(partition, 0)
            case _:
                pass

    def _new_record(self, epoch: int, first_lsn: int, count: int) -> Record:
        values = tuple(range(self._values + 1, self._values + count + 1))
        self._values += count
        return Record(epoch, first_lsn, first_lsn + count - 1, values)

    def _send_append(
        self, host: Host, replica: Replica, effect: ev.SendAppend | ev.SendFromLog, last_lsn: int, records: list[Record]
    ) -> None:
        message = Append(
            replica.partition,
            effect.to.incarnation,
            replica.me.incarnation,
            effect.epoch,
            effect.prev_lsn,
            effect.prev_epoch,
            effect.committed_lsn,
            [],
            replica.log.configurations_between(effect.prev_lsn, last_lsn),
        )
        assert effect.prev_epoch >= 0
        self._send(host, effect.to.host, message, tuple(records))

    # -- the network

    def _send(self, host: Host, target: str, payload: Message | Beat | BeatAnswer, records: tuple[Record, ...] = ()) -> None:
        if target not in self.hosts or target not in host.connected:
            return
        envelope = Envelope(self._next_number(), host.name, target, host.incarnation, payload, records)
        self.in_flight[envelope.number] = envelope
        if self.is_auto:
            if self.rng.random() < self.loss:
                self.drop(envelope.number)
                return
            self._deliver_after(envelope.number, self.latency_ns())
            if self.rng.random() < self.doubling:
                self.duplicate(envelope.number)
        elif isinstance(payload, Beat | BeatAnswer) and not self.holds_beats:
            self.deliver(envelope.number)

    def _deliver_after(self, number: int, delay_ns: int) -> None:
        self.at(self.now_ns + delay_ns, lambda: self.deliver(number))

    def duplicate(self, number: int) -> int:
        """The same message once more."""
        envelope = self.in_flight[number]._replace(number=self._next_number())
        self.in_flight[envelope.number] = envelope
        self.faults["doubled messages"] += 1
        if self.is_auto:
            self._deliver_after(envelope.number, 5 * self.latency_ns())
        return envelope.number

    def drop(self, number: int) -> None:
        self.faults["lost messages"] += 1
        envelope = self.in_flight.pop(number)
        self.lossy.add((envelope.source, envelope.target))

    def reconnect_lossy(self) -> None:
        """Messages are lost with their connection only, so by now those who lost any are connected anew.

        Else the last message of all can be lost for good: that a replica is gone is said once on each connection, and nobody asks again.
        """
        for one, other in sorted(self.lossy):
            if other in self.hosts[one].connected:
                self.disconnect(one, other)
        self.lossy.clear()
        self.connect_all()

    def deliver(self, number: int) -> None:
        """The message arrives, if its way is open; on a cut link it waits for the heal, or for ever."""
        envelope = self.in_flight.get(number)
        if envelope is None:
            return
        host = self.hosts[envelope.target]
        if (envelope.source, envelope.target) in self.cuts:
            if not self.is_auto:
                self.drop(number)
            return
        del self.in_flight[number]
        if host.is_paused:
            host.held.append(lambda: self._arrive(host, envelope))
            self.faults["late messages"] += 1
        elif host.is_alive:
            self._arrive(host, envelope)

    def _arrive(self, host: Host, envelope: Envelope) -> None:
        if not host.is_alive:
            return
        payload, source, life = envelope.payload, envelope.source, envelope.source_life
        liveness = host.liveness
        if life >= liveness.life_of(source):
            liveness.heard(source, host.local_ns)
        self._unheard_ns.pop((source, host.name), None)
        if isinstance(payload, Beat):
            number = liveness.beat_received(source, life, host.local_ns)
            liveness.announced(source, payload.announcement)
            self._send(host, source, BeatAnswer(number, payload.sent_ns, life))
        elif isinstance(payload, BeatAnswer):
            if payload.target_life == host.incarnation and liveness.support_answered(
                source, payload.number, payload.sent_ns, host.local_ns
            ):
                self.step_all(host, ev.SupportChanged(source))
        else:
            self._arrive_at_replica(host, envelope, payload)

    def _arrive_at_replica(self, host: Host, envelope: Envelope, message: Message) -> None:
        replica = host.replicas.get(message.partition)
        if replica is None or replica.me.incarnation != message.to:
            if isinstance(message, Append | VoteRequest):
                successor = host.disk.next_incarnation(message.partition)
                self._send(host, envelope.source, ReplicaMissing(message.partition, message.sender, message.to, successor))
            if replica is None:
                return
        host.incoming = envelope.records
        if isinstance(message, Append):
            heads = [RecordHead(record.epoch, record.first_lsn, record.last_lsn) for record in envelope.records]
            event: ev.Event = ev.AppendReceived(message, heads, envelope.source, envelope.source_life)
        else:
            event = ev.MessageReceived(message, envelope.source, envelope.source_life)
        if replica.me.incarnation == message.to:
            self.step(host, replica.partition, event)
            return
        rejected = replica.rejected_total
        effects = self.step(host, replica.partition, event)
        self.judge.require(
            not effects and replica.rejected_total == rejected + 1, "I7", f"{replica.me} did {effects} for another incarnation"
        )

    def between(self, source: str, target: str, kind: type | tuple[type, ...] = object) -> list[int]:
        """The numbers of what is on its way from `source` to `target`, oldest first."""
        return [n for n, e in self.in_flight.items() if (e.source, e.target) == (source, target) and isinstance(e.payload, kind)]

    def settle(self, without: Iterable[str] = ()) -> None:
        """By hand: deliver and sync until nothing is left to do at this moment; what concerns the hosts `without` waits."""
        waiting = list(without)
        for _ in range(1000):
            numbers = [n for n, e in self.in_flight.items() if e.source not in waiting and e.target not in waiting]
            names = [host.name for host in self.hosts.values() if host.runs and host.disk.unsynced and host.name not in waiting]
            if not numbers and not names:
                return
            for number in numbers:
                self.deliver(number)
            for name in names:
                self.sync(name)
        raise AssertionError("it does not settle:\n" + "\n".join(self.tail(40)))

    def let_go(self) -> None:
        """From here on it runs by itself; what waited arrives."""
        if self.is_auto:
            return
        self.is_auto, self.holds_beats = True, False
        for number in list(self.in_flight):
            self._deliver_after(number, self.latency_ns())
        for number in list(self.copies):
            self.at(self.now_ns + self.copy_ns(), lambda number=number: self.end_copy(number))  # type: ignore[misc]
        for host in self.hosts.values():
            self._sync_soon(host)

    def go_on(self, duration_ns: int, without: Iterable[str] = ()) -> None:
        """By hand: let time pass, and everything settle all the while."""
        end_ns = self.now_ns + duration_ns
        while self.now_ns < end_ns:
            self.run(min(10 * MS, end_ns - self.now_ns))
            self.settle(without)

    def cut(self, source: str, target: str) -> None:
        """Nothing goes from `source` to `target`."""
        self.faults["cuts"] += 1
        self.cuts.add((source, target))

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """Open one way, or all; what waited there arrives late."""
        healed = {(source, target)} if source is not None and target is not None else set(self.cuts)
        self.cuts -= healed
        for envelope in list(self.in_flight.values()):
            if (envelope.source, envelope.target) in healed and self.is_auto:
                self._deliver_after(envelope.number, self.latency_ns())

    def isolate(self, name: str) -> None:
        for other in self.hosts:
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    # -- connections

    def connect(self, one: str, other: str) -> None:
        """A handshake."""
        first, second = self.hosts[one], self.hosts[other]
        for host, peer in ((first, second), (second, first)):
            host.connected[peer.name] = None
            host.liveness.met(peer.name, peer.incarnation)
            host.liveness.heard(peer.name, host.local_ns)
            self.step_all(host, ev.PeerUp(peer.name))

    def connect_all(self) -> None:
        """Between all that can hear each other."""
        names = list(self.hosts)
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                is_open = (one, other) not in self.cuts and (other, one) not in self.cuts
                runs = self.hosts[one].runs and self.hosts[other].runs
                if is_open and runs and other not in self.hosts[one].connected:
                    self.connect(one, other)

    def disconnect(self, one: str, other: str) -> None:
        for name, peer in ((one, other), (other, one)):
            host = self.hosts[name]
            if host.connected.pop(peer, "no") is None and host.is_alive:
                for job in list(self.copies.values()):
                    if {job.source.host, job.to.host} == {one, other}:
                        self.end_copy(job.number, is_good=False)
                self.step_all(host, ev.PeerDown(peer))

    def _give_up_silent_connections(self, host: Host) -> None:
        for peer in list(host.connected):
            silent_ns = host.local_ns - host.liveness.heard_ns(peer)
            if silent_ns > SILENCE_NS:
                self.disconnect(host.name, peer)

    # -- disks

    def _sync_soon(self, host: Host) -> None:
        if self.is_auto and host.disk.unsynced and not host.syncing and host.is_alive:
            self.begin_sync(host)
            life = host.incarnation
            self.at(self.now_ns + self.sync_ns(), lambda: self._end_sync(host, life))

    def begin_sync(self, host: Host) -> None:
        host.syncing = len(host.disk.unsynced)
        host.sync_begun_ns = host.local_ns

    def _end_sync(self, host: Host, life: int) -> None:
        if host.incarnation != life or not host.is_alive:
            return
        done = host.disk.sync(host.syncing)
        host.syncing = 0
        if host.is_paused:
            host.held.append(lambda: self._synced(host, done))
        else:
            self._synced(host, done)

    def _synced(self, host: Host, done: dict[tuple[int, int], int]) -> None:
        for (partition, incarnation), write_no in done.items():
            replica = host.replicas.get(partition)
            if replica is not None and replica.me.incarnation == incarnation:
                self.step(host, partition, ev.Synced(write_no))
        self._sync_soon(host)

    def sync(self, name: str) -> None:
        """Everything `name` has written is durable."""
        host = self.hosts[name]
        host.syncing = len(host.disk.unsynced)
        self._end_sync(host, host.incarnation)

    def truncate_log(self, name: str, partition: int, start_lsn: int) -> None:
        """Drop what is before `start_lsn`, as far as it is applied."""
        host = self.hosts[name]
        replica = host.replicas[partition]
        view = host.disk.view[partition, replica.me.incarnation]
        boundary = next((record.first_lsn for record in view.records if record.last_lsn >= start_lsn), view.last_lsn + 1)
        start_lsn = min(boundary, view.state.lsn + 1)
        if start_lsn > view.start_lsn:
            host.disk.write((partition, replica.me.incarnation), LogStart(start_lsn))
            self.step(host, partition, ev.LogStartMoved(start_lsn))

    # -- lives

    def start(self, name: str) -> None:
        """A process begins, with what the disk has."""
        host = self.hosts[name]
        assert not host.is_alive
        host.incarnation += 1
        host.is_alive, host.is_paused, host.syncing = True, False, 0
        host.held.clear()
        host.primaries = {}
        host.primaries_version = 1
        host.liveness = self._liveness_class(name, host.incarnation, host.local_ns, self.times, quiet=not host.disk.is_new)
        host.beat_ns = host.local_ns + (self.rng.randrange(self.times.beat_ns) if self.is_auto else self.times.beat_ns)
        self.note(f"starts, incarnation {host.incarnation}", name)
        for partition, incarnation in sorted(host.disk.durable):
            self.judge.sees_recovery(host, partition, incarnation)
            self._begin(host, partition, incarnation)

    def _begin(self, host: Host, partition: int, incarnation: int) -> None:
        disk = host.disk.view[partition, incarnation]
        host.replicas[partition] = self._replica_class(PartitionId(partition), Member(host.name, incarnation), host.liveness, self.rng)
        recovered = ev.Recovered(
            disk.epoch, disk.voted_for, disk.start_lsn, disk.last_lsn, disk.state.lsn, disk.epochs(), disk.configurations()
        )
        assert not host.replicas[partition].step(recovered, host.local_ns)
        for peer in list(host.connected):
            self.step(host, partition, ev.PeerUp(peer))

    def crash(self, name: str, kept: int | None = None) -> None:
        """The process ends; of what was not synced the oldest `kept` writes survive, by default none."""
        host = self.hosts[name]
        assert host.is_alive
        host.is_alive = False
        lost = host.disk.crash(min(kept or 0, len(host.disk.unsynced)))
        self.faults["crashes"] += 1
        self.faults["lost writes"] += lost
        self.note(f"crashes, {lost} writes are lost", name)
        host.replicas.clear()
        host.connected.clear()
        for job in list(self.copies.values()):
            if name in (job.source.host, job.to.host):
                self.end_copy(job.number, is_good=False)
        for other in self.hosts.values():
            if name in other.connected:
                if self.is_auto:
                    self.at(self.now_ns + self.latency_ns(), lambda other=other: self._sees_crash(other, name))  # type: ignore[misc]
                else:
                    self._sees_crash(other, name)

    def _sees_crash(self, host: Host, name: str) -> None:
        if host.is_paused:
            host.held.append(lambda: self._sees_crash(host, name))
        elif host.is_alive and host.connected.pop(name, "no") is None:
            self.step_all(host, ev.PeerDown(name))

    def lose_disk(self, name: str) -> None:
        """What a dead host had is gone."""
        host = self.hosts[name]
        assert not host.is_alive
        for (partition, incarnation), disk in host.disk.durable.items():
            self.judge.partitions[partition].lost[Member(name, incarnation)] = disk
        host.disk.lose()
        self.faults["lost disks"] += 1
        self.note("loses its disk", name)

    def pause(self, name: str) -> None:
        self.hosts[name].is_paused = True
        self.faults["pauses"] += 1
        self.note("is paused", name)

    def resume(self, name: str) -> None:
        """Go on, with what has arrived meanwhile, in an order of its own."""
        host = self.hosts[name]
        host.is_paused = False
        self.note("goes on", name)
        held, host.held = host.held, []
        if self.is_auto:
            self.rng.shuffle(held)
            if self.rng.random() < 0.5:
                self._let_time_pass(host)
        for happen in held:
            if host.is_alive:
                happen()
        self._sync_soon(host)

    def tell_death(self, name: str, life: int, to: Iterable[str]) -> None:
        """Whoever supervises `name` saw that life of it end."""
        host = self.hosts[name]
        assert life < host.incarnation or not host.is_alive, "death is never a guess"
        for other in to:
            observer = self.hosts[other]
            if observer.runs:
                self.faults["death notices"] += 1
                observer.liveness.died(name, life)
                self.step_all(observer, ev.HostDied(name, life))

    # -- copies

    def _start_copy(self, host: Host, replica: Replica, to: Member) -> None:
        state = host.disk.view[replica.partition, replica.me.incarnation].state
        job = CopyJob(self._next_number(), replica.partition, replica.me, host.incarnation, to, replica.epoch, state)
        self.copies[job.number] = job
        self.judge.counts["copies begun"] += 1
        if self.is_auto:
            self.at(self.now_ns + self.copy_ns(), lambda: self.end_copy(job.number))

    def end_copy(self, number: int, *, is_good: bool = True) -> bool:
        """The copy arrives whole and takes its place, or it does not; its source hears of both if it lives."""
        job = self.copies.pop(number, None)
        if job is None:
            return False
        source, target = self.hosts[job.source.host], self.hosts[job.to.host]
        can_hear = target.name in source.connected and not {(source.name, target.name), (target.name, source.name)} & self.cuts
        is_good = (
            is_good and source.runs and target.runs and source.incarnation == job.source_life and can_hear and self._install(target, job)
        )
        if not is_good:
            self.faults["failed copies"] += 1
        replica = source.replicas.get(job.partition)
        if source.is_alive and source.incarnation == job.source_life and replica is not None and replica.me == job.source:
            ended = ev.CopyEnded(job.to, job.state.lsn if is_good else 0)
            if source.is_paused:
                source.held.append(lambda: self._copy_ended(source, job, ended))
            else:
                self._copy_ended(source, job, ended)
        return is_good

    def _copy_ended(self, source: Host, job: CopyJob, ended: ev.CopyEnded) -> None:
        if job.partition in source.replicas:
            self.step(source, job.partition, ended)

    def _install(self, host: Host, job: CopyJob) -> bool:
        partition, incarnation, state = job.partition, job.to.incarnation, job.state
        replica = host.replicas.get(partition)
        key = (partition, incarnation)
        if replica is None:
            if incarnation < host.disk.next_incarnation(partition):
                return False
            self._write_through(host, lambda: host.disk.write(key, Created(state, job.epoch)))
            self.judge.sees_state(partition, job.to, host.disk.view[key])
            self.judge.counts["replicas built"] += 1
            self._begin(host, partition, incarnation)
            return True
        if replica.me != job.to or replica.epoch > job.epoch or not replica.takes_copy(state.lsn, state.epoch):
            return False
        self._write_through(host, lambda: host.disk.write(key, Installed(state)))
        self.judge.sees_state(partition, job.to, host.disk.view[key])
        self.judge.counts["copies installed"] += 1
        self.step(host, partition, ev.CopyInstalled(state.lsn, state.epoch, state.configuration, state.configuration_lsn))
        return True

    def _write_through(self, host: Host, write: Callable[[], None]) -> None:
        """Write, and make everything up to it durable; the replicas hear of it later, as of any sync."""
        write()
        done = host.disk.sync(len(host.disk.unsynced))
        host.syncing = 0
        life = host.incarnation

        def hear() -> None:
            if host.incarnation == life and host.is_alive:
                host.held.append(lambda: self._synced(host, done)) if host.is_paused else self._synced(host, done)

        if self.is_auto:
            self.at(self.now_ns, hear)
        else:
            hear()

    def drop_replica(self, name: str, partition: int) -> None:
        """A replica that is no member any more is removed."""
        host = self.hosts[name]
        replica = host.replicas.pop(partition)
        incarnation = replica.me.incarnation
        self.judge.partitions[partition].lost[replica.me] = host.disk.durable[partition, incarnation]
        host.disk.born[partition] = host.disk.next_incarnation(partition)
        host.disk.write((partition, incarnation), Dropped())
        host.announce(partition, 0)
        self.note(f"drops {replica.me}", name)
        self._sync_soon(host)

    def retire(self, name: str, partition: int) -> None:
        """The store cannot be trusted with this replica any more: it leaves duty and is removed, while its host lives on (I12)."""
        self.faults["storage failures"] += 1
        host = self.hosts[name]
        replica = host.replicas[partition]
        self.step(host, partition, ev.StorageFailed("EIO"))
        self.drop_replica(name, partition)
        self._write_through(host, lambda: None)
        for member in replica.configuration.members:
            if member.host != name:
                missing = ReplicaMissing(partition, member.incarnation, replica.me.incarnation, host.disk.next_incarnation(partition))
                self._send(host, member.host, missing)

    # -- what somebody wants

    def propose(self, name: str, count: int = 1, partition: int | None = None) -> bool:
        """Entries, if the replica there takes any."""
        partition = self.partitions[0] if partition is None else partition
        host = self.hosts[name]
        replica = host.replicas.get(partition)
        if not host.runs or replica is None or not replica.serving or replica.is_swapping:
            return False
        self.step(host, partition, ev.EntriesProposed(count))
        return True

    def configure(self, name: str, configuration: Configuration, partition: int | None = None) -> list[ev.Effect]:
        return self.step(self.hosts[name], self.partitions[0] if partition is None else partition, ev.ConfigurationProposed(configuration))

    def swap(self, name: str, target: Member, partition: int | None = None) -> list[ev.Effect]:
        return self.step(self.hosts[name], self.partitions[0] if partition is None else partition, ev.SwapProposed(target))

    # -- time

    def at(self, at_ns: int, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_ns, self._next_number(), happen))

    def run(self, duration_ns: int) -> None:
        """Let time pass: timers, beats, and in a cluster that runs by itself everything that is due."""
        end_ns = self.now_ns + duration_ns
        steps, last_ns = 0, -1
        while True:
            at_ns, happen = self._next()
            if at_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, at_ns)
            steps = steps + 1 if self.now_ns == last_ns else 0
            last_ns = self.now_ns
            assert steps < STEPS_AT_ONE_TIME_MAX, "time stands still:\n" + "\n".join(self.tail(40))
            happen()
        self.now_ns = end_ns

    def _next(self) -> tuple[int, Callable[[], None]]:
        """What happens next, and when."""
        best_ns, best = 1 << 70, _nothing
        if self._agenda:
            best_ns, best = self._agenda[0][0], self._pop_agenda
        for host in self.hosts.values():
            if not host.runs:
                continue
            local_ns = host.beat_ns
            for replica in host.replicas.values():
                local_ns = min(local_ns, replica.wake_ns)
            at_ns = host.true_ns(local_ns)
            if at_ns < best_ns:
                best_ns, best = at_ns, lambda host=host: self._let_time_pass(host)  # type: ignore[misc]
        return best_ns, best

    def _pop_agenda(self) -> None:
        heapq.heappop(self._agenda)[2]()

    def _let_time_pass(self, host: Host) -> None:
        now_ns = host.local_ns
        for partition, replica in list(host.replicas.items()):
            if replica.wake_ns <= now_ns and host.replicas.get(partition) is replica:
                self.step(host, partition, ev.TimePassed())
        if host.beat_ns <= now_ns:
            host.beat_ns = now_ns + self.times.beat_ns
            self._beat(host)

    def _beat(self, host: Host) -> None:
        """Beats go out by the loop that serves, and only while the disk answers (design.md, section 7)."""
        self.connect_all()
        self._give_up_silent_connections(host)
        if host.syncing and host.local_ns - host.sync_begun_ns > self.times.support_ns:
            self.faults["beats not sent for a slow disk"] += 1
            return
        announcement = Announcement(host.incarnation, host.primaries_version, dict(host.primaries))
        for peer in list(host.connected):
            self._send(host, peer, Beat(host.local_ns, announcement))


def _nothing() -> None:
    raise AssertionError("nothing happens any more")
