"""A grid in one object that does what placement tells it, tick by tick, and checks that it was never told anything unsafe.

Hosts come, go, and come back; builds take as many ticks as their bytes need; a command may get lost, and one decided on an old
configuration does nothing. There is no network and no log here: that is the business of other tests. What is looked at is placement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from placement.limits import Limits
from placement.observation import NO_LABELS, HostView, Intent, NodeView, Observation, PartitionView, ReplicaView
from placement.plan import Build, Command, Plan, Remove, Swap
from placement.planner import make_plan
from placement.repair import write_quorum


class Rng(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float: ...


class UnsafeCommandError(AssertionError):
    """Placement ordered what it never may."""


class SimulatedHost:
    """A host, on a node of its own unless told otherwise."""

    def __init__(self, name: str, node: str, weight: float, now_s: float, replicas_max: int) -> None:
        self.name = name
        self.node = node
        self.weight = weight
        self.replicas_max = replicas_max
        self.is_up = True
        self.since_s = now_s
        self.in_sync_from_s = 0.0


class SimulatedPartition:
    """A partition: its voters, what is being built, its primary."""

    def __init__(self, number: int, voters: list[str], size: int, calls_per_s: float, constraint: Mapping[str, str]) -> None:
        self.id = number
        self.version = 1
        self.voters = voters
        self.primary = voters[0] if voters else ""
        self.building: dict[str, float] = {}  # host -> seconds left
        self.leaving = ""
        self.bytes = size
        self.calls_per_s = calls_per_s
        self.load = 0.0
        self.constraint = constraint


class Simulation:
    """The grid.

    :param tick_s: seconds between two looks of placement
    :param lost_part: of the commands, so many get lost on their way
    :ivar commands: how many of each kind were carried out
    :ivar now_s: simulated time
    """

    def __init__(
        self, rng: Rng, *, limits: Limits | None = None, replica_set_size: int = 3, tick_s: float = 1.0, lost_part: float = 0.0
    ) -> None:
        self.limits = limits or Limits()
        self.hosts: dict[str, SimulatedHost] = {}
        self.nodes: dict[str, NodeView] = {}
        self.partitions: list[SimulatedPartition] = []
        self.commands: Counter[str] = Counter()
        self.plan: Plan | None = None
        self.now_s = 0.0
        self.frozen_why = ""
        self._replica_set_size = replica_set_size
        self._tick_s = tick_s
        self._lost_part = lost_part
        self._rng = rng
        self._intents = 0

    # -- what happens to the grid

    def add_host(
        self,
        name: str,
        *,
        node: str = "",
        zone: str = "",
        weight: float = 1.0,
        labels: Mapping[str, str] = NO_LABELS,
        replicas_max: int = 1 << 30,
    ) -> None:
        """A host joins, empty."""
        node = node or f"node-of-{name}"
        self.nodes.setdefault(node, NodeView(node, zone, labels))
        self.hosts[name] = SimulatedHost(name, node, weight, self.now_s, replicas_max)

    def stop_host(self, name: str) -> None:
        """The host is gone, for now or for good; its data is not."""
        host = self.hosts[name]
        host.is_up, host.since_s = False, self.now_s

    def start_host(self, name: str, *, catch_up_s: float = 2.0) -> None:
        """The host is back, and has everything after `catch_up_s`."""
        host = self.hosts[name]
        host.is_up, host.since_s, host.in_sync_from_s = True, self.now_s, self.now_s + catch_up_s

    def forget_host(self, name: str) -> None:
        """The host is empty and will not return."""
        assert not self.replicas_on(name), f"{name} has replicas"
        del self.hosts[name]

    def set_intent(self, node: str, intent: Intent) -> None:
        """An operator wants something of `node`; `Intent.NONE`: nothing any more."""
        self._intents += 1
        old = self.nodes[node]
        self.nodes[node] = NodeView(node, old.zone, old.labels, intent, self._intents if intent else 0)

    def create_partitions(
        self, count: int, *, size: int = 1 << 20, calls_per_s: float = 10.0, constraint: Mapping[str, str] = NO_LABELS
    ) -> None:
        """Partitions whose replicas are placed one after another round the hosts, as a bootstrap does."""
        names = list(self.hosts)
        for number in range(len(self.partitions), len(self.partitions) + count):
            voters = [names[(number + i) % len(names)] for i in range(min(self._replica_set_size, len(names)))]
            self.partitions.append(SimulatedPartition(number, voters, size, calls_per_s, constraint))

    # -- ticks

    def observe(self) -> Observation:
        """What a manager would know now."""
        hosts = [
            HostView(host.name, host.node, host.is_up, self.now_s - host.since_s, host.weight, host.replicas_max)
            for host in self.hosts.values()
        ]
        in_sync = {host.name for host in self.hosts.values() if host.is_up and self.now_s >= host.in_sync_from_s}
        partitions = [
            PartitionView(
                partition.id,
                partition.version,
                partition.primary,
                (
                    *[ReplicaView(name, is_in_sync=name in in_sync) for name in partition.voters],
                    *[ReplicaView(name, is_voter=False, is_in_sync=False) for name in partition.building],
                ),
                leaving=partition.leaving,
                bytes=partition.bytes,
                calls_per_s=partition.calls_per_s,
                load=partition.load,
                constraint=partition.constraint,
            )
            for partition in self.partitions
        ]
        return Observation(list(self.nodes.values()), hosts, partitions, self._replica_set_size, self.frozen_why)

    def tick(self) -> Plan:
        """Placement looks, its commands are carried out, and time passes.

        :raises UnsafeCommandError: a command that may never be given
        """
        plan = self.plan = make_plan(self.observe(), self.limits)
        for command in plan.commands:
            if self._rng.random() >= self._lost_part:
                self._do(command)
        self.now_s += self._tick_s
        for partition in self.partitions:
            self._advance(partition)
        return plan

    def _advance(self, partition: SimulatedPartition) -> None:
        up = [name for name in partition.voters if self._is_up(name)]
        has_quorum = len(up) >= write_quorum(len(partition.voters))
        if not has_quorum:
            partition.primary = ""
            return
        if partition.primary not in up:
            partition.primary = up[0]
        for name in list(partition.building):
            if not self._is_up(name):
                continue
            partition.building[name] -= self._tick_s
            if partition.building[name] <= 0:
                del partition.building[name]
                partition.voters.append(name)
                partition.version += 1

    def _is_up(self, name: str) -> bool:
        host = self.hosts.get(name)
        return host is not None and host.is_up

    def _is_in_sync(self, name: str) -> bool:
        return self._is_up(name) and self.now_s >= self.hosts[name].in_sync_from_s

    def _do(self, command: Command) -> None:
        partition = self.partitions[command.partition]
        if command.version != partition.version:
            return
        self.commands[type(command).__name__] += 1
        match command:
            case Build():
                self._check_build(partition, command)
                partition.leaving = command.instead_of
                partition.building[command.host] = self.limits.build_overhead_s + partition.bytes / self.limits.copy_bytes_per_s
                partition.version += 1
            case Swap():
                _require(command.host in partition.voters and self._is_in_sync(command.host), f"{command} to what cannot be primary")
                partition.primary = command.host
            case Remove():
                self._check_remove(partition, command)
                if command.host in partition.building:
                    del partition.building[command.host]
                else:
                    partition.voters.remove(command.host)
                partition.leaving = ""
                partition.version += 1

    def _check_build(self, partition: SimulatedPartition, command: Build) -> None:
        nodes = {self.hosts[name].node for name in (*partition.voters, *partition.building) if name in self.hosts}
        target = self.hosts[command.host]
        _require(target.node not in nodes, f"{command}: its node has a replica")
        _require(target.is_up and self.nodes[target.node].intent == Intent.NONE, f"{command}: the host takes none")
        labels = self.nodes[target.node].labels
        _require(partition.constraint.items() <= labels.items(), f"{command}: its node has not all of {dict(partition.constraint)}")
        _require(not partition.building, f"{command}: another one is being built")
        _require(len(partition.voters) <= self._replica_set_size, f"{command}: the set is too large already")

    def _check_remove(self, partition: SimulatedPartition, command: Remove) -> None:
        _require(command.host != partition.primary, f"{command} is the primary")
        if command.host in partition.building:
            return
        stay = [name for name in partition.voters if name != command.host]
        _require(len(stay) >= self._replica_set_size, f"{command} shrinks the set")
        _require(sum(map(self._is_in_sync, stay)) >= write_quorum(len(stay)), f"{command} takes the write quorum")

    # -- looking

    def replicas_on(self, host: str) -> int:
        """Replicas, those being built included."""
        return sum(host in partition.voters or host in partition.building for partition in self.partitions)

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Replicas and primaries of each host that is up and has no intent."""
        replicas = Counter({name: 0 for name, host in self.hosts.items() if host.is_up and not self.nodes[host.node].intent})
        primaries = Counter(replicas)
        for partition in self.partitions:
            for name in (*partition.voters, *partition.building):
                if name in replicas:
                    replicas[name] += 1
            if partition.primary in primaries:
                primaries[partition.primary] += 1
        return replicas, primaries

    def spread(self) -> tuple[int, int]:
        """(replicas, primaries): the most that a host has less the least, over those that `counts` counts."""
        return tuple(max(count.values()) - min(count.values()) for count in self.counts())  # type: ignore[return-value]

    @property
    def is_whole(self) -> bool:
        """Whether every partition has its voters, nothing more, and a primary."""
        return all(
            len(partition.voters) == self._replica_set_size and not partition.building and partition.primary
            for partition in self.partitions
        )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsafeCommandError(what)
