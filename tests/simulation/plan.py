"""What happens to a simulated grid, as text: a plan is a scenario file, and a seed is a plan that was drawn.

    # what it shows, for people
    seed 17
    hosts 3
    partitions 3
    knob session_checkpoint_entries 32
    at 1.250 kill host-2
    at 2.500 start host-2
    calm 12.000

Times are seconds of true time since every partition was served for the first time. At `calm` everything is healed and started.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Final

#: What a knob may be: name, least, most. Drawn on a logarithmic scale, in a third of the runs each.
KNOBS: Final[tuple[tuple[str, float, float], ...]] = (
    ("setting.log_retention_bytes", 64 * 1024, 1 << 20),
    ("setting.session_checkpoint_entries", 16, 512),
    ("setting.session_records_max", 64, 4096),
    ("setting.placement_quiet_s", 0.1, 5.0),
    ("setting.replica_restart_wait_s", 0.5, 20.0),
    ("setting.copy_bytes_per_s", 64 * 1024, 16 << 20),
    ("setting.activation_idle_s", 0.5, 60.0),
    ("setting.stop_grace_s", 0.5, 10.0),
    ("client.timeout_s", 3.0, 30.0),
    ("client.retry_max_s", 0.05, 0.5),
    ("client.session_window", 16, 4096),
    ("times", 0.7, 2.5),  # a factor for beats, leases, election timeouts and the patience with silent peers
    ("actorgrid.host.commit.APPLY_DELAY_S", 0.05, 2.0),
    ("actorgrid.host.host.TICK_S", 0.04, 0.25),
    ("actorgrid.host.host.REPAIR_TICK_S", 0.1, 0.6),
    ("actorgrid.host.manager.TICK_S", 0.1, 1.0),
    ("actorgrid.host.manager.TICK_LEAST_S", 0.05, 0.5),
    ("actorgrid.storage.log.LOG_TAIL_BYTES_MAX", 1024, 1 << 20),
    ("actorgrid.host.copying.WINDOW_CHUNKS", 1, 8),
    ("actorgrid.storage.copy.COPY_CHUNK_PAIRS_MAX", 4, 2048),
    ("actorgrid.host.commit.APPLY_STEPS", 1, 10),
    ("actorgrid.host.commit.IDLE_DELAY_S", 0.005, 0.2),
    ("actorgrid.host.replica_shell.UNAPPLIED_ENTRIES_MAX", 8, 2048),
    ("actorgrid.host.replica_shell.CATCH_UP_BYTES", 512, 1 << 20),
    ("actorgrid.replication.feeding.WINDOW_ENTRIES", 16, 32_768),
    ("actorgrid.replication.membership.PROMOTE_LAG_ENTRIES", 1, 512),
)
#: As `KNOBS`, in half of the runs: simulated hosts have few partitions, and would never reach the usual bound.
PACING: Final[tuple[tuple[str, float, float], ...]] = (
    ("actorgrid.host.commit.PACED_FROM_WRITERS", 1, 8),
    ("actorgrid.host.commit.PACE_NS", 100_000, 20_000_000),
)
#: What `tests.simulation.deeds.Deeds` can do.
VERBS: Final = (
    "kill-in-copy", "kill", "start", "stop", "pause", "resume", "lose-power", "kill-client", "cut", "isolate", "leave-alone", "heal",
    "traffic", "disk-eio", "disk-enospc", "disk-stall", "disk-slow", "disk-heal", "disk-wipe", "disk-flip", "disk-flip-log",
    "disk-image", "disk-old", "disk-swap", "date", "drain", "undrain", "add-host", "rebalance", "freeze", "unfreeze",
)  # fmt: skip
TICKS: Final = ("times", "actorgrid.host.host.TICK_S", "actorgrid.host.host.REPAIR_TICK_S", "actorgrid.host.manager.TICK_LEAST_S")


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: `verb` of `Deeds`, and what it is done to."""

    at_s: float
    verb: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((f"at {self.at_s:.3f}", self.verb, *self.arguments))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """See the module."""

    seed: int
    hosts: int = 3
    partitions: int = 3
    replicas: int = 3
    clients: int = 3
    callers: int = 2
    think_s: float = 0.1
    rest_s: float = 2.0
    supervised: bool = True
    clocks: tuple[int, ...] = ()
    zones: tuple[str, ...] = ()
    knobs: tuple[tuple[str, float], ...] = ()
    steps: tuple[Step, ...] = ()
    calm_s: float = 10.0
    title: str = ""

    def __str__(self) -> str:
        lines = [f"# {line}" for line in self.title.splitlines()]
        lines += [f"{name} {getattr(self, name)}" for name in ("seed", "hosts", "partitions", "replicas", "clients", "callers")]
        lines += [f"think {self.think_s:g}", f"rest {self.rest_s:g}", f"supervised {'yes' if self.supervised else 'no'}"]
        lines += [f"clocks {' '.join(map(str, self.clocks))}"] if self.clocks else []
        lines += [f"zones {' '.join(self.zones)}"] if self.zones else []
        lines += [f"knob {name} {value:g}" for name, value in self.knobs]
        lines += [str(step) for step in self.steps]
        return "\n".join([*lines, f"calm {self.calm_s:.3f}", ""])


def parse(text: str) -> Plan:
    """The plan in `text`.

    :raises ValueError: a line is none of a plan's; it is named
    """
    plan = Plan(0)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        try:
            match words:
                case []:
                    pass
                case ["#", *_]:
                    plan = dataclasses.replace(plan, title="\n".join(filter(None, (plan.title, line[2:].strip()))))
                case ["seed" | "hosts" | "partitions" | "replicas" | "clients" | "callers" as name, value]:
                    plan = dataclasses.replace(plan, **{name: int(value)})
                case ["think", value]:
                    plan = dataclasses.replace(plan, think_s=float(value))
                case ["rest", value]:
                    plan = dataclasses.replace(plan, rest_s=float(value))
                case ["supervised", "yes" | "no" as value]:
                    plan = dataclasses.replace(plan, supervised=value == "yes")
                case ["clocks", *values]:
                    plan = dataclasses.replace(plan, clocks=tuple(map(int, values)))
                case ["zones", *values]:
                    plan = dataclasses.replace(plan, zones=tuple(values))
                case ["knob", name, value] if name in [known for known, _, _ in KNOBS + PACING]:
                    plan = dataclasses.replace(plan, knobs=(*plan.knobs, (name, float(value))))
                case ["at", at, verb, *arguments] if verb in VERBS:
                    plan = dataclasses.replace(plan, steps=(*plan.steps, Step(float(at), verb, tuple(arguments))))
                case ["calm", value]:
                    plan = dataclasses.replace(plan, calm_s=float(value))
                case _:
                    raise ValueError("unknown line")
        except ValueError as error:
            raise ValueError(f"line {number} of the plan, {line!r}: {error}") from None
    return plan


def load(path: Path) -> Plan:
    """The plan in a file."""
    return parse(path.read_text(encoding="utf-8"))


def draw(seed: int) -> Plan:
    """The plan of a seed: how large the grid is, how it is set, and what happens to it."""
    return _Draw(seed).plan()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"plan {seed}")
        rng = self.rng
        self.seed = seed
        self.host_count = rng.choice((3, 3, 3, 3, 4, 5))
        self.hosts = [f"host-{number}" for number in range(1, self.host_count + 1)]
        self.clients = rng.randint(1, 3)
        self.calm_s = round(rng.choice((15.0, 60.0, 120.0, 240.0)) * rng.uniform(0.5, 1.0), 3)
        self.steps: list[Step] = []
        self.added = 0

    def plan(self) -> Plan:
        rng = self.rng
        kinds = list(EPISODES)
        # Few kinds a run, each with its own weight: what goes wrong together differs from run to run.
        favoured = rng.sample(kinds, rng.randint(1, 5))
        gap_s = rng.choice((1.0, 3.0, 8.0, 20.0))
        at_s = rng.uniform(0.0, 1.0)
        while at_s < self.calm_s:
            getattr(self, "_" + rng.choice(favoured))(at_s)
            # Half of them on the heels of the last one: two faults that overlap find what one does not.
            at_s += rng.expovariate(4.0) if rng.random() < 0.5 else rng.expovariate(1 / gap_s)
        if rng.random() < 0.3:
            self._traffic(rng.uniform(0, self.calm_s / 2))
        self.steps = [step for step in self.steps if step.at_s < self.calm_s]
        self.steps.sort(key=lambda step: step.at_s)
        clocks = tuple(rng.randint(955, 1045) for _ in range(self.host_count)) if rng.random() < 0.5 else ()
        zones = ("z1", "z2", "z3")[: rng.randint(2, 3)] if rng.random() < 0.3 else ()
        # The ticks of idle hosts are most of what a simulated second costs, so they are always drawn, and mostly slower than real ones.
        knobs = tuple((name, _between(rng, least, most)) for name, least, most in KNOBS if name in TICKS or rng.random() < 1 / 3)
        pacing = random.Random(f"pacing {self.seed}")  # of its own, so that nothing else of the plan depends on it
        if pacing.random() < 0.5:
            knobs += tuple((name, _between(pacing, least, most)) for name, least, most in PACING)
        return Plan(
            seed=self.seed,
            hosts=self.host_count,
            partitions=rng.randint(1, 6),
            replicas=3,
            clients=self.clients,
            callers=rng.randint(1, 3),
            think_s=round(rng.choice((0.03, 0.1, 0.3)), 3),
            rest_s=rng.choice((3.0, 8.0, 20.0)),
            supervised=rng.random() < 0.7,
            clocks=clocks,
            zones=zones,
            knobs=knobs,
            steps=tuple(self.steps),
            calm_s=self.calm_s,
        )

    def _at(self, at_s: float, verb: str, *arguments: object) -> None:
        self.steps.append(Step(round(at_s, 3), verb, tuple(map(str, arguments))))

    def _host(self) -> str:
        return self.rng.choice(self.hosts)

    def _some(self) -> list[str]:
        """Mostly one, sometimes more than the grid can spare."""
        return self.rng.sample(self.hosts, 1 if self.rng.random() < 0.7 else self.rng.randint(1, len(self.hosts)))

    def _until(self, at_s: float) -> float:
        return at_s + self.rng.choice((0.05, 0.3, 1.0, 2.0, 4.0)) * self.rng.uniform(0.5, 1.5)

    # -- processes

    def _kill(self, at_s: float) -> None:
        until = self._until(at_s)
        for host in self._some():
            self._at(at_s, "kill", host)
            self._at(until + self.rng.random() * 0.2, "start", host)

    def _crash_loop(self, at_s: float) -> None:
        host = self._host()
        for _ in range(self.rng.randint(2, 5)):
            self._at(at_s, "kill", host)
            self._at(at_s + 0.001, "start", host)
            at_s += self.rng.choice((0.002, 0.01, 0.1, 0.5)) * self.rng.uniform(0.2, 2)

    def _stop(self, at_s: float) -> None:
        host = self._host()
        self._at(at_s, "stop", host)
        self._at(at_s + self.rng.uniform(0.1, 4), "start", host)

    def _pause(self, at_s: float) -> None:
        for host in self._some():
            self._at(at_s, "pause", host)
            self._at(self._until(at_s), "resume", host)

    def _power(self, at_s: float) -> None:
        until = self._until(at_s)
        for host in self.hosts if self.rng.random() < 0.3 else self._some():
            self._at(at_s, "lose-power", host)
            self._at(until + self.rng.random() * 0.3, "start", host)

    def _client(self, at_s: float) -> None:
        number = self.rng.randint(1, self.clients)
        self._at(at_s, "kill-client", number)

    # -- the network

    def _cut(self, at_s: float) -> None:
        rng, until = self.rng, self._until(at_s)
        match rng.choice(("one", "alone", "alone", "one way", "halves", "pair", "clients", "deposed", "deposed")):
            case "one" | "alone" as kind:
                host = self._host()
                self._at(at_s, "isolate" if kind == "one" else "leave-alone", host)
                self._at(until, "heal", host)
                if rng.random() < 0.4:
                    # What it truncates when it hears of its successor must be gone for good.
                    killed_s = until + rng.choice((0.05, 0.5, 2.0)) * rng.random()
                    self._at(killed_s, "kill", host)
                    self._at(killed_s + rng.uniform(0.01, 1.0), "start", host)
            case "deposed":
                # It hears the others and is heard only by a client that hears nobody else: a primary that knows no successor, and a caller.
                host, others = self._host(), list(self.hosts)
                others.remove(host)
                client = f"client-{rng.randint(1, self.clients)}"
                for each in others:
                    self._at(at_s, "cut", host, each)
                    self._at(at_s, "cut", each, client)
                    self._at(until, "heal", host, each)
                    self._at(until, "heal", each, client)
            case "one way":
                a, b = rng.sample(self.hosts, 2)
                self._at(at_s, "cut", a, b)
                self._at(until, "heal", a, b)
            case "pair":
                a, b = rng.sample(self.hosts, 2)
                self._at(at_s, "cut", a, b)
                self._at(at_s, "cut", b, a)
                self._at(until, "heal", a, b)
                self._at(until + rng.random() * 0.1, "heal", b, a)
            case "halves":
                part = rng.sample(self.hosts, rng.randint(1, len(self.hosts) - 1))
                pairs = [(a, b) for a in part for b in self.hosts if b not in part]
                for a, b in pairs:
                    self._at(at_s, "cut", a, b)
                    self._at(at_s, "cut", b, a)
                    self._at(until, "heal", a, b)
                    self._at(until, "heal", b, a)
            case _:
                host, client = self._host(), f"client-{rng.randint(1, self.clients)}"
                a, b = (host, client) if rng.random() < 0.5 else (client, host)
                self._at(at_s, "cut", a, b)
                self._at(until, "heal", a, b)

    def _traffic(self, at_s: float) -> None:
        self._at(at_s, "traffic", self.rng.choice(("slow", "lossy", "resets", "torn")))
        self._at(self._until(at_s) + 1, "traffic", "calm")

    # -- disks

    def _disk_error(self, at_s: float) -> None:
        host, kind = self._host(), self.rng.choice(("eio", "enospc"))
        self._at(at_s, f"disk-{kind}", host, self.rng.choice((1, 1, 3, 1000)))
        self._at(self._until(at_s), "disk-heal", host)

    def _disk_stall(self, at_s: float) -> None:
        host = self._host()
        self._at(at_s, "disk-stall", host)
        self._at(self._until(at_s), "disk-heal", host)

    def _disk_slow(self, at_s: float) -> None:
        host = self._host()
        self._at(at_s, "disk-slow", host, round(self.rng.uniform(0.01, 0.4), 3))
        self._at(self._until(at_s), "disk-heal", host)

    def _disk_damage(self, at_s: float) -> None:
        host, rng = self._host(), self.rng
        what = rng.choice(("disk-wipe", "disk-flip", "disk-flip-log", "disk-old", "disk-swap"))
        if what == "disk-old":
            self._at(max(0.0, at_s - rng.uniform(0.2, 5)), "disk-image", host)
        if what != "disk-swap":
            self._at(at_s, what, host)
            started_s = at_s + rng.uniform(0.02, 1)
            self._at(started_s, "start", host)
            if rng.random() < 0.5:
                # Again while it is being filled.
                self._at(started_s + 0.001, "kill-in-copy", host)
                for after_s in (0.5, 1.0, 2.0, 4.0):
                    self._at(started_s + after_s * rng.uniform(0.8, 1.2), "start", host)
            return
        pair = (host, rng.choice([each for each in self.hosts if each != host]))
        # Found and put right by somebody after a while: each host has refused the other's data meanwhile.
        for swapped_s in (at_s, at_s + rng.uniform(1.5, 3)):
            for each in pair:
                self._at(swapped_s, "kill", each)
            self._at(swapped_s + 0.01, "disk-swap", *pair)
            for each in pair:
                self._at(swapped_s + 0.1, "start", each)

    def _clock(self, at_s: float) -> None:
        self._at(at_s, "date", self._host(), round(self.rng.uniform(-86_400, 86_400), 1))

    # -- operators

    def _drain(self, at_s: float) -> None:
        node = self._host().replace("host", "node")
        self._at(at_s, "drain", node, self.rng.choice(("pause", "restart", "remove_data", "remove_node")))
        self._at(self._until(at_s) + 1, "undrain", node)

    def _grow(self, at_s: float) -> None:
        if self.added < 2:
            self.added += 1
            self.hosts.append(f"host-{self.host_count + self.added}")
            self._at(at_s, "add-host")

    def _rebalance(self, at_s: float) -> None:
        self._at(at_s, "rebalance")

    def _freeze(self, at_s: float) -> None:
        self._at(at_s, "freeze")
        self._at(self._until(at_s), "unfreeze")


#: What `_Draw` may choose from, by the names of its methods.
EPISODES: Final = (
    "kill", "kill", "crash_loop", "stop", "pause", "power", "client", "cut", "cut", "traffic", "disk_error", "disk_stall", "disk_slow",
    "disk_damage", "clock", "drain", "drain", "grow", "rebalance", "freeze",
)  # fmt: skip


def _between(rng: random.Random, least: float, most: float) -> float:
    value = least * (most / least) ** rng.random()
    return float(f"{round(value) if least >= 1 and isinstance(least, int) else value:.6g}")
