"""Which host may take a replica of a partition, and which is best; of the others, what keeps them from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from placement.ledger import Ledger
from placement.observation import Intent, NodeView, PartitionView


def why_not(ledger: Ledger, partition: PartitionView, number: int) -> str:
    """What keeps host `number` from taking a replica of `partition`, by the hard rules; empty: nothing does."""
    host, node = ledger.hosts[number], ledger.nodes[number]
    for replica in partition.replicas:
        if replica.host == host.name:
            return "has one already"
        if ledger.node_of(replica.host).name == node.name:
            return f"{replica.host} on the same node {node.name} has one"
    if not host.is_up:
        return "is down"
    if node.intent != Intent.NONE:
        return f"its node has the intent {node.intent.name.lower()}"
    for label, value in partition.constraint.items():
        if node.labels.get(label) != value:
            return f"its node lacks the label {label}={value}"
    if ledger.replicas[number] >= host.replicas_max:
        return f"has its {host.replicas_max} replicas"
    return ""


def satisfies(node: NodeView, constraint: Iterable[tuple[str, str]]) -> bool:
    """Whether the node has all the labels that a partition asks for."""
    return all(node.labels.get(label) == value for label, value in constraint)


def best_target(ledger: Ledger, partition: PartitionView, leaving: str) -> int | None:
    """The host that should take a replica; None: no host may.

    In a zone with the fewest others, then the one with the fewest replicas for its weight.

    :param leaving: the host whose replica the new one takes the place of, so that its zone counts as free; empty: none
    """
    zones = zones_of(ledger, partition, leaving)
    best: tuple[int, bool, float, int, int] | None = None
    replicas, weights, nodes, to = ledger.replicas, ledger.weights, ledger.nodes, ledger.builds_to
    spent = ledger.limits.builds_per_host_max
    for number in range(len(ledger.hosts)):
        if not ledger.stays[number]:
            continue
        rank = (
            zones[nodes[number].zone],
            to[number] >= spent,
            (replicas[number] + 1) / weights[number],
            ledger.bytes[number],
            number,
        )
        if (best is None or rank < best) and not why_not(ledger, partition, number):
            best = rank
    return best[-1] if best is not None else None


def zones_of(ledger: Ledger, partition: PartitionView, without: str = "") -> Counter[str]:
    """How many replicas of `partition` each zone has."""
    return Counter(ledger.node_of(replica.host).zone for replica in partition.replicas if replica.host != without)


def reasons(ledger: Ledger, partition: PartitionView) -> str:
    """Why no host may take a replica of `partition`, the same reasons taken together."""
    grouped: dict[str, list[str]] = {}
    for number, host in enumerate(ledger.hosts):
        grouped.setdefault(why_not(ledger, partition, number) or "could", []).append(host.name)
    return "; ".join(f"{_names(names)}: {why}" for why, names in grouped.items())


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
