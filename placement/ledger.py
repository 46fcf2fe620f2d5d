"""The counts of one tick: what each host has, what it will have once the moves under way are over, and what of the budgets is spent.

Hosts are numbered here, in the order of the observation: ten thousand partitions are looked at in every tick.
"""

from __future__ import annotations

from placement.limits import Limits
from placement.observation import HostView, Intent, NodeView, Observation, PartitionView

UNKNOWN_NODE = NodeView("")


class Ledger:
    """What the tick knows of the hosts.

    :ivar index: host name -> number
    :ivar nodes: the node of each host
    :ivar is_plain: nothing is wanted of the host, and it is up
    :ivar stays: replicas there may stay, and new ones may come: up, no intent
    :ivar replicas: on each host, those being built included, those about to be removed not
    :ivar primaries: on each host, as they will be after this tick's swaps
    :ivar bytes: of the replicas on each host
    :ivar calls_per_s: of the primaries on each host
    :ivar load: user-reported, of the primaries on each host
    """

    def __init__(self, observation: Observation, limits: Limits) -> None:
        self.observation = observation
        self.limits = limits
        self.set_size = observation.replica_set_size
        self.hosts = observation.hosts
        count = len(self.hosts)
        self.index = {host.name: number for number, host in enumerate(self.hosts)}
        nodes = {node.name: node for node in observation.nodes}
        self.nodes = [nodes.get(host.node) or NodeView(host.node) for host in self.hosts]
        self.stays = [host.is_up and node.intent == Intent.NONE for host, node in zip(self.hosts, self.nodes, strict=True)]
        self.weights = [max(host.weight, 1e-9) for host in self.hosts]
        self.replicas = [0] * count
        self.primaries = [0] * count
        self.bytes = [0] * count
        self.calls_per_s = [0.0] * count
        self.load = [0.0] * count
        self.builds = 0
        self.builds_to = [0] * count
        self.builds_from = [0] * count
        self.swaps = 0
        self.swaps_from = [0] * count
        self.swaps_to = [0] * count

    def host(self, name: str) -> HostView | None:
        number = self.index.get(name)
        return self.hosts[number] if number is not None else None

    def node_of(self, name: str) -> NodeView:
        number = self.index.get(name)
        return self.nodes[number] if number is not None else UNKNOWN_NODE

    def is_up(self, name: str) -> bool:
        number = self.index.get(name)
        return number is not None and self.hosts[number].is_up

    def intent_of(self, name: str) -> Intent:
        number = self.index.get(name)
        return self.nodes[number].intent if number is not None else Intent.REMOVE_NODE

    def is_gone_for_good(self, name: str) -> bool:
        """Whether the host is away for so long that its replicas are to be replaced. One that nobody has heard of is."""
        number = self.index.get(name)
        if number is None:
            return True
        host = self.hosts[number]
        return not host.is_up and host.for_s >= self.limits.replica_restart_wait_s

    # -- counting

    def count(self, partition: PartitionView) -> None:
        """Take a partition as it is into the counts."""
        index = self.index
        size = partition.bytes
        for replica in partition.replicas:
            number = index.get(replica.host)
            if number is None:
                continue
            self.replicas[number] += 1
            self.bytes[number] += size
            if not replica.is_voter:
                self.builds += 1
                self.builds_to[number] += 1
        number = index.get(partition.primary)
        if partition.is_swapping:
            self.swaps += 1
            if number is not None:
                self.swaps_from[number] += 1
        if number is not None:
            self.primaries[number] += 1
            self.calls_per_s[number] += partition.calls_per_s
            self.load[number] += partition.load
            if any(not replica.is_voter for replica in partition.replicas):
                self.builds_from[number] += 1

    def will_lose(self, partition: PartitionView, host: str) -> None:
        """A replica of the partition is about to go from `host`."""
        number = self.index.get(host)
        if number is not None:
            self.replicas[number] -= 1
            self.bytes[number] -= partition.bytes

    # -- budgets

    def may_build(self, source: str, target: int) -> bool:
        """Whether one more build from the primary on `source` is within the budgets."""
        return self.builds_to[target] < self.limits.builds_per_host_max and self.has_build_left(source)

    def has_build_left(self, source: str) -> bool:
        """Whether the primary on `source` may be copied from at all."""
        from_number = self.index.get(source)
        return self.builds < self.limits.builds_max and (
            from_number is None or self.builds_from[from_number] < self.limits.builds_per_host_max
        )

    def built(self, partition: PartitionView, target: int) -> None:
        """A build on `target` has been decided."""
        self.builds += 1
        self.builds_to[target] += 1
        from_number = self.index.get(partition.primary)
        if from_number is not None:
            self.builds_from[from_number] += 1
        self.replicas[target] += 1
        self.bytes[target] += partition.bytes

    def may_swap(self, source: str, target: str = "") -> bool:
        """Whether one more primary may leave `source` now, and go to `target` if that is named."""
        from_number, to_number = self.index.get(source), self.index.get(target)
        per_host = self.limits.swaps_per_host_max
        return (
            self.swaps < self.limits.swaps_max
            and (from_number is None or self.swaps_from[from_number] < per_host)
            and (to_number is None or self.swaps_to[to_number] < per_host)
        )

    def swapped(self, partition: PartitionView, target: str) -> None:
        """A swap to `target` has been decided."""
        self.swaps += 1
        for name, sign in ((partition.primary, -1), (target, 1)):
            number = self.index.get(name)
            if number is not None:
                self.primaries[number] += sign
                self.calls_per_s[number] += sign * partition.calls_per_s
                self.load[number] += sign * partition.load
        for name, counts in ((partition.primary, self.swaps_from), (target, self.swaps_to)):
            number = self.index.get(name)
            if number is not None:
                counts[number] += 1
