"""Placement, pure: what is observed of a grid goes in, what should be done next and why comes out.

Read in this order:

`observation`    nodes, hosts, partitions as they are now, and the intents of the operators
`limits`         thresholds, budgets, patience
`plan`           commands, refusals, the standing of drains
`ledger`         the counts that one tick works with
`candidates`     which hosts may take a replica, and why others may not
`repair`         what one partition needs next
`balance`        equal counts of replicas and primaries, then load
`drains`         how far nodes are from being empty, and what stops them
`planner`        one tick: all of it together
`simulation`     thousands of partitions on hundreds of hosts that do what they are told, for scenarios
"""

from placement.limits import Limits
from placement.observation import HostView, Intent, NodeView, Observation, PartitionView, ReplicaView
from placement.plan import Build, Command, Drain, Plan, Refusal, Remove, Rule, Swap
from placement.planner import explain, make_plan

__all__ = [
    "Build",
    "Command",
    "Drain",
    "HostView",
    "Intent",
    "Limits",
    "NodeView",
    "Observation",
    "PartitionView",
    "Plan",
    "Refusal",
    "Remove",
    "ReplicaView",
    "Rule",
    "Swap",
    "explain",
    "make_plan",
]
