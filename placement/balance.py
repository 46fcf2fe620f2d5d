"""Equal shares: replicas over zones, counts of replicas and of primaries, then load. Only settled partitions are touched.

Every move lowers a sum of squares (of counts, or of loads by at least a set part of the mean), so moves come to an end and none is taken
back: that is what keeps this steady without a memory of what was done before.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from placement.candidates import satisfies, why_not, zones_of
from placement.ledger import Ledger
from placement.observation import Intent, PartitionView
from placement.plan import Build, Command, Swap

EPSILON: Final = 1e-9
#: Looked at in one tick: the emptiest hosts for a replica, and the fullest ones that may prove unable to give one away.
TARGETS_MAX: Final = 8
FAILURES_MAX: Final = 32


class _Shares(NamedTuple):
    """What is left to each host in the end.

    :ivar means: for each host, primaries for one unit of weight in its group, with what comes from hosts that give all of theirs away
    :ivar growing: hosts of the groups in which one that has less gets a replica, which opens a direct way
    """

    means: list[float]
    growing: set[int]


class Balance:
    """One tick's moves for balance.

    :param settled: partitions that need nothing else
    :ivar commands: what is to be done
    :ivar wants_more: something is to be moved still, now or in a later tick
    """

    def __init__(self, ledger: Ledger, settled: Sequence[PartitionView]) -> None:
        self.commands: list[Command] = []
        self.wants_more = False
        self._ledger = ledger
        self._settled = settled
        self._taken: set[int] = set()
        self._on_host: list[list[PartitionView]] = [[] for _ in ledger.hosts]
        index = ledger.index
        for partition in settled:
            for replica in partition.replicas:
                self._on_host[index[replica.host]].append(partition)
        # Hosts that no constraint lets have anything are not among those to be made even: they would seem to be the emptiest for ever.
        constraints = {tuple(partition.constraint.items()) for partition in settled}
        self._numbers = [
            number
            for number, stays in enumerate(ledger.stays)
            if stays and (ledger.replicas[number] or any(satisfies(ledger.nodes[number], constraint) for constraint in constraints))
        ]

    def run(self, *, may_build: bool) -> None:
        """Zones and counts of replicas first; load only once those are even; primaries, which cost little, at any time.

        :param may_build: no builds are needed for anything else
        """
        if len(self._numbers) < 2:
            return
        if may_build:
            self._spread_zones()
            self._even_replicas()
            if not self.wants_more:
                self._even_bytes()
        self._even_primaries()

    # -- replicas

    def _spread_zones(self) -> None:
        """A partition with two replicas in a zone moves one to a zone that has none."""
        ledger = self._ledger
        zones = {ledger.nodes[number].zone for number in self._numbers}
        if len(zones) < 2:
            return
        zone_of = {host.name: node.zone for host, node in zip(ledger.hosts, ledger.nodes, strict=True)}
        for partition in self._settled:
            if len({zone_of[replica.host] for replica in partition.replicas}) >= min(len(zones), len(partition.replicas)):
                continue
            counts = zones_of(ledger, partition)
            free = [number for number in self._numbers if not counts[ledger.nodes[number].zone] and not why_not(ledger, partition, number)]
            if not free:
                continue
            self.wants_more = True
            target = min(free, key=lambda number: (ledger.replicas[number] + 1) / ledger.weights[number])
            if ledger.may_build(partition.primary, target):
                crowded = max(counts, key=lambda zone: counts[zone])
                leaving = next(replica.host for replica in partition.replicas if ledger.node_of(replica.host).zone == crowded)
                self._build(partition, ledger.index[leaving], target, f"zone {crowded!r} has {counts[crowded]} of its replicas")

    def _even_replicas(self) -> None:
        """Move from the hosts with the most replicas for their weight to those with the fewest."""
        ledger = self._ledger
        replicas, weights, to = ledger.replicas, ledger.weights, ledger.builds_to

        def share(number: int) -> float:
            return replicas[number] / weights[number] if replicas[number] <= ledger.hosts[number].replicas_max else math.inf

        def after(number: int) -> float:
            return (replicas[number] + 1) / weights[number]

        sources = [(-share(number), number) for number in self._numbers]
        heapq.heapify(sources)
        with_room = [number for number in self._numbers if replicas[number] < ledger.hosts[number].replicas_max]
        if not with_room or -sources[0][0] <= min(map(after, with_room)) + EPSILON:
            return
        open_targets = [number for number in with_room if to[number] < ledger.limits.builds_per_host_max]
        failures = 0
        self.wants_more |= len(open_targets) < len(with_room)
        while sources and open_targets and failures < FAILURES_MAX and ledger.builds < ledger.limits.builds_max:
            source = heapq.heappop(sources)[1]
            targets = [
                number for number in heapq.nsmallest(TARGETS_MAX, open_targets, key=after) if share(source) > after(number) + EPSILON
            ]
            if not targets:
                break
            if not self._move_one(source, targets):
                failures += 1
                continue
            heapq.heappush(sources, (-share(source), source))
            open_targets = [number for number in open_targets if to[number] < ledger.limits.builds_per_host_max]

    def _move_one(self, source: int, targets: Sequence[int]) -> bool:
        """Move some replica from `source` to the first of `targets` that may take one; a secondary if there is one."""
        ledger = self._ledger
        name = ledger.hosts[source].name
        for only_secondaries in (True, False):
            for target in targets:
                for partition in self._on_host[source]:
                    if only_secondaries and partition.primary == name:
                        continue
                    if self._may_move(partition, source, target):
                        self._build(partition, source, target, f"{name} has more replicas than {ledger.hosts[target].name}")
                        return True
        return False

    def _may_move(self, partition: PartitionView, source: int, target: int) -> bool:
        ledger = self._ledger
        if partition.id in self._taken or why_not(ledger, partition, target):
            return False
        zones = zones_of(ledger, partition, ledger.hosts[source].name)
        here, there = ledger.nodes[source].zone, ledger.nodes[target].zone
        if here != there and zones[there] > zones[here]:
            return False
        if ledger.may_build(partition.primary, target):
            return True
        self.wants_more = True  # later
        return False

    def _build(self, partition: PartitionView, source: int, target: int, why: str) -> None:
        ledger = self._ledger
        self.wants_more = True
        self._taken.add(partition.id)
        self.commands.append(Build(partition.id, partition.version, ledger.hosts[target].name, why, ledger.hosts[source].name))
        ledger.built(partition, target)
        ledger.will_lose(partition, ledger.hosts[source].name)

    def _even_bytes(self) -> None:
        """With counts even: a large partition leaves the fullest host, in exchange for a small one where counts want that."""
        ledger = self._ledger
        sizes, replicas, limits = ledger.bytes, ledger.replicas, ledger.limits
        mean = sum(sizes[number] for number in self._numbers) / len(self._numbers)
        if mean < limits.bytes_floor:
            return
        source = max(self._numbers, key=lambda number: sizes[number] / ledger.weights[number])
        if sizes[source] <= mean * ledger.weights[source] * (1 + limits.load_threshold):
            return
        why = f"{ledger.hosts[source].name} holds {sizes[source]:,} bytes, the mean is {mean:,.0f}"
        for target in sorted(self._numbers, key=lambda number: sizes[number] / ledger.weights[number]):
            if sizes[source] <= sizes[target]:
                return
            there = [partition for partition in self._on_host[source] if self._may_move(partition, source, target)]
            back: list[PartitionView | None] = [None]
            if replicas[source] <= replicas[target]:
                back = [partition for partition in self._on_host[target] if self._may_move(partition, target, source)]
            pair = _best_exchange(there, back, sizes[source] - sizes[target], mean * limits.load_gain_min, lambda each: each.bytes)
            if pair is not None:
                self.wants_more = True
                self._build(pair[0], source, target, why)
                if pair[1] is not None:
                    self._build(pair[1], target, source, f"in exchange for partition {pair[0].id}: {why}")
                return

    # -- primaries

    def _even_primaries(self) -> None:
        if self._even_primary_counts():
            return
        ledger = self._ledger
        self._even_rates(ledger.calls_per_s, ledger.limits.calls_floor_per_s, "calls/s", lambda partition: partition.calls_per_s)
        self._even_rates(ledger.load, 0.0, "load", lambda partition: partition.load)

    def _even_primary_counts(self) -> bool:
        """Swap primaries from the hosts with the most to those with the fewest.

        Among hosts that primaries can go between, who has more than their mean gives, and who has less takes: nothing goes to where it
        would have to leave again. While one that has less gets a replica, only directly: each that arrives opens a direct way. Else over
        others where there is none, and where that leads nowhere, from any host to one that has two fewer.
        """
        ledger = self._ledger
        primaries, weights = ledger.primaries, ledger.weights
        ways: list[dict[int, list[PartitionView]]] | None = None
        uneven = is_exact = False
        while ledger.swaps < ledger.limits.swaps_max:
            low = min((primaries[number] + 1) / weights[number] for number in self._numbers)
            over = [number for number in self._numbers if primaries[number] / weights[number] > low + EPSILON]
            if not over:
                break
            if ways is None:
                ways = self._ways()
                shares = self._shares(ways)
                is_exact = True
            over.sort(key=lambda number: -primaries[number] / weights[number])
            may_give = [number for number in over if ledger.may_swap(ledger.hosts[number].name)]
            self.wants_more |= len(may_give) < len(over)
            path: list[tuple[PartitionView, int, int]] = []
            if is_exact:
                sources = [number for number in may_give if primaries[number] / weights[number] > shares.means[number] + EPSILON]
                path = self._path(ways, sources[:FAILURES_MAX], shares)
                is_exact = bool(path)  # what leads nowhere now does not after other swaps: they only lower the highest and raise the lowest
            if not path:
                sources = [number for number in may_give if number not in shares.growing]
                path = self._path(ways, sources[:FAILURES_MAX])
            if not path:
                break
            if len(path) == 1 and not ledger.may_swap(ledger.hosts[path[0][1]].name, ledger.hosts[path[0][2]].name):
                self.wants_more = True  # the host that it goes to takes one at a time
                break
            uneven = True
            for partition, source, target in path:
                self._swap(partition, source, target, f"{ledger.hosts[path[0][1]].name} has more primaries than its share")
        self.wants_more |= uneven
        return uneven

    def _shares(self, ways: list[dict[int, list[PartitionView]]]) -> _Shares:
        """Of each group of hosts that primaries can go between, directly or not."""
        ledger = self._ledger
        primaries, weights = ledger.primaries, ledger.weights
        near: list[list[int]] = [list(each) for each in ways]
        for here, each in enumerate(ways):
            for there in each:
                near[there].append(here)
        staying = set(self._numbers)
        leaving = [number for number, node in enumerate(ledger.nodes) if number not in staying and node.intent > Intent.PAUSE]
        coming = sum(primaries[number] for number in leaving) / sum(weights[number] for number in self._numbers)
        shares = _Shares([math.nan] * len(near), set())
        seen: set[int] = set()
        for first in self._numbers:
            if first in seen:
                continue
            seen.add(first)
            group = [first]
            for here in group:  # it grows meanwhile
                for there in near[here]:
                    if there not in seen:
                        seen.add(there)
                        group.append(there)
            counted = [number for number in group if number in staying]
            mean = coming + sum(primaries[number] for number in counted) / sum(weights[number] for number in counted)
            for number in group:
                shares.means[number] = mean
            if any(ledger.builds_to[number] and primaries[number] / weights[number] < mean - EPSILON for number in counted):
                shares.growing.update(group)
        return shares

    def _ways(self) -> list[dict[int, list[PartitionView]]]:
        """For each host: to which others primaries of it can go, and which."""
        ledger, index = self._ledger, self._ledger.index
        ways: list[dict[int, list[PartitionView]]] = [{} for _ in ledger.hosts]
        for partition in self._settled:
            source = index[partition.primary]
            for replica in partition.replicas:
                target = index[replica.host]
                if target != source and replica.may_lead:
                    ways[source].setdefault(target, []).append(partition)
        return ways

    def _path(
        self, ways: list[dict[int, list[PartitionView]]], sources: Sequence[int], shares: _Shares | None = None
    ) -> list[tuple[PartitionView, int, int]]:
        """A short way on which one of `sources` gets rid of a primary to a host that has two fewer for its weight.

        :param sources: those with the most first
        :param shares: only to a host that has fewer than its group's mean, and where a group is growing only directly
        """
        ledger = self._ledger
        primaries, weights = ledger.primaries, ledger.weights

        def takes(there: int, share: float) -> bool:
            load = primaries[there] / weights[there]
            return share > load + 1 / weights[there] + EPSILON and (shares is None or load < shares.means[there] - EPSILON)

        for source in sources:
            share = primaries[source] / weights[source]
            for there, partitions in ways[source].items():
                if takes(there, share) and self._last_free(partitions) is not None:
                    return [(partitions[-1], source, there)]
        came_from: dict[int, int] = {}  # what a fuller one did not get to, a less full one does not either
        for source in sources:
            if source in came_from or (shares is not None and source in shares.growing):
                continue
            share = primaries[source] / weights[source]
            came_from[source] = source
            queue = deque([source])
            while queue:
                here = queue.popleft()
                for there, partitions in ways[here].items():
                    if there in came_from or self._last_free(partitions) is None:
                        continue
                    came_from[there] = here
                    if takes(there, share):
                        return self._trace(ways, came_from, there)
                    queue.append(there)
        return []

    def _last_free(self, partitions: list[PartitionView]) -> PartitionView | None:
        """The last one that is not moved already; those behind it are dropped."""
        while partitions and partitions[-1].id in self._taken:
            partitions.pop()
        return partitions[-1] if partitions else None

    def _trace(
        self, ways: list[dict[int, list[PartitionView]]], came_from: dict[int, int], end: int
    ) -> list[tuple[PartitionView, int, int]]:
        path: list[tuple[PartitionView, int, int]] = []
        while came_from[end] != end:
            here = came_from[end]
            path.append((ways[here][end][-1], here, end))
            end = here
        path.reverse()
        return path

    def _even_rates(self, rates: list[float], floor: float, unit: str, rate_of: Callable[[PartitionView], float]) -> None:
        """A busy primary goes from the busiest host to another, in exchange for a quiet one where counts want that."""
        ledger = self._ledger
        limits, weights = ledger.limits, ledger.weights
        mean = sum(rates[number] for number in self._numbers) / len(self._numbers)
        if mean <= floor or ledger.swaps >= limits.swaps_max:
            return
        source = max(self._numbers, key=lambda number: rates[number] / weights[number])
        if rates[source] <= mean * weights[source] * (1 + limits.load_threshold):
            return
        name = ledger.hosts[source].name
        why = f"{name} does {rates[source]:,.0f} {unit}, the mean is {mean:,.0f}"
        for target in sorted(self._numbers, key=lambda number: rates[number] / weights[number]):
            if rates[source] <= rates[target]:
                return
            there = self._swappable(source, target)
            back: list[PartitionView | None] = [None]
            if ledger.primaries[source] <= ledger.primaries[target]:
                back = list(self._swappable(target, source))
            pair = _best_exchange(there, back, rates[source] - rates[target], mean * limits.load_gain_min, rate_of)
            if pair is not None:
                self.wants_more = True
                if not ledger.may_swap(name, ledger.hosts[target].name):
                    return
                self._swap(pair[0], source, target, why)
                if pair[1] is not None:
                    self._swap(pair[1], target, source, f"in exchange for partition {pair[0].id}: {why}")
                return

    def _swappable(self, source: int, target: int) -> list[PartitionView]:
        """Partitions whose primary is on `source` and could be on `target`."""
        from_name, to_name = self._ledger.hosts[source].name, self._ledger.hosts[target].name
        return [
            partition
            for partition in self._on_host[source]
            if partition.primary == from_name
            and partition.id not in self._taken
            and any(replica.host == to_name and replica.may_lead for replica in partition.replicas)
        ]

    def _swap(self, partition: PartitionView, source: int, target: int, why: str) -> None:
        name = self._ledger.hosts[target].name
        self._taken.add(partition.id)
        self.commands.append(Swap(partition.id, partition.version, name, why))
        self._ledger.swapped(partition, name)


def _best_exchange(
    there: Sequence[PartitionView],
    back: Sequence[PartitionView | None],
    difference: float,
    gain_min: float,
    rate_of: Callable[[PartitionView], float],
) -> tuple[PartitionView, PartitionView | None] | None:
    """What goes and what comes back, so that the difference of two hosts is halved as nearly as can be; None: nothing gains enough."""
    rates_back = sorted(((rate_of(each) if each is not None else 0.0, number) for number, each in enumerate(back)))
    best: tuple[float, PartitionView, PartitionView | None] | None = None
    for partition in there:
        rate = rate_of(partition)
        # What comes back should do so much less than what goes that half the difference changes sides.
        position = bisect.bisect_left(rates_back, (rate - difference / 2, -1))
        for rate_back, number in rates_back[max(0, position - 1) : position + 1]:
            moved = rate - rate_back
            if gain_min <= moved <= difference - gain_min and (best is None or abs(moved - difference / 2) < best[0]):
                best = abs(moved - difference / 2), partition, back[number]
    return (best[1], best[2]) if best is not None else None
