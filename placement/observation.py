"""What placement looks at: the grid as the hosts report it, and what operators want of its nodes.

Nothing else counts: a new manager that observes the same decides the same (design.md, section 9). How long something has been so is part
of the observation; a manager that has just taken office does not know it and says zero, which makes it patient.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

NO_LABELS: Final[Mapping[str, str]] = {}


class Intent(enum.IntEnum):
    """Why a node is being emptied; a higher one includes the lower ones (Service Fabric's repair intents).

    ``PAUSE``: nothing new comes there. ``RESTART``: its primaries go, its data stays. ``REMOVE_DATA`` and ``REMOVE_NODE``: every replica
    goes; with the latter the node is forgotten afterwards.
    """

    NONE = 0
    PAUSE = 1
    RESTART = 2
    REMOVE_DATA = 3
    REMOVE_NODE = 4

    @property
    def takes_replicas_away(self) -> bool:
        """Whether the node's replicas are to be moved elsewhere."""
        return self >= Intent.REMOVE_DATA

    @property
    def takes_primaries_away(self) -> bool:
        """Whether no primary is to stay on the node."""
        return self >= Intent.RESTART


class NodeView(Struct, frozen=True):
    """A failure domain.

    :ivar intent_no: the order in which intents came; the smaller one goes first where only one can
    """

    name: str
    zone: str = ""
    labels: Mapping[str, str] = NO_LABELS
    intent: Intent = Intent.NONE
    intent_no: int = 0


class HostView(Struct, frozen=True):
    """A host process.

    :ivar is_up: it reports, and its store answers
    :ivar for_s: for how long that has been so
    :ivar weight: its share of replicas and load, relative to others
    :ivar replicas_max: none beyond this are put there
    """

    name: str
    node: str
    is_up: bool = True
    for_s: float = 3600.0
    weight: float = 1.0
    replicas_max: int = 1 << 30


class ReplicaView(Struct, frozen=True):
    """One member of a partition's configuration, as its primary sees it.

    :ivar is_voter: else it is an idle secondary, being built
    :ivar is_in_sync: connected, and near the log's end
    :ivar is_lost: its host says that it is not there any more
    :ivar may_lead: it could be primary at once; one whose host has just restarted must keep quiet for a while
    """

    host: str
    incarnation: int = 1
    is_voter: bool = True
    is_in_sync: bool = True
    is_lost: bool = False
    may_lead: bool = True


class PartitionView(Struct, frozen=True):
    """One partition, by the report of its newest primary.

    :ivar version: of the configuration; commands name it, so that one decided on an old one does nothing
    :ivar primary: host, empty if none serves
    :ivar leaving: host whose replica goes once the one that is being built votes, as the configuration itself says; empty: none was named
    :ivar is_changing: a configuration is not committed yet, or the primary is being swapped
    :ivar is_swapping: the latter
    :ivar bytes: size of its state
    :ivar calls_per_s: what its primary does, mean over a minute or so: placement reacts to what it is told
    :ivar load: what the application itself reports, in its own unit
    :ivar constraint: labels that the nodes of its replicas must have
    """

    id: int
    version: int
    primary: str
    replicas: tuple[ReplicaView, ...]
    epoch: int = 0
    leaving: str = ""
    is_changing: bool = False
    is_swapping: bool = False
    bytes: int = 0
    calls_per_s: float = 0.0
    load: float = 0.0
    constraint: Mapping[str, str] = NO_LABELS


class Observation(Struct, frozen=True):
    """Everything placement knows.

    :ivar frozen_why: somebody has stopped all moves that are not repairs, and said why; empty: nobody has
    :ivar is_complete: every partition is among the partitions; if not, nothing is said to be done
    """

    nodes: Sequence[NodeView]
    hosts: Sequence[HostView]
    partitions: Sequence[PartitionView]
    replica_set_size: int = 3
    frozen_why: str = ""
    is_complete: bool = True
