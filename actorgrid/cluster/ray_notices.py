"""What a Ray cluster says of its nodes, turned into what is to be done: a pure function of what is seen now.

It is level-triggered: it gets the nodes as they are, not what happened to them, so that a notice that was missed while Ray's control
store or the keeper was away is had with the next look. What cannot be seen, that an intent is ours and not an operator's, is in `Memory`,
which the keeper keeps on disk.

1. An alive node that does not drain has a host, pinned to it. A host never moves to another node: its data is on that node's disk.
2. A draining node gets the intent ``remove_node`` once, with Ray's deadline. An operator who takes it back has the last word.
3. What Ray takes back is taken back only if the intent was ours.
4. A node that Ray takes for dead gets nothing: placement replaces its replicas by itself, and Ray's word is no proof of anything.
5. A host that an operator stopped stays stopped as long as its Ray node is the same.
6. A host whose node is gone stays in the grid until placement has forgotten the node, which it does once that was to be removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

#: The strongest intent; one that is there already needs no notice of ours.
REMOVE_NODE = "remove_node"


class RayNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the Ray cluster.

    :ivar id: hex; names one raylet, so that a machine that was restarted comes back with another one
    :ivar name: stays when the id changes; see `ray_api.AttachedRay.look`
    :ivar address: where Ray reaches it
    :ivar drain_deadline_ms: Unix time by which it should be empty, 0: Ray gave none; None: it does not drain
    :ivar wants_host: False: it is labelled as one that has no host
    """

    id: str
    name: str
    address: str
    is_alive: bool = True
    drain_deadline_ms: int | None = None
    wants_host: bool = True


class NodeHost(msgspec.Struct, frozen=True, kw_only=True):
    """A host of the grid.

    :ivar ray_id: Ray node that its actor is pinned to; empty if no actor is known
    """

    name: str
    node: str
    ray_id: str = ""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a node, as the placement manager says.

    :ivar is_empty: nothing is left on it that the intent wants gone
    """

    intent: str = "none"
    is_empty: bool = False


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An intent that is ours: for which Ray node, and with which deadline."""

    ray_id: str
    deadline_ms: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What was done and cannot be seen.

    :ivar asked: by node: the intent that we asked for
    :ivar dismissed: by node: id of the Ray node whose host was stopped by an operator
    """

    asked: dict[str, Asked] = {}
    dismissed: dict[str, str] = {}


class StartHost(msgspec.Struct, frozen=True):
    """Start the node's host there, under its old name if it had one; first end its actor that was pinned to an earlier Ray node."""

    node: RayNode


class Drain(msgspec.Struct, frozen=True):
    """Ask for the intent ``remove_node``, then remember that it is ours."""

    node: str
    asked: Asked


class Undrain(msgspec.Struct, frozen=True):
    """Take the intent back, then forget that it was ours."""

    node: str


class ForgetDrain(msgspec.Struct, frozen=True):
    """Nobody needs to remember the intent any more."""

    node: str


class StopHost(msgspec.Struct, frozen=True):
    """The drained node is empty: stop its host in order, so that Ray's drain can end, too; the host leaves the grid."""

    host: str


class RemoveHost(msgspec.Struct, frozen=True):
    """The host went with its node, and placement has forgotten both."""

    host: str


Action = StartHost | Drain | Undrain | ForgetDrain | StopHost | RemoveHost


def alive_by_name(nodes: Sequence[RayNode], hosts: Sequence[NodeHost]) -> dict[str, RayNode]:
    """The alive nodes. Of two of one name, a mistake of labels (`doubles`), the one that has a host counts, else that with the lower id."""
    pinned = {host.ray_id for host in hosts}
    last_wins = sorted(nodes, key=lambda node: (node.id not in pinned, node.id), reverse=True)
    return {node.name: node for node in last_wins if node.is_alive}


def doubles(nodes: Sequence[RayNode], hosts: Sequence[NodeHost]) -> list[RayNode]:
    """Alive nodes that get no host because another one has the same name."""
    chosen = alive_by_name(nodes, hosts)
    return [node for node in nodes if node.is_alive and node.wants_host and chosen[node.name].id != node.id]


def lost(nodes: Sequence[RayNode], hosts: Sequence[NodeHost]) -> list[NodeHost]:
    """Hosts whose actors are pinned to a node that Ray has declared dead. One that it does not list may be forgotten, or not known yet."""
    dead = {node.id for node in nodes if not node.is_alive}
    return [host for host in hosts if host.ray_id in dead]


def needs_standing(nodes: Sequence[RayNode], hosts: Sequence[NodeHost], memory: Memory) -> bool:
    """Whether `decide` needs to know what the placement manager wants."""
    alive = alive_by_name(nodes, hosts)
    drains = any(node.drain_deadline_ms is not None for node in alive.values())
    return drains or bool(memory.asked) or any(host.node not in alive for host in hosts)


def decide(
    nodes: Sequence[RayNode], hosts: Sequence[NodeHost], intents: Mapping[str, Standing] | None, memory: Memory
) -> tuple[Action, ...]:
    """What is to be done now, in order; the numbers are those of the module's text.

    :param nodes: as Ray lists them, also dead ones
    :param hosts: of the grid, running or not
    :param intents: by node of the grid; None: the placement manager did not answer, so nothing is asked of it
    """
    alive = alive_by_name(nodes, hosts)
    by_node = {host.node: host for host in hosts}
    actions: list[Action] = []
    if intents is not None:
        for name in sorted({*memory.asked, *alive, *by_node}):
            actions += _about_drain(name, alive.get(name), by_node.get(name), intents.get(name), memory.asked.get(name))
    actions += (StartHost(node) for name, node in sorted(alive.items()) if _lacks_host(node, by_node.get(name), memory))
    return tuple(actions)


def _lacks_host(node: RayNode, host: NodeHost | None, memory: Memory) -> bool:
    if not node.wants_host or node.drain_deadline_ms is not None or memory.dismissed.get(node.name) == node.id:  # 1, 5
        return False
    return host is None or host.ray_id != node.id


def _about_drain(name: str, node: RayNode | None, host: NodeHost | None, standing: Standing | None, asked: Asked | None) -> list[Action]:
    if node is None:  # 4, 6: not alive; what was asked for goes on until placement has forgotten the node
        if standing is not None:
            return []
        gone: list[Action] = [RemoveHost(host.name)] if host is not None and not host.ray_id else []
        return [*gone, ForgetDrain(name)] if asked is not None else gone
    if node.drain_deadline_ms is None:  # 3
        if asked is None:
            return []
        return [Undrain(name)] if standing is not None and standing.intent == REMOVE_NODE else [ForgetDrain(name)]
    if standing is None:  # no host of it ever joined
        return []
    wanted = Asked(ray_id=node.id, deadline_ms=node.drain_deadline_ms)
    is_wanted = standing.intent == REMOVE_NODE
    if asked is None or asked.ray_id != node.id:  # 2
        return [] if is_wanted and asked is None else [Drain(name, wanted)]
    if is_wanted and asked != wanted:
        return [Drain(name, wanted)]
    if is_wanted and standing.is_empty and host is not None and host.ray_id == node.id:
        return [StopHost(host.name)]
    return []
