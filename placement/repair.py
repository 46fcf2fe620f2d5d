"""What one partition needs next: it has too few or too many replicas, one that must go, or a primary that must not stay where it is.

One step per tick, and one replica at a time: build, then (after the new one votes) swap the primary if it is the one to go, then remove.
A set is never shrunk first.
"""

from __future__ import annotations

from collections.abc import Iterator

from placement.candidates import best_target, reasons, satisfies, zones_of
from placement.ledger import Ledger
from placement.observation import PartitionView, ReplicaView
from placement.plan import Build, Command, Refusal, Remove, Rule, Swap


def is_settled(ledger: Ledger, partition: PartitionView, plain: frozenset[str], *, shares_nodes: bool) -> bool:
    """Whether there is nothing to do for `partition` but perhaps balance.

    :param plain: hosts that are up and of which nothing is wanted
    :param shares_nodes: some node has more than one host
    """
    replicas = partition.replicas
    if len(replicas) != ledger.set_size or partition.primary not in plain or partition.is_changing:
        return False
    for replica in replicas:
        if not replica.is_in_sync or replica.is_lost or not replica.is_voter or replica.host not in plain:
            return False
    return not (partition.constraint or shares_nodes) or _misplaced(ledger, partition) is None


def write_quorum(voters: int) -> int:
    """Of so many voters."""
    return voters // 2 + 1


def victim_of(ledger: Ledger, partition: PartitionView) -> ReplicaView | None:
    """The member that goes when the set is, or is about to be, larger than it should be; None if it is not.

    First what is lost, then what is on hosts that are away for good or leaving, then what is misplaced, then what was named when the
    build was ordered, then what is on the fullest host; never what was built last.
    """
    if len(partition.replicas) <= ledger.set_size:
        return None
    voters = [replica for replica in partition.replicas if replica.is_voter]
    if not voters:
        return None
    misplaced = _misplaced(ledger, partition)
    zones = zones_of(ledger, partition)
    weights, counts, index = ledger.weights, ledger.replicas, ledger.index

    newest = voters[-1] if len(voters) > ledger.set_size else None

    def urgency(replica: ReplicaView) -> tuple[bool, bool, int, bool, bool, bool, int, float, str]:
        number = index.get(replica.host)
        intent = ledger.intent_of(replica.host)
        node = ledger.node_of(replica.host)
        return (
            replica.is_lost,
            ledger.is_gone_for_good(replica.host),
            int(intent) if intent.takes_replicas_away else 0,
            misplaced is not None and replica.host == misplaced.host,
            replica.host == partition.leaving,
            replica is not newest,
            zones[node.zone],
            counts[number] / weights[number] if number is not None else 0.0,
            replica.host,
        )

    return max(voters, key=urgency)


def _misplaced(ledger: Ledger, partition: PartitionView) -> ReplicaView | None:
    """A voter where the hard rules forbid it."""
    nodes: set[str] = set()
    for replica in partition.replicas:
        node = ledger.node_of(replica.host)
        if node.name in nodes and replica.is_voter:
            return replica
        nodes.add(node.name)
        if replica.is_voter and not satisfies(node, partition.constraint.items()):
            return replica
    return None


def next_step(ledger: Ledger, partition: PartitionView) -> Command | Refusal | None:
    """What to do for a partition that is not settled, or why nothing is done; None: nothing is needed."""
    if not partition.primary:
        return _no_primary(ledger, partition)
    if partition.is_changing:
        return Refusal(partition.id, Rule.CHANGE_UNDER_WAY, "a change of its configuration or primary is not over yet")
    voters = [replica for replica in partition.replicas if replica.is_voter]
    for replica in partition.replicas:
        if not replica.is_voter:
            return _tend_build(ledger, partition, replica)
    if len(voters) > ledger.set_size:
        victim = victim_of(ledger, partition)
        assert victim is not None
        return _remove(ledger, partition, voters, victim)
    away = _swap_away(ledger, partition)
    if isinstance(away, Swap):
        return away
    # A primary that cannot go anywhere yet may need just the replica that is to be built.
    if len(voters) < ledger.set_size:
        step: Command | Refusal | None = _build(ledger, partition, f"{len(voters)} of {ledger.set_size} replicas")
    else:
        step = next(_replacements(ledger, partition, voters), None)
    return step if isinstance(step, Build) else (away or step)


def _no_primary(ledger: Ledger, partition: PartitionView) -> Refusal:
    down = [replica.host for replica in partition.replicas if replica.is_voter and not ledger.is_up(replica.host)]
    voters = sum(replica.is_voter for replica in partition.replicas)
    if voters - len(down) < write_quorum(voters):
        return Refusal(
            partition.id,
            Rule.NO_PRIMARY,
            f"no write quorum: {', '.join(down)} {'is' if len(down) == 1 else 'are'} down",
            "bring one of them back; if their data is lost for good: actorgrid recover PARTITION --accept-data-loss",
        )
    return Refusal(partition.id, Rule.NO_PRIMARY, "no primary at the moment; its replicas elect one")


def _tend_build(ledger: Ledger, partition: PartitionView, replica: ReplicaView) -> Command | Refusal:
    """A replica is being built: it goes on, unless it leads nowhere."""
    intent = ledger.intent_of(replica.host)
    why = ""
    if ledger.is_gone_for_good(replica.host):
        why = f"{replica.host}, which was building a replica, is away for good"
    elif intent.takes_replicas_away:
        why = f"{replica.host}, which was building a replica, is leaving"
    if why:
        return Remove(partition.id, partition.version, replica.host, replica.incarnation, why)
    if not ledger.is_up(replica.host):
        return Refusal(partition.id, Rule.RESTART_WAIT, f"{replica.host}, which builds a replica, is down and may return")
    return Refusal(partition.id, Rule.BUILDING, f"{replica.host} is building a replica")


def _remove(ledger: Ledger, partition: PartitionView, voters: list[ReplicaView], victim: ReplicaView) -> Command | Refusal:
    """Take `victim` out, if those who stay are a write quorum without it; the primary is swapped before."""
    if victim.host == partition.primary:
        return _swap(ledger, partition, f"its replica on {victim.host} is to go")
    stay = [replica for replica in voters if replica is not victim]
    in_sync = sum(replica.is_in_sync and not replica.is_lost for replica in stay)
    missing = ", ".join(replica.host for replica in stay if not replica.is_in_sync or replica.is_lost)
    if in_sync < write_quorum(len(stay)):
        return Refusal(
            partition.id,
            Rule.WRITE_QUORUM,
            f"without {victim.host} only {in_sync} of {len(stay)} would be in sync; {missing} is not",
            f"bring {missing} back",
        )
    if victim.is_in_sync and not victim.is_lost and missing:
        return Refusal(
            partition.id, Rule.NOT_IN_SYNC, f"{missing} is not in sync, so {victim.host} is still needed", f"bring {missing} back"
        )
    return Remove(partition.id, partition.version, victim.host, victim.incarnation, _why_victim(ledger, partition, victim))


def _why_victim(ledger: Ledger, partition: PartitionView, victim: ReplicaView) -> str:
    intent = ledger.intent_of(victim.host)
    if victim.is_lost or ledger.is_gone_for_good(victim.host):
        return f"{victim.host} is away for good, and its place is taken"
    if intent.takes_replicas_away:
        return f"{victim.host} is leaving ({intent.name.lower()}), and its place is taken"
    if victim.host == partition.leaving:
        return f"the place of {victim.host} is taken"
    return f"one replica more than {ledger.set_size}; {victim.host} has the most"


def _swap_away(ledger: Ledger, partition: PartitionView) -> Command | Refusal | None:
    """The primary leaves a node that is to be restarted or emptied."""
    intent = ledger.intent_of(partition.primary)
    if not intent.takes_primaries_away:
        return None
    if ledger.observation.frozen_why:
        return _frozen(ledger, partition)
    return _swap(ledger, partition, f"the node of {partition.primary} has the intent {intent.name.lower()}")


def _swap(ledger: Ledger, partition: PartitionView, why: str) -> Command | Refusal:
    """Swap the primary to the best of the others: on a host that stays, with the fewest primaries for its weight."""
    best: tuple[bool, float, str] | None = None
    for replica in partition.replicas:
        if replica.host == partition.primary or not (replica.is_voter and replica.is_in_sync and replica.may_lead) or replica.is_lost:
            continue
        number = ledger.index.get(replica.host)
        if number is None or not ledger.hosts[number].is_up or ledger.nodes[number].intent.takes_primaries_away:
            continue
        rank = not ledger.stays[number], (ledger.primaries[number] + 1) / ledger.weights[number], replica.host
        best = rank if best is None else min(best, rank)
    if best is None:
        others = ", ".join(
            f"{replica.host} {_why_no_primary(ledger, replica)}" for replica in partition.replicas if replica.host != partition.primary
        )
        # Who is behind or has just come back can be primary soon; who is to go himself cannot.
        may_come = any(
            replica.host != partition.primary and not ledger.intent_of(replica.host).takes_primaries_away for replica in partition.replicas
        )
        return Refusal(
            partition.id,
            Rule.NOT_IN_SYNC if may_come else Rule.NO_CANDIDATE,
            f"{why}, and no other replica can be primary{' yet' if may_come else ''}: {others or 'there is none'}",
            "" if may_come else "add a node, or cancel another drain",
        )
    if not ledger.may_swap(partition.primary, best[2]):
        return Refusal(partition.id, Rule.BUDGET, f"{why}; other swaps come first")
    return Swap(partition.id, partition.version, best[2], why)


def _why_no_primary(ledger: Ledger, replica: ReplicaView) -> str:
    intent = ledger.intent_of(replica.host)
    if not ledger.is_up(replica.host):
        return "is down"
    if intent.takes_primaries_away:
        return f"has the intent {intent.name.lower()} itself"
    if replica.is_voter and replica.is_in_sync:
        return "has just come back"
    return "is not in sync" if replica.is_voter else "is being built"


def _replacements(ledger: Ledger, partition: PartitionView, voters: list[ReplicaView]) -> Iterator[Command | Refusal]:
    """For each voter that cannot stay: another one is built, the most urgent first."""
    waiting: Refusal | None = None
    for replica in voters:
        if replica.is_lost and ledger.is_up(replica.host) and not ledger.intent_of(replica.host).takes_replicas_away:
            yield Refusal(partition.id, Rule.BUILDING, f"{replica.host} has lost its replica and builds it anew")
        elif ledger.is_gone_for_good(replica.host):
            yield _build(ledger, partition, f"{replica.host} is away for good", replica.host)
        elif not ledger.is_up(replica.host):
            host = ledger.host(replica.host)
            down_s = host.for_s if host is not None else 0.0
            wait_s = ledger.limits.replica_restart_wait_s
            why = f"{replica.host} is down for {down_s:.0f} s and may return; it is replaced after {wait_s:.0f} s"
            waiting = Refusal(partition.id, Rule.RESTART_WAIT, why)
    if waiting is not None:
        yield waiting
    misplaced = _misplaced(ledger, partition)
    leaving = [replica for replica in voters if ledger.intent_of(replica.host).takes_replicas_away]
    leaving.sort(key=lambda replica: ledger.node_of(replica.host).intent_no)
    for replica in leaving:
        if ledger.observation.frozen_why:
            yield _frozen(ledger, partition)
        intent = ledger.intent_of(replica.host).name.lower()
        yield _build(ledger, partition, f"the node of {replica.host} has the intent {intent}", replica.host)
    if misplaced is not None:
        # Two on one node are a danger, one on the wrong node is what somebody wants otherwise.
        if ledger.observation.frozen_why and not satisfies(ledger.node_of(misplaced.host), partition.constraint.items()):
            yield _frozen(ledger, partition)
        yield _build(ledger, partition, f"its replica on {misplaced.host} is where none of it may be", misplaced.host)


def _frozen(ledger: Ledger, partition: PartitionView) -> Refusal:
    return Refusal(partition.id, Rule.FROZEN, f"moves are frozen: {ledger.observation.frozen_why}", "actorgrid unfreeze")


def _build(ledger: Ledger, partition: PartitionView, why: str, leaving: str = "") -> Command | Refusal:
    """Build one more replica on the best host there is."""
    if not ledger.has_build_left(partition.primary):
        return Refusal(partition.id, Rule.BUDGET, f"{why}; other replicas are copied from {partition.primary} first")
    target = best_target(ledger, partition, leaving)
    if target is None:
        return Refusal(
            partition.id,
            Rule.NO_CANDIDATE,
            f"{why}, and no host may take a replica: {reasons(ledger, partition)}",
            "add a node, or cancel what empties one",
        )
    if not ledger.may_build(partition.primary, target):
        return Refusal(partition.id, Rule.BUDGET, f"{why}; {ledger.hosts[target].name} builds others first")
    return Build(partition.id, partition.version, ledger.hosts[target].name, why, leaving)
