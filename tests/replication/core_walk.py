"""Random walks through what can happen to a partition: first everything that goes wrong, then nothing more, and progress is demanded.

A walk is a function of its seed and settings. What it did is counted, so that a test can show that its faults bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from core_cluster import Cluster, Host

from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.liveness import MS, Liveness, S, Times
from actorgrid.replication.messages import Append
from actorgrid.replication.replica import Replica, Role

#: After the last fault: elections (twice, if the first is in vain), a copy, and a configuration change or three.
CALM_NS = 40 * S
#: After one entry: it may be lost with a connection that is made anew, and is sent again.
CONVERGENCE_NS = 5 * S


#: Secondaries that always want to campaign: only their promises keep them from it, so that what is wrong with promises shows (I8).
IMPATIENT = Times(election_low_ns=10 * MS, election_high_ns=600 * MS)


class WalkSettings(NamedTuple):
    """:ivar voters: of the first configuration; `hosts` beyond them are there to be moved to"""

    hosts: int = 4
    voters: int = 3
    partitions: int = 1
    slices: int = 300
    times: Times = Times()
    replica_class: type[Replica] = Replica
    liveness_class: type[Liveness] = Liveness


class Manager:
    """What placement does for the partitions (design.md, section 9), as little as keeps them alive."""

    def __init__(self, cluster: Cluster, voters_wanted: int) -> None:
        self._cluster = cluster
        self._voters_wanted = voters_wanted
        self.lost: dict[int, dict[Member, Member]] = {partition: {} for partition in cluster.partitions}
        cluster.on_effect = self._sees

    def _sees(self, host: Host, replica: Replica, effect: ev.Effect) -> None:
        if isinstance(effect, ev.ReplicaLost):
            self._cluster.judge.counts["replicas reported lost"] += 1
            self.lost[replica.partition][effect.member] = effect.successor

    def tend(self) -> None:
        """One look at every partition."""
        for partition in self._cluster.partitions:
            pair = self._cluster.primary(partition)
            if pair is not None and pair[0].runs and pair[1].serving and not pair[1].is_swapping:
                self._drop_what_is_no_member(partition, *pair)
                wanted = self._wanted(partition, pair[1])
                if wanted is not None:
                    self._cluster.configure(pair[0].name, wanted, partition)

    def _wanted(self, partition: int, replica: Replica) -> Configuration | None:
        configuration = replica.configuration
        for member, successor in list(self.lost[partition].items()):
            if member not in configuration.members:
                del self.lost[partition][member]
            elif len(configuration.voters) > 1 or member in configuration.idle:
                return configuration.replaced(member, successor)
        for member in configuration.idle:
            progress = replica.progress.get(member)
            if progress is not None and replica.is_caught_up(progress):
                return configuration.promoted(member)
        if len(configuration.members) < self._voters_wanted:
            return self.one_more(partition, configuration)
        return None

    def one_more(self, partition: int, configuration: Configuration) -> Configuration | None:
        """An idle secondary on a host that has none."""
        for host in self._cluster.hosts.values():
            if host.runs and configuration.on_host(host.name) is None and partition not in host.replicas:
                return configuration.with_idle(Member(host.name, host.disk.next_incarnation(partition)))
        return None

    def _drop_what_is_no_member(self, partition: int, host: Host, primary: Replica) -> None:
        """What the committed configuration of a primary that is certainly the last one does not name is removed from its host."""
        if primary.log.configuration_lsn > primary.committed_lsn or not primary.has_lease(host.local_ns):
            return
        for other, replica in self._cluster.replicas(partition):
            is_durable = (partition, replica.me.incarnation) in other.disk.durable
            if other.runs and replica.me not in primary.configuration.members and is_durable:
                self._cluster.drop_replica(other.name, partition)


def commit_idle(cluster: Cluster) -> None:
    """Every primary tells what is committed."""
    for partition in cluster.partitions:
        for host, replica in cluster.replicas(partition):
            if host.runs and replica.role is Role.PRIMARY:
                cluster.step(host, partition, ev.CommitIdle())


def can_lose_disk(cluster: Cluster, name: str, only: int | None = None) -> bool:
    """Whether every configuration that somebody may count with keeps a write quorum of voters with a disk."""
    concerned = [each for each in _configurations_somewhere(cluster) if only in (None, each[0])]
    return all(is_enough(cluster, partition, configuration, name) for partition, configuration in concerned)


def _configurations_somewhere(cluster: Cluster) -> list[tuple[int, Configuration]]:
    disks = [item for host in cluster.hosts.values() for item in (*host.disk.view.items(), *host.disk.durable.items())]
    found = [(partition, configuration) for (partition, _), disk in disks for _, configuration in disk.configurations()]
    for envelope in cluster.in_flight.values():
        if isinstance(envelope.payload, Append):
            found += [(envelope.payload.partition, record.configuration) for record in envelope.records if record.configuration is not None]
    return found


def is_enough(cluster: Cluster, partition: int, configuration: Configuration, without: str = "") -> bool:
    """Whether the members with a disk are a write quorum, also if those who are to vote next do."""
    disks = {name: host.disk.view.keys() & host.disk.durable.keys() for name, host in cluster.hosts.items() if name != without}
    left = [member for member in configuration.members if (partition, member.incarnation) in disks.get(member.host, ())]
    enough_voters = sum(member in configuration.voters for member in left) >= configuration.write_quorum
    return enough_voters and 2 * len(left) > len(configuration.members)


class Aftermath:
    """The liveness phase: no more faults, and in bounded time every partition serves, has a lease, is whole, and everybody has the same."""

    def __init__(self, cluster: Cluster, manager: Manager, voters_wanted: int) -> None:
        self.cluster = cluster
        self.manager = manager
        self._voters_wanted = voters_wanted

    def calm(self) -> None:
        """Network and disks work, every host runs."""
        cluster = self.cluster
        cluster.let_go()
        cluster.loss = cluster.doubling = 0.0
        cluster.latency_ns = lambda: int(cluster.rng.uniform(0.1, 3) * MS)
        cluster.sync_ns = lambda: int(cluster.rng.uniform(0.5, 8) * MS)
        cluster.heal()
        for name, host in cluster.hosts.items():
            if host.is_alive and host.is_paused:
                cluster.resume(name)
        for name, host in cluster.hosts.items():
            if not host.is_alive:
                cluster.start(name)
        cluster.reconnect_lossy()

    def settle(self) -> None:
        cluster = self.cluster
        self.calm()
        end_ns = cluster.now_ns + CALM_NS
        while True:
            cluster.run(200 * MS)
            self.manager.tend()
            commit_idle(cluster)
            missing = self.what_is_missing()
            if not missing:
                break
            assert cluster.now_ns < end_ns, f"no progress in {CALM_NS // S} s: {missing}\n" + "\n".join(cluster.tail(60))
        self._converge()

    def _converge(self) -> None:
        """A proposal of every partition commits, and reaches every replica."""
        cluster = self.cluster
        for partition in cluster.partitions:
            pair = cluster.primary(partition)
            assert pair is not None
            before = len(cluster.judge.partitions[partition].committed)
            assert cluster.propose(pair[0].name, 1, partition), f"{pair[1].me} takes nothing\n" + "\n".join(cluster.tail(60))
            end_ns = cluster.now_ns + CONVERGENCE_NS
            lsns: dict[str, tuple[int, int]] = {}
            while len(set(lsns.values())) != 1 or max(lsns.values()) <= (before, before):
                assert cluster.now_ns < end_ns, f"{lsns}, before {before}\n" + "\n".join(cluster.tail(60))
                cluster.run(100 * MS)
                commit_idle(cluster)
                lsns = {str(replica.me): (replica.last_lsn, replica.committed_lsn) for _, replica in cluster.replicas(partition)}

    def what_is_missing(self) -> str:
        """What keeps the partitions from being whole; empty if nothing does."""
        for partition in self.cluster.partitions:
            replicas = self.cluster.replicas(partition)
            primaries = [(host, replica) for host, replica in replicas if replica.role is Role.PRIMARY]
            if len(primaries) != 1:
                return f"partition {partition} has the primaries {[str(replica.me) for _, replica in primaries]}"
            host, primary = primaries[0]
            configuration = primary.configuration
            here = {replica.me for _, replica in replicas}
            if not primary.serving or primary.is_swapping:
                return f"{primary.me} does not serve"
            if len(configuration.voters) < min(self._voters_wanted, len(self.cluster.hosts)) or configuration.idle:
                return f"partition {partition} has {configuration}"
            if here != set(configuration.members):
                return f"partition {partition} has {configuration}, and there are {sorted(map(str, here))}"
            if not primary.has_lease(host.local_ns):
                return f"{primary.me} has no lease"
            behind = [str(replica.me) for _, replica in replicas if replica.last_lsn != primary.last_lsn]
            if behind:
                return f"{behind} are behind {primary.last_lsn}"
        return ""


class Walk:
    """One walk."""

    def __init__(self, seed: int, settings: WalkSettings) -> None:
        self.rng = random.Random(seed)
        self.settings = settings
        names = [chr(ord("a") + index) for index in range(settings.hosts)]
        rates = [self.rng.choice((1000, 1000, 1050, 1100)) for _ in names]
        self.cluster = Cluster(
            names,
            voters=names[: settings.voters],
            partitions=tuple(range(1, settings.partitions + 1)),
            seed=self.rng.randrange(1 << 62),
            rates=rates,
            auto=True,
            times=settings.times,
            replica_class=settings.replica_class,
            liveness_class=settings.liveness_class,
        )
        self.manager = Manager(self.cluster, settings.voters)
        self.proposed = 0
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (10, self._crash),
            (14, self._restart),
            (3, self._lose_disk),
            (3, self._fail_storage),
            (8, self._pause),
            (12, self._resume),
            (8, self._cut),
            (10, self._heal),
            (6, self._weather),
            (12, self._tell_deaths),
            (4, self._fail_copy),
            (8, self._truncate),
            (10, self._swap),
            (14, self._configure),
            (20, self.manager.tend),
            (8, self._commit_idle),
            (5, self._race),
        ]

    # -- the two phases

    def stray(self) -> None:
        """Whatever can happen, happens."""
        weights = [weight for weight, _ in self._actions]
        actions = [action for _, action in self._actions]
        for _ in range(self.settings.slices):
            self.traffic()
            self.cluster.run(int(self.rng.choice((1, 5, 20, 100, 400)) * self.rng.random() * 2 * MS))
            self.rng.choices(actions, weights)[0]()

    def settle(self) -> None:
        """Nothing goes wrong any more."""
        Aftermath(self.cluster, self.manager, self.settings.voters).settle()

    # -- traffic

    def traffic(self) -> None:
        for partition in self.cluster.partitions:
            for host, replica in self.cluster.replicas(partition):
                if replica.serving and self.rng.random() < 0.8:
                    self.proposed += self.cluster.propose(host.name, self.rng.choice((1, 1, 2, 5)), partition)

    # -- faults

    def _some(self, hosts: list[str]) -> str | None:
        return self.rng.choice(hosts) if hosts else None

    def _living(self) -> list[str]:
        return [name for name, host in self.cluster.hosts.items() if host.is_alive]

    def _crash(self) -> None:
        living = self._living()
        if len(living) * 2 > len(self.cluster.hosts) or self.rng.random() < 0.3:
            name = self._some(living)
            if name is not None:
                host = self.cluster.hosts[name]
                self.cluster.crash(name, self.rng.choice((0, self.rng.randint(0, 20), 1 << 30)))
                if self.rng.random() < 0.4:
                    self.cluster.run(int(self.rng.random() * 60 * MS))
                    if not host.is_alive:
                        self.cluster.start(name)

    def _restart(self) -> None:
        name = self._some([name for name, host in self.cluster.hosts.items() if not host.is_alive])
        if name is not None:
            self.cluster.start(name)

    def _lose_disk(self) -> None:
        """One at a time, and only where everybody else has everything: what two lose is lost."""
        name = self._some([name for name, host in self.cluster.hosts.items() if not host.is_alive and host.disk.durable])
        if name is not None and can_lose_disk(self.cluster, name):
            self.cluster.lose_disk(name)

    def _fail_storage(self) -> None:
        partition = self.rng.choice(self.cluster.partitions)
        name = self._some([host.name for host, _ in self.cluster.replicas(partition) if host.runs])
        if name is not None and can_lose_disk(self.cluster, name, partition):
            self.cluster.retire(name, partition)

    def _pause(self) -> None:
        name = self._some([name for name, host in self.cluster.hosts.items() if host.runs])
        if name is not None:
            self.cluster.pause(name)
            if self.rng.random() < 0.5:
                self.cluster.run(int(self.rng.random() * 3 * S))
                if self.cluster.hosts[name].is_alive:
                    self.cluster.resume(name)

    def _resume(self) -> None:
        name = self._some([name for name, host in self.cluster.hosts.items() if host.is_alive and host.is_paused])
        if name is not None:
            self.cluster.resume(name)

    def _cut(self) -> None:
        one, other = self.rng.sample(list(self.cluster.hosts), 2)
        match self.rng.randrange(4):
            case 0:
                self.cluster.isolate(one)
            case 1:
                self.cluster.cut(one, other)
                self.cluster.cut(other, one)
            case _:
                self.cluster.cut(one, other)

    def _heal(self) -> None:
        self.cluster.heal()

    def _weather(self) -> None:
        """How well network and disks do for a while."""
        cluster, rng = self.cluster, self.rng
        cluster.loss = rng.choice((0, 0, 0.02, 0.2))
        cluster.doubling = rng.choice((0, 0, 0.05, 0.3))
        slowest = rng.choice((3, 3, 30, 300)) * MS
        cluster.latency_ns = lambda: int(cluster.rng.random() ** 2 * slowest)
        slow_sync = rng.choice((8, 8, 60, 2000)) * MS
        cluster.sync_ns = lambda: int(cluster.rng.random() ** 2 * slow_sync)

    def _tell_deaths(self) -> None:
        for name, host in self.cluster.hosts.items():
            life = host.incarnation if not host.is_alive else host.incarnation - 1
            if life > 0 and self.rng.random() < 0.7:
                self.cluster.tell_death(name, life, [other for other in self.cluster.hosts if other != name and self.rng.random() < 0.8])

    def _fail_copy(self) -> None:
        for number in list(self.cluster.copies):
            self.cluster.end_copy(number, is_good=False)

    def _truncate(self) -> None:
        for partition in self.cluster.partitions:
            for host, replica in self.cluster.replicas(partition):
                if host.runs and self.rng.random() < 0.5:
                    kept = self.rng.choice((0, 5, 50))
                    self.cluster.truncate_log(host.name, partition, max(1, replica.committed_lsn - kept))

    # -- what operators and managers do

    def _a_primary(self) -> tuple[Host, Replica, int] | None:
        partition = self.rng.choice(self.cluster.partitions)
        pairs = [pair for pair in self.cluster.replicas(partition) if pair[1].role is Role.PRIMARY and pair[0].runs]
        if not pairs:
            return None
        host, replica = self.rng.choice(pairs)
        return host, replica, partition

    def _swap(self) -> None:
        found = self._a_primary()
        if found is not None:
            host, replica, partition = found
            self.cluster.judge.counts["swaps wanted"] += 1
            self.cluster.swap(host.name, self.rng.choice(replica.configuration.voters), partition)

    def _configure(self) -> None:
        found = self._a_primary()
        if found is None:
            return
        host, replica, partition = found
        configuration = replica.configuration
        wanted: Configuration | None = None
        match self.rng.randrange(5):
            case 0 | 1:
                wanted = self.manager.one_more(partition, configuration)
            case 2:
                if configuration.idle:
                    wanted = configuration.promoted(self.rng.choice(configuration.idle))
            case 3:
                smaller = configuration.without(self.rng.choice(configuration.members))
                if len(smaller.voters) > 1 and is_enough(self.cluster, partition, smaller):
                    wanted = smaller
            case _:
                wanted = configuration.reordered(self.rng.choice(configuration.voters))
        if wanted is not None:
            self.cluster.configure(host.name, wanted, partition)

    def _commit_idle(self) -> None:
        commit_idle(self.cluster)

    def _race(self) -> None:
        """Things that are rare apart are rarer together: a crash right after a swap, a change of members, or a burst."""
        self.rng.choice((self._swap, self._configure, self.traffic))()
        self.cluster.run(int(self.rng.random() * 20 * MS))
        self.rng.choice((self._crash, self._pause, self._cut, self._truncate))()
