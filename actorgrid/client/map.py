"""Which host serves which partition, as the client knows it.

A map is a hint: a call sent to the wrong host is refused with `NotPrimaryError` and nothing happens. Hosts learn of new primaries one
from another, so what two of them send may differ and neither be the newer one as a whole. Maps are therefore merged partition by
partition: the entry with the higher epoch counts, and an epoch never goes back. A map is never changed; merging makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actorgrid.errors import ProtocolError
from actorgrid.ids import PartitionId
from actorgrid.wire.messages import HostInfo, MapMessage


class PartitionMap:
    """What is known of the partitions.

    :ivar version: how new the list of hosts is; where no epochs are known, the whole map
    :ivar cluster_id: the grid it belongs to
    :ivar hosts: where each host is reached
    :ivar primaries: for partition i (1-based) ``primaries[i - 1]`` is an index into `hosts`, or -1 where no primary is known
    :ivar epochs: for each partition the epoch of that primary, 0 where it is not known
    :ivar secondaries: for each partition indexes into `hosts` of its other replicas, as far as they are known
    """

    __slots__ = ("cluster_id", "epochs", "hosts", "primaries", "secondaries", "version")

    def __init__(
        self,
        version: int,
        cluster_id: str,
        hosts: tuple[HostInfo, ...],
        primaries: tuple[int, ...],
        epochs: Sequence[int] = (),
        secondaries: Iterable[Sequence[int]] = (),
    ) -> None:
        self.version = version
        self.cluster_id = cluster_id
        self.hosts = hosts
        self.primaries = primaries
        missing = len(primaries) - len(epochs)
        self.epochs = (*epochs, *(0,) * missing) if missing else tuple(epochs)
        known = tuple([tuple(each) for each in secondaries])
        missing = len(primaries) - len(known)
        self.secondaries: tuple[tuple[int, ...], ...] = (*known, *((),) * missing) if missing else known

    @classmethod
    def from_message(cls, message: MapMessage) -> PartitionMap:
        """Check a map that a host sent.

        :raises ProtocolError: it has no partitions, names a host that it does not list, or lists one twice
        """
        what = f"partition map version {message.version}"
        if not message.primaries:
            raise ProtocolError(f"{what} has no partitions")
        _check_hosts(what, message.primaries, -1, len(message.hosts))
        for replicas in message.secondaries:
            if replicas:
                _check_hosts(what, replicas, 0, len(message.hosts))
        for entries in (message.epochs, message.secondaries):
            if len(entries) > len(message.primaries):
                raise ProtocolError(f"{what} has entries for {len(entries)} of {len(message.primaries)} partitions")
        if len({host.name for host in message.hosts}) < len(message.hosts):
            raise ProtocolError(f"{what} lists a host twice: {', '.join(host.name for host in message.hosts):.200}")
        return cls(message.version, message.cluster_id, tuple(message.hosts), tuple(message.primaries), message.epochs, message.secondaries)

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

    def epoch_of(self, partition: int) -> int:
        """Epoch of the partition's primary, 0 where it is not known."""
        return self.epochs[partition - 1] if 1 <= partition <= len(self.epochs) else 0

    def secondaries_of(self, partition: int) -> list[HostInfo]:
        """Hosts of the partition's other replicas, as far as they are known."""
        return [self.hosts[index] for index in self.secondaries[partition - 1]] if 1 <= partition <= len(self.primaries) else []

    def host_named(self, name: str) -> HostInfo | None:
        """The host called `name`, or None."""
        return next((host for host in self.hosts if host.name == name), None)

    def partitions_of(self, host: HostInfo) -> list[PartitionId]:
        """The partitions that `host` is primary of; costs one look at each partition."""
        return [PartitionId(i) for i in range(1, len(self.primaries) + 1) if self.host_of(i) == host]

    # -- learning

    def merged_with(self, other: PartitionMap) -> PartitionMap:
        """What both maps tell together: this very map if `other` tells nothing new. Costs one look at each partition.

        - The entry with the higher epoch counts. Of equal epochs this map's does, unless it knows no primary and `other` does.
        - Secondaries change within an epoch and have no order of their own: of equal epochs the last ones heard count. A host that tells of
          none may just not know them: then those that were known stay, with the primary until now.
        - A host has the address that the map with the newer list says. One that is not in that list is dropped unless it is a primary.
        - A map without any epoch, as releases before replication send it, counts as a whole and by its version, as long as this one
          has no epochs either.
        """
        if not any(other.epochs):
            if other.version <= self.version:
                return self
            if not any(self.epochs):
                return other
        place = {host.name: index for index, host in enumerate(self.hosts)}
        for host in other.hosts:
            place.setdefault(host.name, len(place))
        at = [*(place[host.name] for host in other.hosts), -1]  # its index -> ours; -1, no host, is the last element and stays -1
        is_same_order = at[:-1] == list(range(len(other.hosts)))
        primaries, epochs, secondaries = list(self.primaries), list(self.epochs), list(self.secondaries)
        for i, (known, told) in enumerate(zip(self.epochs, other.epochs, strict=True)):
            if told < known:
                continue
            primary, told_primary = primaries[i], at[other.primaries[i]]
            replicas = other.secondaries[i] if is_same_order else tuple([at[index] for index in other.secondaries[i]])
            if told > known or primary < 0:
                if not replicas:  # whoever leads: those that were its replicas most likely still are
                    replicas = _without((primary, *secondaries[i]), told_primary)
                primaries[i], epochs[i], secondaries[i] = told_primary, told, replicas
            elif replicas and told_primary == primary and set(replicas) != set(secondaries[i]):
                secondaries[i] = replicas
        hosts, moved = self._merged_hosts(other, place, set(primaries))
        if moved is not None:
            primaries = [moved[index] for index in primaries]
            secondaries = [tuple([moved[index] for index in replicas if index in moved]) for replicas in secondaries]
        version = max(self.version, other.version)
        merged = PartitionMap(version, self.cluster_id, hosts, tuple(primaries), tuple(epochs), tuple(secondaries))
        return self if merged._is_same_as(self) else merged

    def _merged_hosts(
        self, other: PartitionMap, place: dict[str, int], needed: set[int]
    ) -> tuple[tuple[HostInfo, ...], dict[int, int] | None]:
        """The hosts of both maps, and for each index of `place` where it stands now, or None if it stands where it stood.

        Those that only the older list has, and that are not `needed`, are dropped. Of equally new lists each may have what the other lacks.
        """
        newer, older = (other, self) if other.version > self.version else (self, other)
        listed = {host.name: host for host in newer.hosts}
        known = {host.name: host for host in older.hosts} | listed
        if self.version == other.version:
            listed = known
        kept = [name for name, index in place.items() if name in listed or index in needed]
        hosts = tuple([known[name] for name in kept])
        if len(kept) == len(place):
            return hosts, None
        return hosts, {place[name]: index for index, name in enumerate(kept)} | {-1: -1}

    def with_primary(self, partition: int, host: HostInfo, epoch: int) -> PartitionMap:
        """This map, with `host` as the partition's primary in `epoch`. The primary until now counts as a secondary."""
        names = [each.name for each in self.hosts]
        hosts = self.hosts if host.name in names else (*self.hosts, host)
        new = names.index(host.name) if host.name in names else len(names)
        primaries, epochs, secondaries, at = list(self.primaries), list(self.epochs), list(self.secondaries), partition - 1
        secondaries[at] = _without((primaries[at], *secondaries[at]), new)
        primaries[at], epochs[at] = new, epoch
        return PartitionMap(self.version, self.cluster_id, hosts, tuple(primaries), epochs, secondaries)

    def _is_same_as(self, other: PartitionMap) -> bool:
        return (self.version, self.hosts, self.primaries, self.epochs, self.secondaries) == (
            other.version,
            other.hosts,
            other.primaries,
            other.epochs,
            other.secondaries,
        )

    def __repr__(self) -> str:
        return f"PartitionMap(version {self.version}, {len(self.primaries)} partitions on {len(self.hosts)} hosts)"


def parse_host(text: str) -> HostInfo | None:
    """The host that a hint names as ``name@address:port``, or None if it is no such text."""
    name, _, where = text.partition("@")
    address, _, port = where.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    return HostInfo(name, address, int(port)) if name and address and is_port and len(text) <= 512 else None


def _without(replicas: tuple[int, ...], primary: int) -> tuple[int, ...]:
    return tuple([index for index in replicas if index not in (-1, primary)])


def _check_hosts(what: str, indexes: Sequence[int], lowest: int, count: int) -> None:
    low, high = min(indexes), max(indexes)
    if low < lowest or high >= count:
        raise ProtocolError(f"{what} names host {low if low < lowest else high} of {count}")
