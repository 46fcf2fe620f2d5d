"""How far nodes with an intent are from being empty, what stands between, and how long it will take."""

from __future__ import annotations

from placement.ledger import Ledger
from placement.limits import Limits
from placement.observation import Intent, NodeView, PartitionView
from placement.plan import Drain, Refusal, Rule
from placement.repair import write_quorum


def drains_of(ledger: Ledger, refusals: dict[int, Refusal]) -> list[Drain]:
    """One for each node with an intent, in the order in which the intents came."""
    nodes = sorted((node for node in ledger.observation.nodes if node.intent), key=lambda node: (node.intent_no, node.name))
    if not nodes:
        return []
    on_node: dict[str, list[PartitionView]] = {node.name: [] for node in nodes}
    for partition in ledger.observation.partitions:
        for name in {ledger.node_of(replica.host).name for replica in partition.replicas}:
            if name in on_node:
                on_node[name].append(partition)
    # Nodes that may be restarted now are counted as away by those that come after them: two at once must not take a quorum together.
    cleared: set[str] = set()
    found = []
    for node in nodes:
        drain = _drain_of(ledger, node, on_node[node.name], refusals, cleared)
        if drain.is_done and node.intent >= Intent.RESTART:
            cleared.add(node.name)
        found.append(drain)
    return found


def _drain_of(ledger: Ledger, node: NodeView, partitions: list[PartitionView], refusals: dict[int, Refusal], cleared: set[str]) -> Drain:
    is_primary_here = {
        partition.id: bool(partition.primary) and ledger.node_of(partition.primary).name == node.name for partition in partitions
    }
    primaries_left = sum(is_primary_here.values())
    pending: list[Refusal] = []
    if node.intent.takes_primaries_away:
        for partition in partitions:
            waits = _pending(ledger, node, partition, refusals, cleared, is_primary_here=is_primary_here[partition.id])
            if waits is not None:
                pending.append(waits)
    goes = node.intent.takes_replicas_away
    replicas_left = len(partitions) if goes else 0
    bytes_left = sum(partition.bytes for partition in partitions) if goes else 0
    primaries_left = primaries_left if node.intent.takes_primaries_away else 0
    return Drain(
        node=node.name,
        intent=node.intent,
        is_done=ledger.observation.is_complete and not pending and not replicas_left and not primaries_left,
        replicas_left=replicas_left,
        primaries_left=primaries_left,
        bytes_left=bytes_left,
        estimate_s=_estimate(ledger, replicas_left, primaries_left, bytes_left, pending),
        pending=pending,
    )


def _pending(
    ledger: Ledger, node: NodeView, partition: PartitionView, refusals: dict[int, Refusal], cleared: set[str], *, is_primary_here: bool
) -> Refusal | None:
    """What keeps `partition` from doing without this node."""
    refusal = refusals.get(partition.id)
    if node.intent.takes_replicas_away:
        return refusal
    if is_primary_here:
        return refusal or Refusal(partition.id, Rule.PRIMARY_HERE, "its primary is about to be swapped away")
    voters = [replica for replica in partition.replicas if replica.is_voter]
    needed = write_quorum(len(voters))
    elsewhere = [replica for replica in voters if ledger.node_of(replica.host).name != node.name]
    in_sync = [replica for replica in elsewhere if replica.is_in_sync and not replica.is_lost and ledger.is_up(replica.host)]
    if len(in_sync) < needed:
        missing = ", ".join(replica.host for replica in elsewhere if replica not in in_sync) or "no other voter"
        return Refusal(
            partition.id,
            Rule.WRITE_QUORUM,
            f"without {node.name} {len(in_sync)} voters are in sync, a write quorum is {needed}; not in sync: {missing}",
            f"bring {missing} back",
        )
    left = [replica for replica in in_sync if ledger.node_of(replica.host).name not in cleared]
    if len(left) < needed:
        others = ", ".join(sorted({ledger.node_of(replica.host).name for replica in in_sync} & cleared))
        return Refusal(partition.id, Rule.ANOTHER_DRAIN, f"{others} may be restarted first, and both together would take the write quorum")
    return None


def _estimate(ledger: Ledger, replicas: int, primaries: int, size: int, pending: list[Refusal]) -> float:
    if any(refusal.rule in (Rule.NO_CANDIDATE, Rule.WRITE_QUORUM, Rule.FROZEN) for refusal in pending):
        return -1.0
    return estimate_s(ledger.limits, replicas, primaries, size, targets=sum(ledger.stays))


def estimate_s(limits: Limits, replicas: int, primaries: int, size: int, *, targets: int) -> float:
    """Seconds until so many replicas and primaries are elsewhere.

    :param size: bytes of the replicas
    :param targets: hosts that take replicas
    """
    lanes = max(1, min(limits.builds_max, limits.builds_per_host_max * max(1, targets), replicas))
    moving_s = (size / limits.copy_bytes_per_s + replicas * limits.build_overhead_s) / lanes
    return moving_s + primaries * limits.swap_s / max(1, limits.swaps_per_host_max)
