"""What a host reports to placement, and the observation that a manager makes of the reports of all.

Only a host that serves a partition says how that partition is; all others say no more than what they hold. Where nobody serves a partition,
what was known of it last stands, without a primary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from actorgrid import ambient
from actorgrid.errors import ProtocolError
from actorgrid.host.partition import HostedPartition
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.replica import Replica
from placement import HostView, Intent, NodeView, Observation, PartitionView, ReplicaView

#: The rates that are reported are means over about so long: placement must not run after every wave.
RATE_WINDOW_S: Final = 60.0
#: A part of a mean that does not count any more.
RATE_FORGOTTEN: Final = 0.01
#: `HostView.replicas_max` of a host without a limit.
REPLICAS_UNLIMITED: Final = 1 << 30
#: Later than every epoch.
FOREVER: Final = 1 << 62
#: A host that was not heard for so long is down.
DOWN_AFTER_S: Final = 2.0


class LedPartition(Struct, array_like=True):
    """A partition that the reporting host serves.

    :ivar version: of its configuration
    :ivar in_sync: hosts whose replicas are connected and near the end of the log, the reporting one included
    :ivar may_lead: of those, which could be primary at once
    :ivar lost: hosts that say that the replica named here is not there any more
    :ivar calls_per_s: mean over about `RATE_WINDOW_S`, as if there had been none before this host served; so is `load`
    """

    id: int
    epoch: int
    version: int
    is_changing: bool
    is_swapping: bool
    voters: list[Member]
    idle: list[Member]
    leaving: str
    in_sync: list[str]
    may_lead: list[str]
    lost: list[str]
    bytes: int
    calls_per_s: float
    load: float = 0.0


def configuration_epoch(core: Replica) -> int:
    """The epoch of the entry of its newest configuration, or a later one."""
    epoch = core.log.configuration_epoch
    return core.epoch if epoch is None else epoch


class HeldReplica(Struct, array_like=True):
    """A replica that the reporting host has, whatever its role.

    :ivar epoch: of the entry of its configuration, or a later one
    """

    partition: int
    incarnation: int
    version: int
    members: list[Member]
    epoch: int = FOREVER


class Capacity(Struct, array_like=True, frozen=True):
    """What a host may be given: what it was told at start, see `HostConfig`."""

    labels: dict[str, str] = {}
    weight: float = 1.0
    replicas_max: int = REPLICAS_UNLIMITED


class HostRecord(Struct, array_like=True, frozen=True):
    """What the manager remembers of a host, as last reported: one that is down is there still.

    ``(node, zone)``, as it was written before there was more, is one too.
    """

    node: str
    zone: str
    capacity: Capacity = Capacity()


class HostReport(Struct, array_like=True):
    """What one host reports.

    :ivar is_stopping: it takes no part any more
    :ivar is_leaving: it will stop, and serves until nobody needs it
    """

    name: str
    node: str
    zone: str
    roster_version: int
    is_stopping: bool
    led: list[LedPartition]
    held: list[HeldReplica]
    capacity: Capacity = Capacity()
    is_leaving: bool = False


def decode_report(answer: Any) -> HostReport:
    """The report in the answer to a question.

    :raises ProtocolError: it is none
    """
    try:
        return msgspec.convert(answer, HostReport)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the report of a host does not have its form: {error}") from None


class Reporter:
    """Makes the reports of one host."""

    def __init__(self, name: str, node: str, zone: str, capacity: Capacity) -> None:
        self._name = name
        self._node = node
        self._zone = zone
        self._capacity = capacity
        self._rates: dict[int, _Rates] = {}

    def report(self, partitions: Iterable[HostedPartition], *, roster_version: int, bytes_each: int, state: str) -> HostReport:
        """How things are now.

        :param state: of the host: ``serving``, ``leaving``, ``stopping``

        :param bytes_each: about how large one replica is of which no more is known
        """
        led, held = [], []
        now_s = ambient.monotonic()
        for partition in partitions:
            shell = partition.shell
            configuration = shell.core.configuration
            epoch = configuration_epoch(shell.core)
            held.append(HeldReplica(partition.id, shell.me.incarnation, configuration.version, list(configuration.members), epoch))
            if partition.serving:
                epoch = shell.core.epoch
                rates = self._rates.get(partition.id)
                if rates is None or rates.epoch != epoch:
                    rates = self._rates[partition.id] = _Rates(epoch, now_s, partition)
                rates.update(now_s, partition)
                led.append(_led(shell, configuration, partition, bytes_each, rates))
            else:
                self._rates.pop(partition.id, None)
        is_stopping = state == "stopping"
        is_leaving = is_stopping or state == "leaving"
        return HostReport(self._name, self._node, self._zone, roster_version, is_stopping, led, held, self._capacity, is_leaving)


class _Rates:
    """Moving means of what one partition does while this host serves it.

    :ivar epoch: in which that is
    """

    def __init__(self, epoch: int, now_s: float, partition: HostedPartition) -> None:
        self.epoch = epoch
        self.calls_per_s = 0.0
        self.load = 0.0
        self._since_s = now_s
        self._count = _calls(partition)

    def update(self, now_s: float, partition: HostedPartition) -> None:
        elapsed_s = now_s - self._since_s
        if elapsed_s > 0.1:
            count = _calls(partition)
            share = -math.expm1(-elapsed_s / RATE_WINDOW_S)
            self.calls_per_s += share * ((count - self._count) / elapsed_s - self.calls_per_s)
            self.load += share * (partition.load.total - self.load)
            self._since_s, self._count = now_s, count


def _calls(partition: HostedPartition) -> int:
    return partition.changes_total + partition.reads_total


def _led(shell: ReplicaShell, configuration: Configuration, partition: HostedPartition, bytes_each: int, rates: _Rates) -> LedPartition:
    core, size = shell.core, shell.durable.size.total
    in_sync, may_lead = [shell.me.host], [shell.me.host]
    lost = []
    for member, progress in core.progress.items():
        if progress.is_missing or member in shell.lost:
            lost.append(member.host)
        elif core.is_caught_up(progress):
            in_sync.append(member.host)
            if shell.may_lead(member):
                may_lead.append(member.host)
    is_swapping = core.is_swapping or partition.is_handing_over
    is_changing = core.log.configuration_lsn > core.committed_lsn or is_swapping or bool(shell.wanted)
    return LedPartition(
        partition.id,
        core.epoch,
        configuration.version,
        is_changing,
        is_swapping,
        list(configuration.voters),
        list(configuration.idle),
        configuration.leaving,
        in_sync,
        may_lead,
        lost,
        size if size is not None else bytes_each,
        round(rates.calls_per_s, 1),
        rates.load,
    )


class _Before(NamedTuple):
    """What a partition did when its primary changed."""

    at_s: float
    calls_per_s: float
    load: float


class Overview:
    """The newest reports of all hosts, and since when each of them is up or down.

    :param expected: the hosts of the grid
    """

    def __init__(self, expected: Iterable[str], now_s: float) -> None:
        self._heard_s: dict[str, float] = {}
        self._is_up = dict.fromkeys(expected, False)
        self._since_s = dict.fromkeys(self._is_up, now_s)
        self._reports: dict[str, HostReport] = {}
        self._led: dict[int, tuple[LedPartition, str]] = {}
        self._before: dict[int, _Before] = {}

    @property
    def names(self) -> list[str]:
        """The hosts of the grid."""
        return list(self._is_up)

    def set_names(self, names: Iterable[str], now_s: float) -> None:
        """The grid has these hosts now."""
        wanted = dict.fromkeys(names)
        for name in [name for name in self._is_up if name not in wanted]:
            for table in (self._is_up, self._since_s, self._heard_s, self._reports):
                table.pop(name, None)
        for name in wanted:
            if name not in self._is_up:
                self._is_up[name] = False
                self._since_s[name] = now_s

    def take(self, report: HostReport, now_s: float) -> None:
        """A host has reported."""
        if report.name not in self._is_up:
            return  # forgotten meanwhile
        self._reports[report.name] = report
        self._heard_s[report.name] = now_s
        if not self._is_up.get(report.name):
            self._is_up[report.name] = True
            self._since_s[report.name] = now_s
        for led in report.led:
            known = self._led.get(led.id)
            if known is None or known[0].epoch < led.epoch or known[1] == report.name:
                if known is not None and known[0].epoch != led.epoch:
                    self._before[led.id] = _Before(now_s, *self._rates_of(known[0], now_s))
                self._led[led.id] = led, report.name

    def _rates_of(self, led: LedPartition, now_s: float) -> tuple[float, float]:
        """(calls/s, load) of a partition: what its primary has measured, and what was known before, as far as that counts yet.

        A primary measures from nothing on. Without the rest, what was just moved would seem to do nothing, and more would move after it.
        """
        before = self._before.get(led.id)
        if before is None:
            return led.calls_per_s, led.load
        share = math.exp(-(now_s - before.at_s) / RATE_WINDOW_S)
        if share < RATE_FORGOTTEN:
            del self._before[led.id]
            return led.calls_per_s, led.load
        return led.calls_per_s + share * before.calls_per_s, led.load + share * before.load

    def let_time_pass(self, now_s: float) -> None:
        """Who was not heard for long is down."""
        for name, is_up in self._is_up.items():
            if is_up and now_s - self._heard_s.get(name, 0.0) > DOWN_AFTER_S:
                self._is_up[name] = False
                self._since_s[name] = self._heard_s[name]

    def report_of(self, name: str) -> HostReport | None:
        """The newest report of a host."""
        return self._reports.get(name)

    def heard_s(self, name: str) -> float:
        """When `name` has reported for the last time (monotonic); 0 if it has not."""
        return self._heard_s.get(name, 0.0)

    def is_up(self, name: str) -> bool:
        """Whether `name` reports."""
        return self._is_up.get(name, False)

    def down_s(self, name: str, now_s: float) -> float:
        """For how long `name` has been down, as far as this overview knows; 0 if it is not."""
        return 0.0 if self._is_up.get(name) else max(0.0, now_s - self._since_s.get(name, now_s))

    def led(self, partition: int) -> tuple[LedPartition, str] | None:
        """What the newest primary of a partition said, and who that is; None if no host has led it since this overview began."""
        known = self._led.get(partition)
        return known if known is not None and self._is_led(*known) else None

    def _is_led(self, led: LedPartition, host: str) -> bool:
        report = self._reports.get(host)
        return self._is_up.get(host, False) and report is not None and any(each.id == led.id for each in report.led)

    def observation(
        self,
        now_s: float,
        *,
        intents: dict[str, tuple[Intent, int]],
        nodes: Mapping[str, HostRecord],
        replica_set_size: int,
        partition_count: int,
        busy: Mapping[int, str],
        frozen_why: str,
        constraint_of: Callable[[int], Mapping[str, str]],
    ) -> Observation:
        """What placement is to look at.

        :param intents: node -> (intent, the order in which it came)
        :param nodes: by host, as far as it was ever reported
        :param busy: partitions for which an order is being carried out, and which
        :param constraint_of: labels that the nodes of a partition's replicas must have
        """
        record_of = {name: nodes.get(name) or HostRecord(name, "") for name in self._is_up}
        zones = {record.node: record.zone for record in record_of.values()}
        labels: dict[str, dict[str, str]] = {node: {} for node in zones}
        for record in record_of.values():
            labels[record.node].update(record.capacity.labels)
        node_views = []
        for node, zone in zones.items():
            intent, number = intents.get(node, (Intent.NONE, 0))
            node_views.append(NodeView(node, zone, labels[node], intent, number))
        hosts = []
        for name, record in record_of.items():
            report = self._reports.get(name)
            is_stopping = self._is_up[name] and report is not None and report.is_stopping
            # One that stops in order is down from now on, and was up until now.
            for_s = 0.0 if is_stopping else max(0.0, now_s - self._since_s[name])
            is_up = self._is_up[name] and not is_stopping
            hosts.append(HostView(name, record.node, is_up, for_s, record.capacity.weight, record.capacity.replicas_max))
        partitions = [
            self._partition_view(led, host, busy.get(led.id, ""), constraint_of(led.id), now_s) for led, host in self._led.values()
        ]
        partitions += self._never_led(constraint_of)
        is_complete = len(partitions) == partition_count + 1  # and the system partition
        return Observation(node_views, hosts, partitions, min(replica_set_size, len(zones)), frozen_why, is_complete)

    def _never_led(self, constraint_of: Callable[[int], Mapping[str, str]]) -> list[PartitionView]:
        """Partitions that no host has served since this overview began, by what their replicas know."""
        newest: dict[int, HeldReplica] = {}
        for report in self._reports.values():
            for held in report.held:
                if held.partition not in self._led and held.version >= getattr(newest.get(held.partition), "version", 0):
                    newest[held.partition] = held
        return [
            PartitionView(
                number,
                held.version,
                "",
                tuple(ReplicaView(member.host, member.incarnation, is_in_sync=False) for member in held.members),
                constraint=constraint_of(number),
            )
            for number, held in newest.items()
        ]

    def _partition_view(self, led: LedPartition, host: str, order: str, constraint: Mapping[str, str], now_s: float) -> PartitionView:
        calls_per_s, load = self._rates_of(led, now_s)
        is_led = self._is_led(led, host)
        in_sync, may_lead, lost = set(led.in_sync) if is_led else set(), set(led.may_lead), set(led.lost)
        replicas = [
            ReplicaView(
                member.host,
                member.incarnation,
                is_voter,
                is_in_sync=member.host in in_sync and self.is_up(member.host),
                is_lost=member.host in lost,
                may_lead=member.host in may_lead,
            )
            for members, is_voter in ((led.voters, True), (led.idle, False))
            for member in members
        ]
        return PartitionView(
            led.id,
            led.version,
            host if is_led else "",
            tuple(replicas),
            epoch=led.epoch,
            leaving=led.leaving,
            is_changing=led.is_changing or bool(order),
            is_swapping=led.is_swapping or order == "swap",
            bytes=led.bytes,
            calls_per_s=calls_per_s,
            load=load,
            constraint=constraint,
        )

    def strangers(self) -> list[tuple[str, int, int, int, int]]:
        """Replicas that their partition's committed configuration does not name: (host, partition, incarnation, epoch, version).

        One may know of a later configuration than was reported. If that is of an older epoch than the primary's it was never committed,
        and never will be: a primary that serves has committed an entry of its own epoch, and its log has everything that was committed.
        """
        found = []
        for name, report in self._reports.items():
            if not self._is_up[name]:
                continue
            for held in report.held:
                known = self.led(held.partition)
                if known is None or known[0].is_changing or known[1] == name:
                    continue
                led = known[0]
                is_past = held.version <= led.version or held.epoch < led.epoch
                if Member(name, held.incarnation) not in (*led.voters, *led.idle) and is_past:
                    found.append((name, held.partition, held.incarnation, led.epoch, led.version))
        return found
