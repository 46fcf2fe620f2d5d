"""What a pod is told by its environment, and what follows from it: its hosts, their names, ports, addresses and directories.

Pods of a StatefulSet are called ``<statefulset>-<ordinal>``; the name of the pod is the name of the node. A pod of one host calls that as
itself, one of several calls them ``<pod>.1``, ``<pod>.2`` and so on, with ports that follow on each other. The grid is begun by the hosts
of the first pods, whatever comes later joins them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from actorgrid.cluster import grid_file, ports
from actorgrid.cluster.ray_api import POD_WORKER_PORTS
from actorgrid.cluster.ray_host import HostOrder
from actorgrid.errors import SettingsError
from actorgrid.settings import HostSettings
from actorgrid.wire.messages import HostInfo

if TYPE_CHECKING:
    from actorgrid.credentials import Credentials

RUN_DIRECTORY: Final = "/tmp/actorgrid"  # noqa: S108  # a pod's own
#: The paths of Ray's sockets are 75 bytes longer, and may have 107; what a raylet starts in adds a few.
RUN_DIRECTORY_BYTES_MAX: Final = 26
HOSTS_PER_POD_MAX: Final = 16
GRACE_MIN_S: Final = 15.0
GRACE_MAX_S: Final = 7 * 86_400.0
#: Of the grace period; what ends the processes once the hosts have stopped.
STOP_MARGIN_S: Final = 5.0
#: Of the grace period; what the end of the process needs after leaving.
LEAVE_MARGIN_S: Final = 10.0
RAY_PORT_DEFAULT: Final = 6380
PROBE_PORT_DEFAULT: Final = 7480
_POD_NAME: Final = re.compile(r"(?P<set>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)-(?P<ordinal>[0-9]{1,6})")
_FIRST_HOST: Final = re.compile(r"(?P<name>[^@,\s]+)@(?P<address>[^@,\s]+):(?P<port>[0-9]{1,5})")

T = TypeVar("T")


class _Reader:
    """Takes values from an environment and keeps what is wrong with them."""

    def __init__(self, source: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._source = source

    def text(self, name: str, default: str | None = None) -> str:
        """A variable; without a default it must be there."""
        value = self._source.get(name, "").strip()
        if not value and default is None:
            self.problems.append(f"{name} is not set")
        return value or default or ""

    def number(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        text = self.text(name, None if default is None else str(default))
        try:
            value = int(text)
        except ValueError:
            if text:
                self.problems.append(f"{name}: expected a whole number, got {text!r}")
            return low
        if not low <= value <= high:
            self.problems.append(f"{name}: {value} is outside the allowed range {low}..{high}")
            return low
        return value

    def list(self, name: str, separator: str) -> tuple[str, ...]:
        """The parts of a variable that may be missing."""
        return tuple(part.strip() for part in self._source.get(name, "").split(separator) if part.strip())

    def checked(self, make: Callable[[Mapping[str, str]], T]) -> T | None:
        """What `make` makes of the environment; None if it found problems."""
        try:
            return make(self._source)
        except SettingsError as error:
            self.problems += error.problems
            return None

    def ray_address(self) -> str:
        """``HOST:PORT`` of Ray's control store."""
        address = self.text("ACTORGRID_RAY_ADDRESS")
        host, _, port = address.rpartition(":")
        if address and not (host and port.isdecimal() and 1 <= int(port) <= 65_535):
            self.problems.append(f"ACTORGRID_RAY_ADDRESS: expected HOST:PORT, got {address!r}")
        return address

    def ray_port(self) -> int:
        """First of the ports of Ray's servers in a pod."""
        first = self.number("ACTORGRID_RAY_PORT", RAY_PORT_DEFAULT, 0, 65_535 - POD_WORKER_PORTS.stop)
        if first and first < ports.RAY_WORKER_PORTS.stop and first + POD_WORKER_PORTS.stop > ports.RAY_WORKER_PORTS.start:
            last = first + POD_WORKER_PORTS.stop - 1
            self.problems.append(f"ACTORGRID_RAY_PORT: ports {first}..{last} are among those that any Ray's workers take by themselves")
        return first

    def run_directory(self) -> Path:
        """Where sockets and Ray's files are, for as long as the pod lives."""
        directory = self.text("ACTORGRID_RUN", RUN_DIRECTORY)
        if not directory.startswith("/") or len(directory.encode()) > RUN_DIRECTORY_BYTES_MAX:
            self.problems.append(
                f"ACTORGRID_RUN: {directory!r} is no absolute path of at most {RUN_DIRECTORY_BYTES_MAX} bytes, since sockets are below it"
            )
        return Path(directory)

    def check_ray_credentials(self, pod_ip: str) -> None:
        """Whoever reaches Ray's ports can run code as us."""
        mode = self.text("RAY_AUTH_MODE", "")
        if mode == "token" and not (self._source.get("RAY_AUTH_TOKEN") or self._source.get("RAY_AUTH_TOKEN_PATH")):
            self.problems.append("RAY_AUTH_MODE is token, and neither RAY_AUTH_TOKEN_PATH nor RAY_AUTH_TOKEN is set")
        if mode != "token" and not ports.is_loopback(pod_ip):
            self.problems.append(f"RAY_AUTH_MODE must be token, got {mode!r}: whoever reaches Ray's ports could run code here")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """What the pod of Ray's head is told.

    :ivar address: ``HOST:PORT`` at which others find the control store
    """

    address: str
    pod_ip: str
    data: Path
    ray_port: int
    run: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> HeadSettings:
        """Read the settings.

        :raises SettingsError: something is missing or wrong; all of it is named
        """
        reader = _Reader(environment)
        pod_ip = reader.text("ACTORGRID_POD_IP")
        reader.check_ray_credentials(pod_ip)
        settings = cls(
            address=reader.ray_address(),
            pod_ip=pod_ip,
            data=Path(reader.text("ACTORGRID_DATA", "/data")),
            ray_port=reader.ray_port(),
            run=reader.run_directory(),
        )
        if reader.problems:
            raise SettingsError(*reader.problems)
        return settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What the pod of a node is told.

    :ivar ordinal: of the pod in its StatefulSet
    :ivar first: the hosts that begin the grid
    :ivar own: the hosts of this pod
    :ivar service: domain in which pods have their names; empty: the hosts of this pod are known by its IP address
    :ivar grace_s: from the wish that the pod ends to the kill of its processes
    :ivar kubernetes_node: the machine it is on; empty if unknown
    :ivar ray_port: first of the ports of Ray's servers in the pod; 0: any
    :ivar cpus: what offloaded tasks may use here; None: as many as Ray finds
    :ivar run: directory of sockets and of Ray's files
    """

    cluster_id: str
    partitions: int
    replicas: int
    app: tuple[str, ...]
    app_path: tuple[str, ...]
    ray_address: str
    statefulset: str
    service: str
    ordinal: int
    pod: str
    namespace: str
    pod_ip: str
    kubernetes_node: str
    zone: str
    probe_port: int
    data: Path
    grace_s: float
    first: tuple[HostInfo, ...]
    own: tuple[HostInfo, ...]
    host_settings: HostSettings
    credentials: Credentials | None
    ray_port: int
    cpus: int | None
    run: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PodSettings:
        """Read the settings.

        :raises SettingsError: something is missing or wrong; all of it is named
        """
        reader = _Reader(environment)
        pod, statefulset = reader.text("ACTORGRID_POD_NAME"), reader.text("ACTORGRID_STATEFULSET")
        pod_ip, service = reader.text("ACTORGRID_POD_IP"), reader.text("ACTORGRID_SERVICE", "")
        per_pod = reader.number("ACTORGRID_HOSTS_PER_POD", 1, 1, HOSTS_PER_POD_MAX)
        port = reader.number("ACTORGRID_PORT", grid_file.PORT_DEFAULT, 1, 65_535)
        reader.problems += ports.check_range(port, per_pod)
        own = _hosts_of(pod, service, pod_ip, port, per_pod)
        first = _listed(reader)
        if not first:
            count = reader.number("ACTORGRID_NODES_FIRST", None, 1, grid_file.PARTITIONS_MAX)
            if not service:
                reader.problems.append(
                    "ACTORGRID_SERVICE is not set: without it, and without ACTORGRID_FIRST_HOSTS, nobody finds the first hosts"
                )
            first = tuple(host for number in range(count) for host in _hosts_of(f"{statefulset}-{number}", service, "", port, per_pod))
        reader.check_ray_credentials(pod_ip)
        named = _POD_NAME.fullmatch(pod)
        if pod and (named is None or (statefulset and named["set"] != statefulset)):
            reader.problems.append(
                f"ACTORGRID_POD_NAME: {pod!r} is no pod of the StatefulSet {statefulset!r}, which are called {statefulset}-N"
            )
        cpus = reader.number("ACTORGRID_OFFLOAD_CPUS", -1, -1, 4096)
        settings = cls(
            cluster_id=reader.text("ACTORGRID_CLUSTER_ID"),
            partitions=reader.number("ACTORGRID_PARTITIONS", grid_file.PARTITIONS_DEFAULT, 1, grid_file.PARTITIONS_MAX),
            replicas=reader.number("ACTORGRID_REPLICAS", grid_file.REPLICAS_DEFAULT, 1, grid_file.REPLICAS_MAX),
            app=reader.list("ACTORGRID_APP", ","),
            app_path=reader.list("ACTORGRID_APP_PATH", ":"),
            ray_address=reader.ray_address(),
            statefulset=statefulset,
            service=service,
            ordinal=int(named["ordinal"]) if named is not None else 0,
            pod=pod,
            namespace=reader.text("ACTORGRID_NAMESPACE", "default"),
            pod_ip=pod_ip,
            kubernetes_node=reader.text("ACTORGRID_KUBERNETES_NODE", ""),
            zone=reader.text("ACTORGRID_ZONE", ""),
            probe_port=reader.number("ACTORGRID_PROBE_PORT", PROBE_PORT_DEFAULT, 1, 65_535),
            data=Path(reader.text("ACTORGRID_DATA", "/data")),
            grace_s=float(reader.number("ACTORGRID_GRACE_S", None, int(GRACE_MIN_S), int(GRACE_MAX_S))),
            first=first,
            own=own,
            host_settings=reader.checked(HostSettings.from_environment) or HostSettings(),
            credentials=reader.checked(_credentials_of),
            ray_port=reader.ray_port(),
            cpus=cpus if cpus >= 0 else None,
            run=reader.run_directory(),
        )
        if not settings.app:
            reader.problems.append("ACTORGRID_APP is not set: without modules there are no actors")
        taken = {host.port for host in own}
        if settings.probe_port in taken:
            reader.problems.append(f"ACTORGRID_PROBE_PORT: a host listens on {settings.probe_port} already")
        if reader.problems:
            raise SettingsError(*reader.problems)
        return settings

    @property
    def hosts(self) -> tuple[HostInfo, ...]:
        """What a host of this pod is told of the grid: the first hosts, and those of this pod."""
        names = {host.name for host in self.first}
        return (*self.first, *(host for host in self.own if host.name not in names))

    @property
    def listen(self) -> str:
        """The address to listen on: all of the pod's, so that it may ask itself on 127.0.0.1."""
        if ports.is_loopback(self.pod_ip):
            return self.pod_ip
        return "::" if ":" in self.pod_ip else "0.0.0.0"  # noqa: S104  # `HostConfig` demands credentials then

    @property
    def inside(self) -> str:
        """The address at which the pod asks itself."""
        if ports.is_loopback(self.pod_ip):
            return self.pod_ip
        return "::1" if ":" in self.pod_ip else ports.LOOPBACK

    @property
    def socket(self) -> Path:
        """At which the agent takes the wishes of `actorgrid pod leave`."""
        return self.run / "agent.sock"

    def directory_of(self, host: str) -> Path:
        """The data of a host."""
        return self.data / host

    def order_for(self, host: HostInfo, *, zone: str, output: str = "") -> bytes:
        """The order for one of the hosts of this pod.

        :param output: see `HostOrder`
        """
        files = dataclasses.asdict(self.credentials) if self.credentials is not None else {}
        return msgspec.json.encode(
            HostOrder(
                cluster_id=self.cluster_id,
                name=host.name,
                node=self.pod,
                zone=zone,
                data_dir=str(self.directory_of(host.name)),
                address=host.address,
                port=host.port,
                partition_count=self.partitions,
                replica_set_size=self.replicas,
                hosts=self.hosts,
                app=self.app,
                app_path=self.app_path,
                # A host that leaves goes by the pod's grace period; what it is told to wait for is all that the agent would wait.
                settings=dataclasses.asdict(self.host_settings) | {"stop_grace_s": self.grace_s - LEAVE_MARGIN_S},
                listen=self.listen if self.listen != host.address else "",
                credentials={name: path for name, path in files.items() if path and name != "token"},
                output=output,
            )
        )


def make_directory(path: Path, *, mode: int = 0o777) -> None:
    """Make a directory that this process may write to, unless it is there.

    :raises SettingsError: it may not
    """
    try:
        path.mkdir(parents=True, mode=mode, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SettingsError(
            f"cannot write to {path}: {error.strerror or error}; its volume must be writable for user {os.getuid()} or group {os.getgid()}"
        ) from None


def _credentials_of(environment: Mapping[str, str]) -> Credentials | None:
    from actorgrid.credentials import Credentials

    return Credentials.from_environment(environment)


def _hosts_of(pod: str, service: str, ip: str, port: int, count: int) -> tuple[HostInfo, ...]:
    address = f"{pod}.{service}" if service else ip
    names = [pod] if count == 1 else [f"{pod}.{number}" for number in range(1, count + 1)]
    return tuple(HostInfo(name, address, port + number) for number, name in enumerate(names))


def _listed(reader: _Reader) -> tuple[HostInfo, ...]:
    """The first hosts where they are listed, ``NAME@ADDRESS:PORT``; else none."""
    hosts = []
    for text in reader.list("ACTORGRID_FIRST_HOSTS", ","):
        found = _FIRST_HOST.fullmatch(text)
        if found is None or not 1 <= int(found["port"]) <= 65_535:
            reader.problems.append(f"ACTORGRID_FIRST_HOSTS: expected NAME@ADDRESS:PORT, got {text!r}")
        else:
            hosts.append(HostInfo(found["name"], found["address"].strip("[]"), int(found["port"])))
    return tuple(hosts)
