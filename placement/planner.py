"""One tick of placement: from an observation to commands, refusals and the standing of drains."""

from __future__ import annotations

from collections import Counter

from placement.balance import Balance
from placement.candidates import why_not
from placement.drains import drains_of
from placement.ledger import Ledger
from placement.limits import Limits
from placement.observation import Observation, PartitionView
from placement.plan import Build, Command, Plan, Refusal, Rule, Swap
from placement.repair import is_settled, next_step, victim_of


def make_plan(observation: Observation, limits: Limits | None = None) -> Plan:
    """What to do next, and why; a function of its arguments alone."""
    return _tick(observation, limits or Limits())[0]


def _tick(observation: Observation, limits: Limits) -> tuple[Plan, Ledger]:
    ledger = Ledger(observation, limits)
    plain = frozenset(host.name for host, stays in zip(ledger.hosts, ledger.stays, strict=True) if stays)
    hosts_on = Counter(host.node for host in ledger.hosts)
    shares_nodes = any(count > 1 for count in hosts_on.values())
    settled: list[PartitionView] = []
    unsettled: list[PartitionView] = []
    for partition in observation.partitions:
        ledger.count(partition)
        is_quiet = is_settled(ledger, partition, plain, shares_nodes=shares_nodes)
        (settled if is_quiet else unsettled).append(partition)
    for partition in unsettled:
        # What is larger than it should be will lose one: count that now, or balance would send more moves after it.
        victim = victim_of(ledger, partition)
        if victim is not None:
            ledger.will_lose(partition, victim.host)
    commands: list[Command] = []
    refusals: dict[int, Refusal] = {}
    for partition in sorted(unsettled, key=lambda each: _urgency(ledger, each)):
        step = next_step(ledger, partition)
        if isinstance(step, Refusal):
            refusals[partition.id] = step
        elif step is not None:
            commands.append(step)
            if isinstance(step, Build):
                ledger.built(partition, ledger.index[step.host])
            elif isinstance(step, Swap):
                ledger.swapped(partition, step.host)
    is_balanced = False
    if not observation.frozen_why and all(host.for_s >= limits.quiet_s for host in observation.hosts):
        balance = Balance(ledger, settled)
        # What goes for another reason changes the counts: what it leaves uneven is evened out afterwards, not twice.
        needs_builds = any(isinstance(command, Build) for command in commands) or any(
            refusal.rule == Rule.BUDGET for refusal in refusals.values()
        )
        balance.run(may_build=not needs_builds)
        commands += balance.commands
        is_balanced = not balance.wants_more and not unsettled
    return Plan(commands, refusals, drains_of(ledger, refusals), is_balanced), ledger


def _urgency(ledger: Ledger, partition: PartitionView) -> tuple[int, int, int]:
    """Those with the fewest replicas in sync first, then by the order of intents."""
    in_sync = sum(replica.is_voter and replica.is_in_sync for replica in partition.replicas)
    wanted = [ledger.node_of(replica.host).intent_no for replica in partition.replicas if ledger.intent_of(replica.host)]
    return min(in_sync, ledger.set_size), min(wanted, default=0), partition.id


def explain(observation: Observation, partition_id: int, limits: Limits | None = None) -> list[str]:
    """Lines that tell how a partition stands, what is done or not done about it, and which hosts may take a replica.

    :raises KeyError: there is no such partition
    """
    partition = next((each for each in observation.partitions if each.id == partition_id), None)
    if partition is None:
        raise KeyError(partition_id)
    plan, ledger = _tick(observation, limits or Limits())
    lines = [f"partition {partition.id}: epoch {partition.epoch}, configuration {partition.version}, primary {partition.primary or 'none'}"]
    if partition.constraint:
        wanted = ", ".join(f"{label}={value}" for label, value in sorted(partition.constraint.items()))
        lines.append(f"  only on nodes with {wanted}")
    for replica in partition.replicas:
        role = "primary" if replica.host == partition.primary else "voter" if replica.is_voter else "being built"
        state = "lost" if replica.is_lost else "in sync" if replica.is_in_sync else "behind or not connected"
        node = ledger.node_of(replica.host)
        intent = f", {node.name} has the intent {node.intent.name.lower()}" if node.intent else ""
        lines.append(f"  {replica.host}: {role}, {state}{'' if ledger.is_up(replica.host) else ', its host is down'}{intent}")
    done = [f"  next: {_describe(command)}" for command in plan.commands if command.partition == partition_id]
    refusal = plan.refusals.get(partition_id)
    if refusal is not None:
        help_ = f"; {refusal.help}" if refusal.help else ""
        done.append(f"  waits ({refusal.rule}): {refusal.why}{help_}")
    lines += done or ["  nothing to do: it is whole" + ("" if plan.is_balanced else ", and no move of it is wanted for balance now")]
    for number, host in enumerate(observation.hosts):
        lines.append(f"  {host.name} for another replica: {why_not(ledger, partition, number) or 'may take one'}")
    return lines


def _describe(command: Command) -> str:
    verb = {"Build": "build a replica on", "Swap": "make primary", "Remove": "remove the replica on"}[type(command).__name__]
    return f"{verb} {command.host}: {command.why}"
