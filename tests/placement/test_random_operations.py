"""Random node operations, lost commands included: nothing unsafe is ever ordered, and when it is over the grid comes to rest, balanced."""

from __future__ import annotations

import random

import pytest

from placement.limits import Limits
from placement.observation import Intent
from placement.simulation import Simulation

#: The longest that a host is down or unwanted, in ticks, and what the grid gets to come to rest afterwards.
SPELL_MAX = 120
REST_MAX = 1500


class Operations:
    """What operators and bad luck do to a grid, never so much at a time that a partition could not be served."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.simulation = Simulation(self.rng, lost_part=self.rng.choice((0.0, 0.1)))
        zones = self.rng.choice((1, 1, 3))
        for number in range(self.rng.randint(4, 9)):
            self.simulation.add_host(f"h{number}", zone=f"z{number % zones}")
        self.simulation.create_partitions(self.rng.randint(5, 60), size=self.rng.choice((1 << 20, 100 << 20)))
        self.ends: dict[str, tuple[int, str]] = {}  # host -> (tick, how its trouble ends)
        self.joined = 0
        self.happened: set[str] = set()

    def happen(self, tick: int) -> None:
        """One operation, perhaps."""
        simulation, rng = self.simulation, self.rng
        for name, (end, how) in list(self.ends.items()):
            if end <= tick:
                del self.ends[name]
                if how == "start":
                    simulation.start_host(name)
                else:
                    simulation.set_intent(simulation.hosts[name].node, Intent.NONE)
        if rng.random() > 0.05:
            return
        idle = [name for name in simulation.hosts if name not in self.ends]
        what = rng.choice(("stop", "restart", "remove_node", "pause", "join", "forget"))
        if what == "join" and self.joined < 4:
            self.joined += 1
            simulation.add_host(f"new{self.joined}", zone=f"z{self.joined % 3}" if simulation.nodes["node-of-h1"].zone != "z0" else "z0")
        elif what == "forget":
            for name, host in list(simulation.hosts.items()):
                is_leaving = simulation.nodes[host.node].intent == Intent.REMOVE_NODE
                if is_leaving and host.is_up and not simulation.replicas_on(name) and len(simulation.hosts) > 4:
                    self.ends.pop(name, None)
                    simulation.forget_host(name)
        elif len(idle) > 3 and len(self.ends) < 2:
            name = rng.choice(idle)
            how = "start" if what == "stop" else "intent"
            if how == "start":
                simulation.stop_host(name)
            elif what in ("restart", "remove_node", "pause"):
                simulation.set_intent(simulation.hosts[name].node, Intent[what.upper()])
            else:
                return
            self.ends[name] = tick + rng.randint(1, SPELL_MAX), how
        else:
            return
        self.happened.add(what)


@pytest.mark.parametrize("seed", range(40))
def test_random_operations_end_in_rest_and_balance(seed: int) -> None:
    operations = Operations(seed)
    simulation = operations.simulation
    for tick in range(600):
        operations.happen(tick)
        simulation.tick()
    for name, (_, how) in operations.ends.items():
        if how == "start":
            simulation.start_host(name)
        else:
            simulation.set_intent(simulation.hosts[name].node, Intent.NONE)
    for host in simulation.hosts.values():
        simulation.set_intent(host.node, Intent.NONE)
    quiet = 0
    for _ in range(REST_MAX):
        plan = simulation.tick()
        quiet = quiet + 1 if not plan.commands and simulation.is_whole else 0
        if quiet > Limits().quiet_s + 5:
            break
    assert simulation.plan is not None
    assert quiet, f"no rest: {simulation.plan.commands[:3]} {list(simulation.plan.refusals.values())[:3]}"
    replicas, primaries = simulation.spread()
    assert primaries <= 1, simulation.counts()
    assert replicas <= 1 or len({node.zone for node in simulation.nodes.values()}) > 1, simulation.counts()
    assert simulation.plan.is_balanced
