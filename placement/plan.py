"""What a tick of placement decides: commands, refusals, and the standing of every drain. Each carries its reason."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from msgspec import Struct

from placement.observation import Intent


class Rule(enum.StrEnum):
    """Why something is not done, in a word that scripts can rely on."""

    NO_PRIMARY = "no_primary"
    CHANGE_UNDER_WAY = "change_under_way"
    RESTART_WAIT = "restart_wait"
    NO_CANDIDATE = "no_candidate"
    WRITE_QUORUM = "write_quorum"
    NOT_IN_SYNC = "not_in_sync"
    BUDGET = "budget"
    FROZEN = "frozen"
    BUILDING = "building"
    ANOTHER_DRAIN = "another_drain"
    PRIMARY_HERE = "primary_here"


class Build(Struct, frozen=True, tag=True):
    """Let `host` build a replica of the partition, as an idle secondary; its primary promotes it once it has caught up.

    :ivar instead_of: host whose replica is to go then, noted in the configuration, so that every manager knows it; empty: a gap is filled
    """

    partition: int
    version: int
    host: str
    why: str
    instead_of: str = ""


class Swap(Struct, frozen=True, tag=True):
    """Let the replica on `host` be the primary."""

    partition: int
    version: int
    host: str
    why: str


class Remove(Struct, frozen=True, tag=True):
    """Take a member out of the configuration and drop its data; never the primary."""

    partition: int
    version: int
    host: str
    incarnation: int
    why: str


Command = Build | Swap | Remove


class Refusal(Struct, frozen=True):
    """Something a partition needs and does not get now.

    :ivar help: what would make it possible; empty: nothing but patience
    """

    partition: int
    rule: Rule
    why: str
    help: str = ""


class Drain(Struct, frozen=True):
    """How far a node with an intent is.

    :ivar is_done: it may be taken away or restarted
    :ivar estimate_s: until it is, at the expected speed; -1: never, as things are
    :ivar pending: what stands between, at most one for each partition
    """

    node: str
    intent: Intent
    is_done: bool
    replicas_left: int
    primaries_left: int
    bytes_left: int
    estimate_s: float
    pending: Sequence[Refusal]


class Plan(Struct, frozen=True):
    """One tick.

    :ivar refusals: by partition
    :ivar drains: of nodes with an intent
    :ivar is_balanced: nothing is left to move for balance
    """

    commands: Sequence[Command]
    refusals: dict[int, Refusal]
    drains: Sequence[Drain]
    is_balanced: bool
