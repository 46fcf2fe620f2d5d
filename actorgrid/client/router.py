"""Where calls go: the map as it is known now, the lanes to the partitions, and which host each of them leads to.

- The primary that a lane follows never has a lower epoch than one that it followed before.
- While calls wait for a primary that is not known or cannot be reached, hosts are asked for what they know of the map, and not faster
  than `MapFinder` allows.
- It decides nothing about single calls: that is the `Caller`, which hears by `RouterOwner.on_moved` that a lane has a new primary.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Container, Iterator, Sequence
from typing import Protocol

from actorgrid.client.lane import Lane
from actorgrid.client.link import Link
from actorgrid.client.links import Links
from actorgrid.client.map import PartitionMap, parse_host
from actorgrid.client.map_finder import MapFinder
from actorgrid.errors import ActorGridError, NotPrimaryError, ProtocolError
from actorgrid.ids import PartitionId, partition_of
from actorgrid.settings import ClientSettings
from actorgrid.wire.messages import MapMessage


class RouterOwner(Protocol):
    """What is told and asked; the `Caller` is one."""

    def make_lane(self, partition: PartitionId) -> Lane:
        """A lane to `partition`."""

    def make_link(self, address: tuple[str, int]) -> Link:
        """A link to the host at `address`."""

    def mark_dirty(self, lane: Lane) -> None:
        """`lane` has calls to send, and leads elsewhere than before."""

    def on_moved(self, lane: Lane) -> None:
        """The primary that the map names for this partition has changed, or its epoch has."""


class Router:
    """The map, the lanes and the links of one client.

    :param seeds: (host, port) pairs to ask for the map
    :param cluster_id: the only grid to talk to; empty: the one whose map comes first
    :param wants_standby: keep connections beyond those that calls need
    :ivar map: what is known of the partitions, or None before the first map
    :ivar map_changed: set with every change of `map`
    :ivar lanes: by partition
    """

    def __init__(
        self,
        owner: RouterOwner,
        settings: ClientSettings,
        rng: random.Random,
        *,
        seeds: Sequence[tuple[str, int]],
        cluster_id: str,
        wants_standby: bool,
    ) -> None:
        self.map: PartitionMap | None = None
        self.map_changed = asyncio.Event()
        self.lanes: dict[int, Lane] = {}
        self.links = Links(seeds, owner.make_link)
        self.cluster_id = cluster_id
        self._owner = owner
        self._wants_standby = wants_standby
        self._loop = asyncio.get_running_loop()
        self._finder = MapFinder(settings, rng)
        self._positions: dict[int, int] = {}  # newest log position of each partition that a host told us
        self._homeless: dict[Lane, None] = {}  # lanes with calls to send and no connection to a host that takes them
        self._replicas: dict[Lane, tuple[PartitionMap, Link | None, tuple[Link, ...]]] = {}  # what they were made of, and they

    # -- the map

    @property
    def known_map(self) -> PartitionMap:
        """What is known of the partitions.

        :raises ActorGridError: nothing is, yet
        """
        if self.map is None:
            raise ActorGridError("the client is not connected: use it as `async with grid.connect(...) as client`")
        return self.map

    @property
    def is_begun(self) -> bool:
        """Whether a primary of any partition has been heard of."""
        return self.map is not None and (any(self.map.epochs) or max(self.map.primaries) >= 0)

    def set_map(self, message: MapMessage | PartitionMap) -> bool:
        """Take what a map tells and is not known yet (see `PartitionMap.merged_with`); returns whether there was anything.

        :raises ProtocolError: it cannot be, or it is of another grid
        """
        new = message if isinstance(message, PartitionMap) else PartitionMap.from_message(message)
        if new.cluster_id != (self.cluster_id or new.cluster_id):
            raise ProtocolError(f"map of grid {new.cluster_id}, expected grid {self.cluster_id}")
        old = self.map
        if old is not None:
            if new.partition_count != old.partition_count:
                raise ProtocolError(f"map with {new.partition_count} partitions, the grid was created with {old.partition_count}")
            new = old.merged_with(new)
            if new is old:
                return False
        self._adopt(new)
        return True

    def on_map(self, message: MapMessage) -> None:
        """A host sent its map, asked or not.

        :raises ProtocolError: as `set_map`
        """
        self._finder.on_answer(self._loop.time(), is_newer=self.set_map(message))

    def learn_primary(self, lane: Lane, error: NotPrimaryError, refused_by: str) -> None:
        """Follow the hint of a host that refused, unless a later primary is known: a deposed one may point backwards.

        :param refused_by: name of the link
        """
        known = self.map
        if known is None or not error.primary or error.partition not in (-1, lane.partition):
            return
        host = known.host_named(error.primary.partition("@")[0]) or parse_host(error.primary)
        epoch = known.epoch_of(lane.partition)
        if host is None or error.epoch < epoch or not 1 <= lane.partition <= known.partition_count:
            return
        if error.epoch > epoch or (error.epoch and known.host_of(lane.partition) is None):
            self._adopt(known.with_primary(lane.partition, host, error.epoch))
        elif lane.link is not None and lane.link.name == refused_by:
            self._point(lane, self.links.get((host.address, host.port)))

    def _adopt(self, new: PartitionMap) -> None:
        old, self.map = self.map, new
        self.cluster_id = new.cluster_id
        self.map_changed.set()
        for partition, lane in self.lanes.items():
            primary = new.host_of(partition), new.epoch_of(partition)
            if old is None or primary != (old.host_of(partition), old.epoch_of(partition)):
                self.route(lane)
                self._owner.on_moved(lane)
        if old is None or new.hosts != old.hosts:
            self.links.hurry_standby()

    def epoch_of(self, lane: Lane) -> int:
        """Epoch of the lane's primary, 0 where it is not known."""
        return self.map.epoch_of(lane.partition) if self.map is not None else 0

    # -- lanes

    def lane_of(self, address: str) -> Lane:
        """The lane of an actor's partition.

        :raises ActorGridError: the map is not known yet
        """
        return self.lane(partition_of(address, self.known_map.partition_count))

    def lane(self, partition: PartitionId) -> Lane:
        """The lane of a partition."""
        lane = self.lanes.get(partition)
        if lane is None:
            lane = self.lanes[partition] = self._owner.make_lane(partition)
            lane.since_lsn = self._positions.get(partition, 0)
            self.route(lane)
        return lane

    def lanes_waiting_for(self, link: Link) -> Iterator[Lane]:
        """Lanes that lead to `link` and have calls to send."""
        for lane in self.lanes.values():
            if lane.link is link and lane.is_waiting():
                yield lane

    def route(self, lane: Lane) -> None:
        """Point `lane` at the host that the map names, and flush what waits for it."""
        host = self.map.host_of(lane.partition) if self.map is not None else None
        self._point(lane, self.links.get((host.address, host.port)) if host is not None else None)

    def _point(self, lane: Lane, link: Link | None) -> None:
        if link is lane.link:
            return
        lane.link = link
        if lane.unsent:
            self._owner.mark_dirty(lane)

    def replicas_of(self, lane: Lane) -> tuple[Link, ...]:
        """The links of the partition's replicas, the primary's first where one is known; they are connected if they are not."""
        found = self._replicas.get(lane)
        if found is not None and found[0] is self.map and found[1] is lane.link:
            return found[2]
        known = self.known_map
        links = [self.links.get((host.address, host.port)) for host in known.secondaries_of(lane.partition)]
        replicas = tuple(dict.fromkeys([lane.link, *links] if lane.link is not None else links))
        self._replicas[lane] = known, lane.link, replicas
        for link in replicas:
            link.ensure_connected()
        return replicas

    def note_positions(self, positions: dict[int, int]) -> None:
        """Log positions of partitions, as a host told them at the handshake."""
        for partition, lsn in positions.items():
            self._positions[partition] = max(lsn, self._positions.get(partition, 0))
            if (lane := self.lanes.get(partition)) is not None:
                lane.since_lsn = max(lsn, lane.since_lsn)

    # -- looking for primaries

    def ask_for_map(self, *, prefer: Link | None = None, silent: Container[str] = ()) -> None:
        """Ask a host for the map unless one was asked a moment ago.

        :param prefer: the host that likely knows most
        :param silent: names of links that do not answer
        """
        now = self._loop.time()
        if not self._finder.is_due(now):
            return
        links = self.links.known(self.map)
        others = [link for link in links if link.name not in silent] if silent else links
        self._finder.ask(others or links, self.map.version if self.map else 0, now, prefer=prefer)

    def strand(self, lane: Lane) -> None:
        """`lane` has calls to send and no connection to a host that takes them: look for one until it has."""
        self._homeless[lane] = None
        if _is_lost(lane.link):
            self.ask_for_map()

    def on_failed(self, link: Link) -> None:
        """A host could not be reached: perhaps the partitions that calls wait for have moved."""
        for lane in self.lanes_waiting_for(link):
            self.ask_for_map()
            self.route(lane)  # a hint may have led here against the map

    def on_lost(self, link: Link) -> None:
        """A connection has ended."""
        self._finder.on_lost(link)

    def look(self, now: float) -> None:
        """Go on looking for what is missing; call it every few tens of milliseconds while there are calls."""
        if self._homeless:
            for lane in tuple(self._homeless):
                link = lane.link
                if not lane.is_waiting() or (link is not None and link.connection is not None and not link.is_leaving):
                    del self._homeless[lane]
            if any(_is_lost(lane.link) for lane in self._homeless):
                self.ask_for_map()
        if self._wants_standby and self.map is not None and self.lanes and self.links.is_standby_due(now):
            self.links.keep_standby(self.map, self._links_in_use(), now)

    def _links_in_use(self) -> set[Link]:
        used = {lane.link for lane in self.lanes.values() if lane.link is not None}
        used.update(link for _, _, links in self._replicas.values() for link in links)
        return used


def _is_lost(link: Link | None) -> bool:
    return link is None or link.is_leaving or link.is_unreachable
