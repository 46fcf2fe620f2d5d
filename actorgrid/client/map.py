"""Which host serves which partition, as the client knows it.

A map is a hint: a call sent to the wrong host is refused with `NotPrimaryError` and nothing happens. Maps are replaced whole and
never changed, so that a map in hand stays consistent.
"""

from __future__ import annotations

from actorgrid.errors import ProtocolError
from actorgrid.ids import PartitionId
from actorgrid.wire.messages import HostInfo, MapMessage


class PartitionMap:
    """One version of the partition map.

    :ivar version: grows with every change
    :ivar cluster_id: the grid it belongs to
    :ivar hosts: where each host is reached
    :ivar primaries: for partition i (1-based) ``primaries[i - 1]`` is an index into `hosts`, or -1 where no primary is known
    """

    __slots__ = ("cluster_id", "hosts", "primaries", "version")

    def __init__(self, version: int, cluster_id: str, hosts: tuple[HostInfo, ...], primaries: tuple[int, ...]) -> None:
        self.version = version
        self.cluster_id = cluster_id
        self.hosts = hosts
        self.primaries = primaries

    @classmethod
    def from_message(cls, message: MapMessage) -> PartitionMap:
        """Check a map that a host sent.

        :raises ProtocolError: it has no partitions, or names a host that it does not list
        """
        if not message.primaries:
            raise ProtocolError(f"partition map version {message.version} has no partitions")
        low, high = min(message.primaries), max(message.primaries)
        if low < -1 or high >= len(message.hosts):
            wrong = low if low < -1 else high
            raise ProtocolError(f"partition map version {message.version} names host {wrong} of {len(message.hosts)}")
        return cls(message.version, message.cluster_id, tuple(message.hosts), tuple(message.primaries))

    @property
    def partition_count(self) -> int:
        """Fixed when the grid was created."""
        return len(self.primaries)

    def host_of(self, partition: int) -> HostInfo | None:
        """The host of the partition's primary, or None where none is known (also for the system partition)."""
        if not 1 <= partition <= len(self.primaries):
            return None
        index = self.primaries[partition - 1]
        return self.hosts[index] if index >= 0 else None

    def host_named(self, name: str) -> HostInfo | None:
        """The host called `name`, or None."""
        return next((host for host in self.hosts if host.name == name), None)

    def partitions_of(self, host: HostInfo) -> list[PartitionId]:
        """The partitions that `host` is primary of; costs one look at each partition."""
        return [PartitionId(i) for i in range(1, len(self.primaries) + 1) if self.host_of(i) == host]

    def __repr__(self) -> str:
        return f"PartitionMap(version {self.version}, {len(self.primaries)} partitions on {len(self.hosts)} hosts)"
