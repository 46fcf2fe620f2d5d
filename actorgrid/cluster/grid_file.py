"""What a data directory says about the grid in it: `grid.json` (for good), `running.json` (while it runs) and `grid.lock`.

`grid.json` is written when the grid is created, and decides from then on how many partitions and hosts there are: the data
in the directory is laid out by it, so `open_grid` refuses whatever contradicts it. `running.json` is a hint for `down` and
for people; the lock is what keeps two grids out of one directory. The grid's keeper process holds it for as long as it
lives, and the kernel frees it whatever ends the keeper, so a stale `running.json` after a power failure is in nobody's way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from actorgrid.cluster import ports
from actorgrid.cluster.processes import ProcessMark
from actorgrid.errors import SettingsError

FORMAT_VERSION = 1
GRID_FILE = "grid.json"
RUNNING_FILE = "running.json"
LOCK_FILE = "grid.lock"
KEEPER_DIRECTORY = "keeper"
HOST_MARK_FILE = "host.pid"
HOST_FAILURE_FILE = "host.failed"
HOST_LOG_FILE = "host.log"
#: What may lie in a directory that is no grid yet: a first `up` that was refused leaves its lock file and its log.
_NO_OBSTACLE = frozenset({LOCK_FILE, KEEPER_DIRECTORY})

NODES_DEFAULT = 3
NODES_MAX = 64  # one machine; far above its cores
PARTITIONS_DEFAULT = 64  # about ten for each of the six hosts a first grid grows to
PARTITIONS_MAX = 65_536
REPLICAS_DEFAULT = 3
REPLICAS_MAX = 7  # as hosts have it: past that every write waits for more disks and gains nothing
PORT_DEFAULT = 7400

#: Two processes of a host that began so far apart and then failed did not fail "in a row".
FAILURES_APART_S = 15.0

Port = Annotated[int, Meta(ge=1, le=65_535)]


class DirectoryRefusedError(SettingsError):
    """The data directory must not be used so: another grid, other numbers, or a grid that runs. Nothing was started or changed."""


class HostEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One host of the grid; ``data_dir`` is relative to the grid's directory, so that it may be moved as a whole."""

    name: str
    node: str
    address: str
    port: Port
    data_dir: str


class GridFile(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``grid.json``.

    :ivar replica_set_size: replicas wanted of each partition; with fewer nodes there is one on each
    :ivar begun: hosts have their first replicas (`init`); until then nobody has anything
    :ivar app: actor modules of the last `up`
    :ivar app_path: directories that are put in front of ``sys.path`` before they are imported
    :ivar ray_address: control store of the Ray cluster whose nodes have the hosts; empty: the grid has a Ray of its own
    :ivar actorgrid_version: release that wrote the file last, for people
    """

    format_version: int
    cluster_id: str
    partition_count: Annotated[int, Meta(ge=1)]
    replica_set_size: Annotated[int, Meta(ge=1)]
    hosts: tuple[HostEntry, ...]
    begun: bool = False
    app: tuple[str, ...] = ()
    app_path: tuple[str, ...] = ()
    ray_address: str = ""
    actorgrid_version: str = ""

    def __post_init__(self) -> None:
        # On a Ray cluster the keeper sees only after `up` has written the file which nodes there are.
        if not self.hosts and (self.begun or not self.ray_address):
            raise ValueError("a grid has at least one host")

    @property
    def address(self) -> str:
        """All hosts as ``host:port,host:port``, as `grid.connect` takes them."""
        return ",".join(f"{host.address}:{host.port}" for host in self.hosts)

    @property
    def shortage(self) -> str:
        """Why partitions cannot have as many replicas as are wanted; empty if they can."""
        nodes = len({host.node for host in self.hosts})
        return say_shortage(self.replica_set_size, nodes) if nodes < self.replica_set_size else ""


def say_shortage(replicas: int, nodes: int) -> str:
    """``3 replicas wanted, grid has 1 node``."""
    return f"{replicas} replicas wanted, grid has {nodes} node{'' if nodes == 1 else 's'}"


class RunningFile(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``running.json``.

    :ivar keeper: the process that leads the grid's session
    :ivar address: hosts of the running grid
    :ivar ray_address: Ray's control store
    :ivar ray_dir: Ray's sockets and logs; short-lived, removed by `down`
    :ivar namespace: Ray namespace of the host actors
    :ivar started_at: ISO time, for people
    """

    keeper: ProcessMark
    address: str
    ray_address: str
    ray_dir: str
    namespace: str
    started_at: str


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller of `up` asked for; None: as the grid has it, or the default for a new one.

    :ivar nodes: hosts; on a Ray cluster: so many nodes are waited for, at least
    :ivar ray_address: ``HOST:PORT`` of the control store of a Ray cluster that runs already
    """

    nodes: int | None = None
    partitions: int | None = None
    replicas: int | None = None
    port: int | None = None  #: 0: any free ports
    app: tuple[str, ...] | None = None
    app_path: tuple[str, ...] = ()
    ray_address: str | None = None


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that after a crash it has the old or the new content, whole."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's names durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pretty(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def read_grid(data: Path) -> GridFile | None:
    """The grid in `data`; None if there is none.

    :raises DirectoryRefusedError: ``grid.json`` is damaged or was written by a newer release
    """
    path = data / GRID_FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DirectoryRefusedError(f"cannot read {path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(content, type=dict[str, msgspec.Raw]).get("format_version")
        if version is not None and msgspec.json.decode(version, type=int) > FORMAT_VERSION:
            raise DirectoryRefusedError(
                f"{path} has format {bytes(version).decode()}, this release knows up to {FORMAT_VERSION}: use a newer actorgrid"
            )
        return msgspec.json.decode(content, type=GridFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DirectoryRefusedError(f"{path} is damaged: {error}") from error


def write_grid(data: Path, grid: GridFile) -> None:
    """Write ``grid.json`` durably."""
    write_durably(data / GRID_FILE, _pretty(grid))


def read_running(data: Path) -> RunningFile | None:
    """``running.json``, or None if it is missing or unreadable (it is only a hint)."""
    try:
        return msgspec.json.decode((data / RUNNING_FILE).read_bytes(), type=RunningFile)
    except (OSError, msgspec.DecodeError):
        return None


def write_running(data: Path, running: RunningFile) -> None:
    """Write ``running.json``."""
    write_durably(data / RUNNING_FILE, _pretty(running))


def remove_running(data: Path) -> None:
    """Forget that a grid ran here."""
    (data / RUNNING_FILE).unlink(missing_ok=True)


def read_host_mark(data: Path, host: HostEntry) -> ProcessMark | None:
    """The process that runs `host` now; None while there is none."""
    try:
        mark = msgspec.json.decode((data / host.data_dir / HOST_MARK_FILE).read_bytes(), type=ProcessMark)
    except (OSError, msgspec.DecodeError):
        return None
    return mark if mark.is_alive() else None


def write_host_mark(directory: Path) -> None:
    """Say that the calling process runs the host of `directory`."""
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    path = directory / HOST_MARK_FILE
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(msgspec.json.encode(mark))
    temporary.replace(path)


class HostFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of ``host.failed``: the process that ended because its host could not go on, and how many did so in quick succession."""

    mark: ProcessMark
    in_a_row: int


def read_host_failures(directory: Path) -> int:
    """How many processes of the host of `directory` have ended by themselves, one soon after the other, just before the calling one."""
    try:
        failure = msgspec.json.decode((directory / HOST_FAILURE_FILE).read_bytes(), type=HostFailure)
    except (OSError, msgspec.DecodeError):
        return 0
    mark = ProcessMark.of(os.getpid())
    seconds = mark.seconds_after(failure.mark) if mark is not None else None
    return failure.in_a_row if seconds is not None and 0 <= seconds < FAILURES_APART_S else 0


def write_host_failure(directory: Path, before: int) -> None:
    """Say that the calling process ends because its host cannot go on, after `before` others. It may fail: then nobody knows."""
    mark = ProcessMark.of(os.getpid())
    if mark is not None:
        with contextlib.suppress(OSError):
            (directory / HOST_FAILURE_FILE).write_bytes(msgspec.json.encode(HostFailure(mark=mark, in_a_row=before + 1)))


@contextlib.contextmanager
def lock(data: Path) -> Iterator[int]:
    """Hold the directory's lock; gives the descriptor, which a child process may inherit to keep holding it.

    :raises DirectoryRefusedError: a grid runs in the directory, or is being started or stopped there
    """
    descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DirectoryRefusedError(_in_use(data)) from None
        yield descriptor
    finally:
        # Closing, not unlocking: an unlock would free it for the child, too.
        os.close(descriptor)


def is_locked(data: Path) -> bool:
    """Whether a grid runs, starts or stops in the directory."""
    try:
        with lock(data):
            return False
    except DirectoryRefusedError:
        return True
    except OSError:
        return False


def _in_use(data: Path) -> str:
    running = read_running(data)
    if running is None:
        return f"{data} is in use: a grid is being started or stopped there"
    return f"{data} is in use: its grid runs at {running.address} (pid {running.keeper.pid}); `actorgrid down` ends it"


def make_directory(data: Path) -> None:
    """Create `data`, or check that it may hold a grid.

    :raises DirectoryRefusedError: it is no directory, cannot be written, or is neither empty nor a grid
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        found = {entry.name for entry in data.iterdir()}
    except FileExistsError:
        raise DirectoryRefusedError(f"{data} is a file, not a directory") from None
    except OSError as error:
        raise DirectoryRefusedError(f"cannot use {data}: {error.strerror}") from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise DirectoryRefusedError(f"cannot write to {data}: Permission denied")
    strangers = sorted(found - _NO_OBSTACLE)
    if GRID_FILE not in found and strangers:
        raise DirectoryRefusedError(
            f"{data} is not empty and holds no grid (it has {', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''})"
        )


def open_grid(data: Path, wish: Wish, *, version: str) -> tuple[GridFile, bool]:
    """The grid that `up` starts: the one in `data` if it fits `wish`, else a new one. Call it with the lock held.

    :returns: the grid, and whether it is new; ``grid.json`` is not written yet
    :raises DirectoryRefusedError: the grid in the directory differs from `wish`; every difference is named
    :raises SettingsError: a number is out of range, the app is missing, or a port is taken; all problems are named
    """
    present = read_grid(data)
    if present is None:
        return _new_grid(wish, version), True
    problems = [
        f"{data} holds a grid with {has} {noun}, not {wanted}"
        for noun, has, wanted in (
            ("partitions", present.partition_count, wish.partitions),
            ("nodes", len(present.hosts), None if present.ray_address else wish.nodes),
            ("replicas of each partition", present.replica_set_size, wish.replicas),
        )
        if wanted is not None and wanted != has
    ]
    if wish.ray_address is not None and not present.ray_address:
        problems.append(f"{data} holds a grid with a Ray of its own, which cannot be moved to the Ray cluster at {wish.ray_address}")
    if problems:
        raise DirectoryRefusedError(*problems)
    hosts = _with_ports(present.hosts, wish.port)
    if not present.ray_address:  # there, hosts may have outlived their keeper, which takes them over again
        _refuse_taken_ports(hosts)
    app, app_path = (present.app, present.app_path) if wish.app is None else (wish.app, wish.app_path)
    ray_address = present.ray_address if wish.ray_address is None else _checked_ray_address(wish.ray_address)
    changes = {"hosts": hosts, "app": app, "app_path": app_path, "ray_address": ray_address, "actorgrid_version": version}
    return msgspec.structs.replace(present, **changes), False


def _new_grid(wish: Wish, version: str) -> GridFile:
    nodes = NODES_DEFAULT if wish.nodes is None else wish.nodes
    partitions = PARTITIONS_DEFAULT if wish.partitions is None else wish.partitions
    replicas = REPLICAS_DEFAULT if wish.replicas is None else wish.replicas
    problems = [
        f"{noun}: {value} is outside the allowed range 1..{highest}"
        for noun, value, highest in (
            ("nodes", nodes, NODES_MAX),
            ("partitions", partitions, PARTITIONS_MAX),
            ("replicas", replicas, REPLICAS_MAX),
        )
        if not 1 <= value <= highest
    ]
    if not wish.app:
        problems.append("a new grid needs at least one actor module: --app MODULE")
    if problems:
        raise SettingsError(*problems)
    if wish.ray_address is not None:
        hosts: tuple[HostEntry, ...] = ()  # the keeper looks which nodes there are
    else:
        hosts = give_ports(
            tuple(
                HostEntry(name=f"host-{i}", node=f"node-{i}", address=ports.LOOPBACK, port=PORT_DEFAULT, data_dir=f"host-{i}")
                for i in range(1, nodes + 1)
            ),
            wish.port,
        )
    return GridFile(
        format_version=FORMAT_VERSION,
        cluster_id=secrets.token_hex(8),
        partition_count=partitions,
        replica_set_size=replicas,
        hosts=hosts,
        app=tuple(wish.app or ()),
        app_path=wish.app_path,
        ray_address="" if wish.ray_address is None else _checked_ray_address(wish.ray_address),
        actorgrid_version=version,
    )


def _checked_ray_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise SettingsError(f"Ray address {address!r}: expected HOST:PORT of its control store, as `ray start --head --port PORT` tells it")
    if not ports.is_loopback(host):
        raise SettingsError(
            f"Ray address {address}: a Ray that is not on a loopback address has nodes off this machine, and hosts there need credentials, "
            "which this release does not have; start Ray's nodes with `ray start --node-ip-address 127.0.0.1`"
        )
    return address


def give_ports(hosts: Sequence[HostEntry], first: int | None) -> tuple[HostEntry, ...]:
    """The hosts of a new grid with their ports, from `first` on; None: from the default, 0: any that are free.

    :raises SettingsError: one is taken, or out of range
    """
    entries = _with_ports(hosts, PORT_DEFAULT if first is None else first)
    _refuse_taken_ports(entries)
    return entries


def _with_ports(hosts: Sequence[HostEntry], first: int | None) -> tuple[HostEntry, ...]:
    if first is None:
        return tuple(hosts)
    if first == 0:
        first = ports.find_free(len(hosts))
    elif problems := ports.check_range(first, len(hosts)):
        raise SettingsError(*problems)
    return tuple(msgspec.structs.replace(host, port=first + i) for i, host in enumerate(hosts))


def _refuse_taken_ports(hosts: Sequence[HostEntry]) -> None:
    taken = [host for host in hosts if not ports.is_free(host.port, host.address)]
    if taken:
        raise SettingsError(*(f"port {host.port} of {host.address}, wanted by {host.name}, is in use by another process" for host in taken))
