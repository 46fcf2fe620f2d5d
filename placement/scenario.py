"""Scenarios as text: a line is something that happens to the simulated grid, or something that is expected of it.

::

    hosts 6 zones 3                    host-1 .. host-6, in turn in zone-1 .. zone-3; `zones` may be left out
    partitions 64 [bytes 1000000] [calls 10]
    tick 20                            so many looks of placement
    settle within 300                  ticks until nothing is to be done, at most so many
    add host-7 [zone zone-1] [weight 2] [node NODE] [max 100] [label disk=ssd]
    constrain disk=ssd [partition 3]   replicas may be on nodes with this label alone; ``nothing`` takes it back
    stop host-2 / start host-2         the process, not its data
    intent host-1 remove_node          of its node; `none` takes it back
    forget host-1                      an empty host leaves the list
    freeze REASON / unfreeze
    hot 3 calls 5000                   partition 3 does so many calls/s from now on; `bytes` and `load` likewise
    mark                               count commands from here on
    expect moves <= 48                 builds since the mark; also `swaps`, `removes`, `commands`
    expect spread replicas <= 1        most less least of any host; also `primaries`
    expect replicas host-1 == 0        also `primaries host-1`
    expect drain host-1 done           or `pending RULE`, or `waiting`: not done
    expect rule 3 no_candidate         why nothing is done about partition 3
    expect constraints                 every replica is where its partition's constraint lets it be
    expect zones                       no zone has two replicas of a partition
    expect whole                       every partition has all its voters and a primary

Operators are <=, >=, ==. Everything behind ``#`` is for the reader.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Final

from placement.candidates import satisfies
from placement.limits import Limits
from placement.observation import Intent
from placement.simulation import Rng, Simulation

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
COUNTED: Final = {"moves": "Build", "swaps": "Swap", "removes": "Remove"}


class ScenarioError(ValueError):
    """A line makes no sense, or what it expects is not so."""


class Scenario:
    """Runs the lines of one text.

    :ivar simulation: the grid, as it is after the lines so far
    :ivar ticks: how many there were
    """

    def __init__(self, rng: Rng, *, limits: Limits | None = None, lost_part: float = 0.0) -> None:
        self.simulation = Simulation(rng, limits=limits, lost_part=lost_part)
        self.ticks = 0
        self._mark: Counter[str] = Counter()

    def run(self, text: str) -> None:
        """Do every line.

        :raises ScenarioError: with the number of the line
        """
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                self._do(words)
            except (ScenarioError, AssertionError) as error:
                raise ScenarioError(f"line {number}, {' '.join(words)!r}: {error}") from error
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise ScenarioError(f"line {number}, {' '.join(words)!r} makes no sense: {error!r}") from error

    def _do(self, words: list[str]) -> None:
        simulation = self.simulation
        match words:
            case ["hosts", count, *rest]:
                self._hosts(int(count), int(_options(rest, "zones").get("zones", "1")))
            case ["partitions", count, *rest]:
                options = _options(rest, "bytes", "calls")
                simulation.create_partitions(
                    int(count), size=int(options.get("bytes", "1000000")), calls_per_s=float(options.get("calls", "10"))
                )
            case ["tick", count]:
                self._tick(int(count))
            case ["settle", "within", count]:
                self._settle(int(count))
            case ["add", name, *rest]:
                options = _options(rest, "zone", "weight", "node", "max", "label")
                simulation.add_host(
                    name,
                    node=options.get("node", ""),
                    zone=options.get("zone", ""),
                    weight=float(options.get("weight", "1")),
                    labels=_labels(options.get("label", "nothing")),
                    replicas_max=int(options.get("max", str(1 << 30))),
                )
            case ["constrain", label, *rest]:
                only = _options(rest, "partition").get("partition")
                for partition in simulation.partitions if only is None else [simulation.partitions[int(only)]]:
                    partition.constraint = _labels(label)
            case ["stop", name]:
                simulation.stop_host(name)
            case ["start", name]:
                simulation.start_host(name)
            case ["forget", name]:
                simulation.forget_host(name)
            case ["intent", name, intent]:
                simulation.set_intent(simulation.hosts[name].node, Intent[intent.upper()])
            case ["freeze", *reason]:
                simulation.frozen_why = " ".join(reason)
            case ["unfreeze"]:
                simulation.frozen_why = ""
            case ["hot", number, *rest]:
                partition = simulation.partitions[int(number)]
                options = _options(rest, "bytes", "calls", "load")
                partition.load = float(options.get("load", str(partition.load)))
                partition.calls_per_s = float(options.get("calls", str(partition.calls_per_s)))
                partition.bytes = int(options.get("bytes", str(partition.bytes)))
            case ["mark"]:
                self._mark = Counter(simulation.commands)
            case ["expect", *what]:
                self._expect(what)
            case _:
                raise ScenarioError("not a line of a scenario")

    def _hosts(self, count: int, zones: int) -> None:
        for number in range(1, count + 1):
            self.simulation.add_host(f"host-{number}", zone=f"zone-{(number - 1) % zones + 1}" if zones > 1 else "")

    def _tick(self, count: int) -> None:
        for _ in range(count):
            self.simulation.tick()
            self.ticks += 1

    def _settle(self, within: int) -> None:
        """Nothing is commanded, refused or being built any more; quiet periods count, so a joining host is waited for."""
        quiet = 0
        for _ in range(within):
            self._tick(1)
            plan = self.simulation.plan
            assert plan is not None
            quiet = quiet + 1 if not plan.commands and self.simulation.is_whole else 0
            if quiet > self.simulation.limits.quiet_s + 2:
                return
        raise ScenarioError(f"still busy after {within} ticks: {self._state()}")

    def _state(self) -> str:
        plan = self.simulation.plan
        if plan is None:
            return "no tick yet"
        refusals = "; ".join(f"{refusal.partition}: {refusal.rule} {refusal.why}" for refusal in list(plan.refusals.values())[:3])
        commands = "; ".join(str(command) for command in plan.commands[:3])
        return f"commands {commands or 'none'}, refusals {refusals or 'none'}, spread {self.simulation.spread()}"

    def _expect(self, words: list[str]) -> None:
        simulation = self.simulation
        match words:
            case ["spread", "replicas" | "primaries" as what, sign, bound]:
                _compare(simulation.spread()[what == "primaries"], sign, bound)
            case ["replicas", name, sign, bound]:
                _compare(simulation.replicas_on(name), sign, bound)
            case ["primaries", name, sign, bound]:
                _compare(sum(partition.primary == name for partition in simulation.partitions), sign, bound)
            case ["drain", name, *state]:
                self._expect_drain(name, state)
            case ["rule", number, rule]:
                plan = simulation.plan
                refusal = plan.refusals.get(int(number)) if plan is not None else None
                if refusal is None or refusal.rule != rule:
                    raise ScenarioError(f"it is {refusal}")
            case ["zones"]:
                self._expect_zones()
            case ["constraints"]:
                self._expect_constraints()
            case ["whole"]:
                if not simulation.is_whole:
                    raise ScenarioError(self._state())
            case ["commands", sign, bound]:
                _compare((simulation.commands - self._mark).total(), sign, bound)
            case [what, sign, bound] if what in COUNTED:
                _compare(simulation.commands[COUNTED[what]] - self._mark[COUNTED[what]], sign, bound)
            case _:
                raise ScenarioError("not an expectation")

    def _expect_drain(self, name: str, state: list[str]) -> None:
        plan = self.simulation.plan
        node = self.simulation.hosts[name].node
        drain = next((drain for drain in plan.drains if drain.node == node), None) if plan is not None else None
        if drain is None:
            raise ScenarioError("there is no drain of it")
        rules = {str(refusal.rule) for refusal in drain.pending}
        is_so = {"done": drain.is_done, "waiting": not drain.is_done, "pending": state[-1] in rules}[state[0]]
        if not is_so:
            raise ScenarioError(f"done {drain.is_done}, pending {', '.join(sorted(rules)) or 'nothing'}, {drain.replicas_left} left")

    def _expect_constraints(self) -> None:
        nodes = {name: self.simulation.nodes[host.node] for name, host in self.simulation.hosts.items()}
        for partition in self.simulation.partitions:
            for name in partition.voters:
                if not satisfies(nodes[name], partition.constraint.items()):
                    raise ScenarioError(f"partition {partition.id} is on {name}")

    def _expect_zones(self) -> None:
        zone_of = {name: self.simulation.nodes[host.node].zone for name, host in self.simulation.hosts.items()}
        for partition in self.simulation.partitions:
            if len({zone_of[name] for name in partition.voters}) < len(partition.voters):
                raise ScenarioError(f"partition {partition.id} is on {', '.join(partition.voters)}")


def _options(words: list[str], *known: str) -> dict[str, str]:
    if len(words) % 2 or set(words[::2]) - set(known):
        raise ScenarioError(f"expected {', '.join(known)}, each with a value")
    return dict(zip(words[::2], words[1::2], strict=True))


def _labels(word: str) -> dict[str, str]:
    return dict([word.split("=")]) if word != "nothing" else {}


def _compare(value: float, sign: str, bound: str) -> None:
    if not OPERATORS[sign](value, float(bound)):
        raise ScenarioError(f"it is {value:g}")
