"""The links of one client: one for each host, made when first needed, and a few more kept open than calls need at the moment.

A client that is connected to a failed host's fellows hears from them at once who serves in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final

from actorgrid.client.link import Link
from actorgrid.client.map import PartitionMap

#: In grids of up to so many hosts a client is connected to all of them: fewer sockets than a web browser opens for one page.
ALL_HOSTS_MAX: Final = 16
#: In larger ones, to those it needs and to so many others.
SPARE_HOSTS: Final = 2
#: A host that could not be reached is tried again after this, while calls are made.
STANDBY_EVERY_S: Final = 1.0


class Links:
    """Links by address.

    :param seeds: addresses that are asked for the map besides the hosts that it names
    :param make: makes the link to an address
    """

    def __init__(self, seeds: Iterable[tuple[str, int]], make: Callable[[tuple[str, int]], Link]) -> None:
        self._seeds = tuple(seeds)
        self._make = make
        self._links: dict[tuple[str, int], Link] = {}
        self._next_standby_at = 0.0

    def get(self, address: tuple[str, int]) -> Link:
        """The link to `address`."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = self._make(address)
        return link

    def __iter__(self) -> Iterator[Link]:
        return iter(tuple(self._links.values()))

    def known(self, partition_map: PartitionMap | None) -> list[Link]:
        """Whom to ask for the map: the hosts it names, then the seeds."""
        return [self.get(address) for address in self._known_addresses(partition_map)]

    def _known_addresses(self, partition_map: PartitionMap | None) -> dict[tuple[str, int], None]:
        hosts = partition_map.hosts if partition_map is not None else ()
        return dict.fromkeys((*((host.address, host.port) for host in hosts), *self._seeds))

    # -- more than calls need

    def hurry_standby(self) -> None:
        """Hosts have come or moved: do not wait until the next look."""
        self._next_standby_at = 0.0

    def is_standby_due(self, now: float) -> bool:
        """Whether `keep_standby` would look."""
        return now >= self._next_standby_at

    def keep_standby(self, partition_map: PartitionMap, in_use: Container[Link], now: float) -> None:
        """Connect to hosts that no call needs now, and forget links that lead nowhere.

        :param in_use: links that calls go to
        """
        self._next_standby_at = now + STANDBY_EVERY_S
        hosts = [self.get((host.address, host.port)) for host in partition_map.hosts]
        if len(hosts) > ALL_HOSTS_MAX:
            spare = [link for link in hosts if link not in in_use]
            connected = sum(link.connection is not None or link.is_connecting for link in spare)
            idle = [link for link in spare if link.connection is None and not link.is_connecting]
            # Those that never failed first: a host that is away must not be the only one that is tried.
            idle.sort(key=lambda link: link.is_unreachable)
            hosts = [link for link in hosts if link in in_use] + idle[: max(0, SPARE_HOSTS - connected)]
        for link in hosts:
            if not link.has_refused:
                link.ensure_connected()
        self._forget_idle(partition_map, in_use)

    def _forget_idle(self, partition_map: PartitionMap, in_use: Container[Link]) -> None:
        known = self._known_addresses(partition_map)
        for address, link in tuple(self._links.items()):
            if address not in known and link not in in_use and link.connection is None and not link.is_connecting:
                del self._links[address]

    async def close(self) -> None:
        """Close every link, and wait for its task."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.close()
