"""What a host reports to placement, and the observation that a manager makes of the reports of all.

Only a host that serves a partition says how that partition is; all others say no more than what they hold. Where nobody serves a partition,
what was known of it last stands, without a primary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from actorgrid.errors import ProtocolError
from actorgrid.host.partition import HostedPartition
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication.configuration import Configuration, Member
from placement import HostView, Intent, NodeView, Observation, PartitionView, ReplicaView

#: The rates that are reported are means over about so long: placement must not run after every wave.
RATE_WINDOW_S: Final = 60.0
#: A host that was not heard for so long is down.
DOWN_AFTER_S: Final = 2.0


class LedPartition(Struct, array_like=True):
    """A partition that the reporting host serves.

    :ivar version: of its configuration
    :ivar in_sync: hosts whose replicas are connected and near the end of the log, the reporting one included
    :ivar may_lead: of those, which could be primary at once
    :ivar lost: hosts that say that the replica named here is not there any more
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


class HeldReplica(Struct, array_like=True):
    """A replica that the reporting host has, whatever its role."""

    partition: int
    incarnation: int
    version: int
    members: list[Member]


class HostReport(Struct, array_like=True):
    """What one host reports."""

    name: str
    node: str
    zone: str
    roster_version: int
    is_stopping: bool
    led: list[LedPartition]
    held: list[HeldReplica]


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

    def __init__(self, name: str, node: str, zone: str) -> None:
        self._name = name
        self._node = node
        self._zone = zone
        self._rates: dict[int, _Rate] = {}

    def report(self, partitions: Iterable[HostedPartition], *, roster_version: int, bytes_each: int, is_stopping: bool) -> HostReport:
        """How things are now.

        :param bytes_each: about how large one replica is
        """
        led, held = [], []
        now_s = time.monotonic()
        for partition in partitions:
            shell = partition.shell
            configuration = shell.core.configuration
            held.append(HeldReplica(partition.id, shell.me.incarnation, configuration.version, list(configuration.members)))
            if partition.serving:
                rate = self._rates.setdefault(partition.id, _Rate(now_s, partition))
                led.append(_led(shell, configuration, partition, bytes_each, rate.update(now_s, partition)))
            else:
                self._rates.pop(partition.id, None)
        return HostReport(self._name, self._node, self._zone, roster_version, is_stopping, led, held)


class _Rate:
    """Calls per second of one partition, as a moving mean."""

    def __init__(self, now_s: float, partition: HostedPartition) -> None:
        self._since_s = now_s
        self._count = _calls(partition)
        self._mean = 0.0

    def update(self, now_s: float, partition: HostedPartition) -> float:
        elapsed_s = now_s - self._since_s
        if elapsed_s > 0.1:
            count = _calls(partition)
            share = min(1.0, elapsed_s / RATE_WINDOW_S)
            self._mean += share * ((count - self._count) / elapsed_s - self._mean)
            self._since_s, self._count = now_s, count
        return self._mean


def _calls(partition: HostedPartition) -> int:
    return partition.changes_total + partition.reads_total


def _led(
    shell: ReplicaShell, configuration: Configuration, partition: HostedPartition, bytes_each: int, calls_per_s: float
) -> LedPartition:
    core = shell.core
    in_sync, may_lead = [shell.me.host], [shell.me.host]
    lost = []
    for member, progress in core.progress.items():
        if progress.is_missing or member in shell.lost:
            lost.append(member.host)
        elif progress.is_up and core.is_caught_up(progress):
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
        bytes_each,
        round(calls_per_s, 1),
    )


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
                self._led[led.id] = led, report.name

    def let_time_pass(self, now_s: float) -> None:
        """Who was not heard for long is down."""
        for name, is_up in self._is_up.items():
            if is_up and now_s - self._heard_s.get(name, 0.0) > DOWN_AFTER_S:
                self._is_up[name] = False
                self._since_s[name] = self._heard_s[name]

    def report_of(self, name: str) -> HostReport | None:
        """The newest report of a host."""
        return self._reports.get(name)

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
        nodes: dict[str, tuple[str, str]],
        replica_set_size: int,
        partition_count: int,
        busy: Mapping[int, str],
        frozen_why: str,
    ) -> Observation:
        """What placement is to look at.

        :param intents: node -> (intent, the order in which it came)
        :param nodes: host -> (node, zone), as far as it was ever reported
        :param busy: partitions for which an order is being carried out, and which
        """
        node_of = {name: nodes.get(name, (name, "")) for name in self._is_up}
        zones = dict(node_of.values())
        node_views = []
        for node, zone in zones.items():
            intent, number = intents.get(node, (Intent.NONE, 0))
            node_views.append(NodeView(node, zone, intent=intent, intent_no=number))
        hosts = []
        for name, (node, _) in node_of.items():
            report = self._reports.get(name)
            is_stopping = self._is_up[name] and report is not None and report.is_stopping
            # One that stops in order is down from now on, and was up until now.
            for_s = 0.0 if is_stopping else max(0.0, now_s - self._since_s[name])
            hosts.append(HostView(name, node, self._is_up[name] and not is_stopping, for_s))
        partitions = [self._partition_view(led, host, busy.get(led.id, "")) for led, host in self._led.values()]
        partitions += self._never_led()
        is_complete = len(partitions) == partition_count + 1  # and the system partition
        return Observation(node_views, hosts, partitions, min(replica_set_size, len(zones)), frozen_why, is_complete)

    def _never_led(self) -> list[PartitionView]:
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
            )
            for number, held in newest.items()
        ]

    def _partition_view(self, led: LedPartition, host: str, order: str) -> PartitionView:
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
            calls_per_s=led.calls_per_s,
        )

    def strangers(self) -> list[tuple[str, int, int, int, int]]:
        """Replicas that their partition's committed configuration does not name: (host, partition, incarnation, epoch, version)."""
        found = []
        for name, report in self._reports.items():
            if not self._is_up[name]:
                continue
            for held in report.held:
                known = self.led(held.partition)
                if known is None or known[0].is_changing or known[1] == name:
                    continue
                led = known[0]
                if Member(name, held.incarnation) not in (*led.voters, *led.idle) and held.version <= led.version:
                    found.append((name, held.partition, held.incarnation, led.epoch, led.version))
        return found
