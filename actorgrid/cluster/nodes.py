"""Hosts that come to a running local grid, or leave it: requests to its keeper, as files, and the keeper's answers.

A request is a file in ``keeper/requests``; SIGHUP tells the keeper that there is one. The answer takes the request's place under another
name. Whoever asked removes it; what is left by one who went away is removed with the next request.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from actorgrid.cluster import grid_file, ports
from actorgrid.cluster.grid_file import GridFile, HostEntry
from actorgrid.errors import ActorGridError, DeadlineExceededError, RequestError, SettingsError, from_wire, to_wire

REQUESTS: Final = Path(grid_file.KEEPER_DIRECTORY) / "requests"
ANSWER_TIMEOUT_S: Final = 90.0
LOOK_S: Final = 0.05
NAME_MAX: Final = 64


class NodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the keeper is asked for.

    :ivar verb: ``add`` or ``stop``
    :ivar name: of the host; empty with ``add``: the next free one
    :ivar forget: with ``stop``: the host has nothing any more and leaves the grid
    """

    verb: str
    name: str = ""
    forget: bool = False


class NodeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. ``error``: class, message and details, or None."""

    host: str = ""
    address: str = ""
    error: tuple[str, str, dict[str, Any]] | None = None


def ask_keeper(data: Path, request: NodeRequest, *, timeout_s: float = ANSWER_TIMEOUT_S) -> NodeAnswer:
    """Let the keeper of the running grid in `data` do `request`.

    :raises SettingsError: no grid runs there
    :raises DeadlineExceededError: no answer within `timeout_s`; it may be done later
    :raises ActorGridError: what the keeper answered
    """
    running = grid_file.read_running(data)
    if running is None or not running.keeper.is_alive():
        raise SettingsError(f"no grid runs in {data}")
    directory = data / REQUESTS
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob("*.answer"):
        with contextlib.suppress(OSError):
            if time.time_ns() / 1e9 - left.stat().st_mtime > ANSWER_TIMEOUT_S:  # nobody waits for it any more
                left.unlink()
    path = directory / f"{time.time_ns():020d}-{secrets.token_hex(4)}.request"
    grid_file.write_durably(path, msgspec.json.encode(request))
    os.kill(running.keeper.pid, signal.SIGHUP)
    answer = path.with_suffix(".answer")
    deadline = time.monotonic() + timeout_s
    while not answer.exists():
        if time.monotonic() > deadline or not running.keeper.is_alive():
            path.unlink(missing_ok=True)
            raise DeadlineExceededError(f"the keeper of {data} did not answer within {timeout_s:g} s")
        time.sleep(LOOK_S)
    found = msgspec.json.decode(answer.read_bytes(), type=NodeAnswer)
    answer.unlink(missing_ok=True)
    if found.error is not None:
        raise from_wire(*found.error)
    return found


def take_requests(data: Path) -> list[tuple[Path, NodeRequest | ActorGridError]]:
    """For the keeper: what is asked for, oldest first."""
    found: list[tuple[Path, NodeRequest | ActorGridError]] = []
    for path in sorted((data / REQUESTS).glob("*.request")):
        try:
            found.append((path, msgspec.json.decode(path.read_bytes(), type=NodeRequest)))
        except (OSError, msgspec.MsgspecError) as error:
            found.append((path, RequestError(f"{path.name} is no request: {error}")))
    return found


def answer_request(path: Path, answer: NodeAnswer | ActorGridError) -> None:
    """For the keeper: the request at `path` is done, or refused."""
    if isinstance(answer, ActorGridError):
        answer = NodeAnswer(error=to_wire(answer))
    grid_file.write_durably(path.with_suffix(".answer"), msgspec.json.encode(answer))
    path.unlink(missing_ok=True)


def new_host(grid: GridFile, name: str) -> HostEntry:
    """The entry of one more host.

    :param name: empty: the next ``host-N``
    :raises RequestError: there is one of that name, or it is no name
    """
    taken = {host.name for host in grid.hosts}
    if not name:
        name = next(each for number in range(1, len(taken) + 2) if (each := f"host-{number}") not in taken)
    if name in taken:
        raise RequestError(f"the grid has a host {name}; its hosts are {', '.join(sorted(taken))}")
    if len(name) > NAME_MAX or not name.replace("-", "").replace("_", "").isalnum():
        raise RequestError(f"{name!r:.100} is no name for a host: up to {NAME_MAX} letters, digits, '-' and '_'")
    node = name.replace("host", "node") if name.startswith("host") else f"node-of-{name}"
    return HostEntry(name=name, node=node, address=ports.LOOPBACK, port=next_port(grid), data_dir=name)


def next_port(grid: GridFile) -> int:
    """A free port for one more host: the next after those of the others."""
    used = {host.port for host in grid.hosts}
    after = range(max(used, default=grid_file.PORT_DEFAULT - 1) + 1, 65_536)
    return next((port for port in after if ports.is_free(port, ports.LOOPBACK)), None) or ports.find_free(1)
