"""Primaries go home: after a failover the load comes back to the host that had it, one partition at a time.

Where a partition's primary should be is what the grid was begun with (`first_configuration`). A host that has returned gets its primaries
back once its replica has everything and the connection to it has stood for a while, by swaps that callers do not notice. The placement
manager will decide this by load; until then it keeps a grid that lost a host from serving with the others' cores for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from actorgrid.host.partition import HostedPartition
from actorgrid.host.peers import Peers
from actorgrid.replication.configuration import Member, first_configuration

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
#: A host that keeps coming and going gets nothing back.
STEADY_S: Final = 5.0
#: After a swap that did not come about the others have time.
PATIENCE_S: Final = 2.0


class HomingOwner(Protocol):
    """What homing needs of its host."""

    partitions: dict[int, HostedPartition]


class Homing:
    """Hands partitions over to the hosts where their primaries belong."""

    def __init__(self, owner: HomingOwner, peers: Peers, hosts: tuple[str, ...], replica_set_size: int) -> None:
        self._owner = owner
        self._peers = peers
        self._hosts = hosts
        self._replica_set_size = replica_set_size
        self._homes: dict[int, str] = {}
        self.swapped_total = 0
        self.abandoned_total = 0

    async def run(self) -> None:
        """Look for something to hand over, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for number in list(self._owner.partitions):
                partition = self._owner.partitions.get(number)
                target = self._target(partition) if partition is not None else None
                if partition is None or target is None:
                    continue
                if await partition.hand_over(target):
                    self.swapped_total += 1
                else:
                    self.abandoned_total += 1
                    await asyncio.sleep(PATIENCE_S)

    def _target(self, partition: HostedPartition) -> Member | None:
        """The replica that should be primary instead of this one, if it could be now."""
        if not partition.serving:
            return None
        core = partition.replica
        home = self._homes.get(partition.id)
        if home is None:
            home = self._homes[partition.id] = first_configuration(partition.id, self._hosts, self._replica_set_size).voters[0].host
        if home == core.me.host or not self._peers.is_steady(home, STEADY_S):
            return None
        member = next((member for member in core.configuration.voters if member.host == home), None)
        progress = core.progress.get(member) if member is not None else None
        return member if progress is not None and core.is_caught_up(progress) else None
