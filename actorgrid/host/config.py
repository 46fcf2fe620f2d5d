"""What a host is told at start."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Final

from actorgrid.credentials import VARIABLES, Credentials
from actorgrid.errors import SettingsError
from actorgrid.host.labels import problems_of
from actorgrid.host.reports import REPLICAS_UNLIMITED
from actorgrid.ids import HostName
from actorgrid.settings import HostSettings, WireSettings
from actorgrid.wire.messages import HostInfo

#: Odd sizes up to seven: past that every write waits for more disks and gains nothing.
REPLICA_SET_SIZE_MAX: Final = 7
#: Hosts of one grid are alike within this; the planner divides by weights.
WEIGHT_MIN: Final = 0.01
WEIGHT_MAX: Final = 1000.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What a host is told at start.

    :ivar address: where others reach it; a name is looked up for every connection
    :ivar listen: address of the socket; empty: `address`
    :ivar credentials: without them it listens on loopback only, and trusts everybody there
    :ivar hosts: all hosts of the grid; their order decides where the first replicas are
    :ivar watches_processes: whether the kernel's word counts for processes of hosts on this machine that have ended; if not, only a
        supervisor's, and silence
    :ivar labels: of the node, which constraints go by; the hosts of one node are told the same ones
    :ivar weight: the host's share of replicas and load, relative to others
    :ivar replicas_max: placement puts no more replicas there
    :ivar app: modules with actor classes; :ivar app_path: directories put in front of ``sys.path`` before they are imported
    """

    cluster_id: str
    name: HostName
    node: str
    zone: str = ""
    data_dir: Path
    address: str
    port: int
    partition_count: int
    replica_set_size: int
    hosts: tuple[HostInfo, ...]
    app: tuple[str, ...]
    app_path: tuple[str, ...] = ()
    settings: HostSettings = dataclasses.field(default_factory=HostSettings)
    wire: WireSettings = dataclasses.field(default_factory=WireSettings)
    watches_processes: bool = True
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    replicas_max: int = REPLICAS_UNLIMITED
    listen: str = ""
    credentials: Credentials | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.name not in [host.name for host in self.hosts]:
            problems.append(f"host {self.name} is not among the hosts of the grid: {', '.join(host.name for host in self.hosts)}")
        if len({host.name for host in self.hosts}) != len(self.hosts):
            problems.append("two hosts have one name")
        if not 1 <= self.partition_count <= 65_536:
            problems.append(f"partition count {self.partition_count} is outside the allowed range 1..65536")
        if not 1 <= self.replica_set_size <= REPLICA_SET_SIZE_MAX:
            problems.append(f"replica set size {self.replica_set_size} is outside the allowed range 1..{REPLICA_SET_SIZE_MAX}")
        if not _is_loopback(self.listen_address) and self.credentials is None:
            problems.append(
                f"host {self.name} is to listen on {self.listen_address!r}, which is not a loopback address, without credentials: anybody "
                f"who reaches it could do anything. Give it the certificate of the grid's authority, its own and its key "
                f"({', '.join(VARIABLES[name] for name in ('ca', 'certificate', 'key'))}), which `actorgrid certs make` makes"
            )
        if self.credentials is not None and not self.credentials.certificate:
            problems.append(f"host {self.name} needs a certificate of its own ({VARIABLES['certificate']}, {VARIABLES['key']})")
        problems += problems_of(self.labels)
        if not isinstance(self.weight, int | float) or isinstance(self.weight, bool) or not WEIGHT_MIN <= self.weight <= WEIGHT_MAX:
            problems.append(f"weight {self.weight!r} is outside the allowed range {WEIGHT_MIN:g}..{WEIGHT_MAX:g}")
        if (
            not isinstance(self.replicas_max, int)
            or isinstance(self.replicas_max, bool)
            or not 0 <= self.replicas_max <= REPLICAS_UNLIMITED
        ):
            problems.append(f"replicas_max {self.replicas_max!r} is outside the allowed range 0..{REPLICAS_UNLIMITED}")
        if problems:
            raise SettingsError(*problems)

    @property
    def listen_address(self) -> str:
        """Address of the socket."""
        return self.listen or self.address

    @property
    def has_copies(self) -> bool:
        """Whether other hosts have what this one has: a grid of one host has one replica, however many are wanted."""
        return min(self.replica_set_size, len(self.hosts)) > 1


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
