"""Which faults a campaign injects, in which order: all of it from the seed."""

from __future__ import annotations

import dataclasses
import random
from typing import Literal

Kind = Literal["kill", "stop", "cut", "disk"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "cut", "disk")
CUTS = ("one_way", "two_way", "isolated")
DISKS = ("emptied", "cut", "old")
#: What goes wrong together with the disk: nothing; another host is killed while this one comes back; or the write quorum had been this host
#: and a second one, which is down now, while the third one has missed writes.
DISK_SHAPES = ("alone", "with a kill", "with a lagging peer")


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault to inject. What is left to chance at the time comes from its own random source.

    :ivar follows: it is injected while the grid recovers from the one before
    """

    number: int
    kind: Kind
    variant: str
    follows: bool
    seed: str

    @property
    def rng(self) -> random.Random:
        return random.Random(f"{self.seed}/{self.number}")


def make_plan(seed: int, *, kills: int, stops: int, cuts: int, disks: int) -> list[PlannedFault]:
    """Kinds in random order; every second kill comes during the recovery from a kill."""
    rng = random.Random(f"{seed}/plan")
    units: list[list[tuple[Kind, str, bool]]] = []
    for number in range((kills + 1) // 2):
        variant = "supervised" if number % 2 == 0 else "silent"
        unit: list[tuple[Kind, str, bool]] = [("kill", variant, False)]
        if 2 * number + 1 < kills:
            unit.append(("kill", "same host again" if rng.random() < 0.6 else "another host too", True))
        units.append(unit)
    units += [[("stop", "longer than the lease" if number % 4 else "about the lease", False)] for number in range(stops)]
    units += [[("cut", CUTS[number % len(CUTS)], False)] for number in range(cuts)]
    units += [
        [("disk", f"{DISKS[number % len(DISKS)]}, {DISK_SHAPES[number // len(DISKS) % len(DISK_SHAPES)]}", False)]
        for number in range(disks)
    ]
    rng.shuffle(units)
    faults = [fault for unit in units for fault in unit]
    return [PlannedFault(number, kind, variant, follows, f"{seed}") for number, (kind, variant, follows) in enumerate(faults)]
