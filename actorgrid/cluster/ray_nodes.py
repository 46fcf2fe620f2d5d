"""The keeper's half of a Ray cluster that somebody else runs: one host on each of its nodes, and what Ray says of nodes told to placement.

`RayNodes.look`, called by the keeper about once a second, sees what is there, asks `ray_notices.decide` what is to be done, and does it.
It waits for nothing long: a host that starts is looked at again with the next round. Ray's control store may be away, and so may the
placement manager: both are asked again, and what they have missed is still to be seen then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import grid_file, nodes, ports, ray_api, ray_host, ray_notices, troubles
from actorgrid.cluster.grid_file import GridFile, HostEntry
from actorgrid.cluster.ray_api import HostHandle
from actorgrid.cluster.ray_notices import Asked, Memory, NodeHost, RayNode, Standing
from actorgrid.errors import ActorGridError, HostUnavailableError, RequestError, SettingsError, TransientError
from actorgrid.settings import HostSettings, WireSettings

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
#: Of one question to Ray's control store, which answers in a millisecond.
LOOK_TIMEOUT_S: Final = 1.0
#: Of one question to one host; the next look asks again.
ASK_TIMEOUT_S: Final = 2.0
#: A host that failed to start (a taken port, a full disk) is started again no sooner.
START_AGAIN_S: Final = 15.0
#: What an actor that an earlier keeper left has to say who it is.
DESCRIBE_S: Final = 3.0
#: A node whose deadline has passed before it could be told is told one all the same: 0 would mean none.
DEADLINE_LEAST_S: Final = 1.0
STOP_S: Final = 8.0
#: What Ray gives as the deadline of a drain that has none is in the far future.
DEADLINE_NONE_S: Final = 10 * 365 * 86_400.0
MEMORY_FILE: Final = Path(grid_file.KEEPER_DIRECTORY) / "ray_nodes.json"


class Roster(Protocol):
    """What the keeper knows of its hosts."""

    hosts: list[HostHandle]

    @property
    def grid(self) -> GridFile:
        """As ``grid.json`` has it."""

    def write_hosts(self, hosts: tuple[HostEntry, ...]) -> None:
        """Change which hosts the grid has."""


class RayNodes:
    """Hosts on the nodes of a Ray cluster.

    :param data: the grid's directory, the same path on every node; each host's is inside
    :param start_timeout_s: seconds until the start of a host is given up
    :param told_to_stop: whether the keeper is to end
    """

    def __init__(
        self,
        ray: ray_api.AttachedRay,
        roster: Roster,
        data: Path,
        settings: HostSettings,
        *,
        start_timeout_s: float,
        told_to_stop: Callable[[], bool],
    ) -> None:
        self._ray = ray
        self._roster = roster
        self._data = data
        self._settings = settings
        self._start_timeout_s = start_timeout_s
        self._told_to_stop = told_to_stop
        self._memory = _read_memory(data)
        self._starting: dict[str, tuple[Any, float]] = {}  # by host: its answer to `wait_started`, and until when it is waited for
        self._not_before: dict[str, float] = {}  # by Ray node: when a start may be tried again
        self._said: dict[str, str] = {}  # by subject: the trouble that was logged last, so that it is logged once
        self._look_at = 0.0

    # -- the start of a grid

    def start_first(self, nodes_min: int, port: int | None) -> None:
        """Start a host on every node there is, once there are `nodes_min`; hosts that still run from before are taken over.

        :raises SettingsError: too few nodes in time, two of one name in a new grid, or one that is not on this machine
        """
        seen = self._wait_for_nodes(nodes_min)
        doubles = ray_notices.doubles(seen, [])
        if doubles and not self._roster.grid.begun:  # later a wrong label must not keep the others from starting
            raise SettingsError(*(_say_double(node) for node in doubles))
        alive = ray_notices.alive_by_name(seen, [])
        wanted = [node for _, node in sorted(alive.items()) if node.wants_host and node.drain_deadline_ms is None]
        _refuse_far(wanted)
        if not self._roster.grid.hosts:
            self._roster.write_hosts(grid_file.give_ports(tuple(_entry_of(node, grid_file.PORT_DEFAULT) for node in wanted), port))
        for node in wanted:  # all of them first: hosts that begin a grid must know each other
            self._entry_for(node)
        self._remember(msgspec.structs.replace(self._memory, dismissed={}))  # as a local grid: `up` starts all of them
        for node in wanted:
            self._begin_start(node)
        self._starting.clear()  # the keeper waits for all of them together
        for host in self._roster.grid.hosts:
            node_there = alive.get(host.node)
            if node_there is not None and node_there.drain_deadline_ms is not None:
                self._keep_drained(host, node_there)
            elif node_there is None:
                log.warning("host is not started, its ray node is not there: host=%s node=%s", host.name, host.node)

    def _keep_drained(self, host: HostEntry, node: RayNode) -> None:
        """Take over the host of a node that drains, if it runs: none is started there any more, but this one is to stop when empty."""
        found = self._find_running(host.name, node.id)
        if found is not None:
            self._roster.hosts.append(found[0])

    def _wait_for_nodes(self, nodes_min: int) -> list[RayNode]:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            seen = self._ray.look(LOOK_TIMEOUT_S)
            count = sum(node.wants_host and node.drain_deadline_ms is None for node in ray_notices.alive_by_name(seen, []).values())
            if count >= max(1, nodes_min):
                return seen
            if time.monotonic() > deadline or self._told_to_stop():
                raise SettingsError(f"the Ray cluster at {self._ray.address} has {count} nodes for hosts, {max(1, nodes_min)} are wanted")
            time.sleep(LOOK_EVERY_S / 4)

    # -- requests of operators

    def add(self, name: str) -> nodes.NodeAnswer:
        """Start the host of node `name` again, which was stopped. All others come by themselves."""
        if name not in self._memory.dismissed:
            raise RequestError(
                "hosts of a Ray cluster come with its nodes, by themselves; to add is only one that was stopped: "
                f"{', '.join(sorted(self._memory.dismissed)) or 'there is none'}"
            )
        left = {node: ray_id for node, ray_id in self._memory.dismissed.items() if node != name}
        self._remember(msgspec.structs.replace(self._memory, dismissed=left))
        self._look_at = 0.0
        entry = next((host for host in self._roster.grid.hosts if host.name == name), None)
        return nodes.NodeAnswer(host=name, address=f"{entry.address}:{entry.port}" if entry is not None else "")

    def dismiss(self, handle: HostHandle) -> None:
        """An operator has stopped the host: it is not to be started again by itself."""
        self._starting.pop(handle.name, None)
        self._remember(msgspec.structs.replace(self._memory, dismissed={**self._memory.dismissed, handle.name: handle.node_id}))

    # -- one look

    def look(self) -> None:
        """See how Ray's nodes stand, and do what follows. Returns at once if it was called less than a second ago."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        try:
            seen = self._ray.look(LOOK_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises: the next look asks again, and hosts serve on
            self._say("ray", f"ray's control store does not answer, hosts serve on: {type(error).__name__}: {error}")
            return
        self._say("ray", "")
        if not any(node.is_alive for node in seen):
            return  # a control store that knows nothing of the very node we are connected to is not to be believed yet
        try:
            self._follow(seen)
        except Exception:
            # A control store that went away in between, or our own mistake: neither may end hosts, which the keeper's end would do.
            if "look" not in self._said:
                log.exception("what ray says was not followed to the end, the next look tries again")
            self._said["look"] = "not followed"
        else:
            self._said.pop("look", None)

    def _follow(self, seen: list[RayNode]) -> None:
        for node in ray_notices.doubles(seen, self._hosts()):
            self._say(node.id, _say_double(node))
        self._drop_lost(seen)
        self._settle_starts()
        hosts = self._hosts()
        intents = self._ask_intents() if ray_notices.needs_standing(seen, hosts, self._memory) else None
        for action in ray_notices.decide(seen, hosts, intents, self._memory):
            if self._told_to_stop():
                return
            try:
                self._do(action)
            except Exception as error:  # noqa: BLE001  # of Ray, of the disk: the others must not wait for it
                self._say(f"{action}", f"not done, tried again: {action}: {type(error).__name__}: {error}")
            else:
                if not isinstance(action, ray_notices.StartHost):  # which may only have been put off
                    self._said.pop(f"{action}", None)

    def _hosts(self) -> list[NodeHost]:
        pinned = {handle.name: handle.node_id for handle in self._roster.hosts}
        return [NodeHost(name=host.name, node=host.node, ray_id=pinned.get(host.name, "")) for host in self._roster.grid.hosts]

    def _drop_lost(self, seen: list[RayNode]) -> None:
        for host in ray_notices.lost(seen, self._hosts()):
            log.warning(
                "ray node is dead, its host is not started elsewhere: host=%s node=%s ray_node=%s", host.name, host.node, host.ray_id
            )
            self._drop(host.name)

    def _drop(self, name: str) -> None:
        """End the actor of a host, if there is one."""
        self._starting.pop(name, None)
        for handle in [each for each in self._roster.hosts if each.name == name]:
            handle.end()
            self._roster.hosts.remove(handle)

    def _do(self, action: ray_notices.Action) -> None:
        match action:
            case ray_notices.StartHost(node):
                self._start(node)
            case ray_notices.Drain(node, asked):
                self._drain(node, asked)
            case ray_notices.Undrain(node):
                self._ask_manager("undrain", {"node": node})
                log.info("ray has taken a drain back, and so do we: node=%s", node)
                self._forget_drain(node)
            case ray_notices.ForgetDrain(node):
                self._forget_drain(node)
            case ray_notices.StopHost(host):
                self._stop(host)
            case ray_notices.RemoveHost(host):
                log.info("host is gone for good: host=%s", host)
                self._remove(host)

    # -- drains

    def _drain(self, node: str, asked: Asked) -> None:
        left_s = asked.deadline_ms / 1000 - time.time_ns() / 1e9  # Ray gives a date
        arguments: dict[str, Any] = {"node": node, "intent": ray_notices.REMOVE_NODE}
        if asked.deadline_ms and left_s < DEADLINE_NONE_S:
            arguments["deadline_s"] = max(DEADLINE_LEAST_S, left_s)
        self._ask_manager("drain", arguments)
        # Only now: a keeper that dies in between asks a second time, which changes nothing; the other way round nobody would ask.
        self._remember(msgspec.structs.replace(self._memory, asked={**self._memory.asked, node: asked}))
        log.info("ray drains a node, its replicas go: node=%s ray_node=%s deadline_s=%s", node, asked.ray_id, arguments.get("deadline_s"))

    def _forget_drain(self, node: str) -> None:
        self._remember(
            msgspec.structs.replace(self._memory, asked={name: each for name, each in self._memory.asked.items() if name != node})
        )

    def _ask_intents(self) -> dict[str, Standing] | None:
        try:
            rows = self._ask_manager("nodes", {})["nodes"]
        except ActorGridError as error:
            self._say("manager", f"the placement manager does not answer, asked again: {error}")
            return None
        self._say("manager", "")
        return {row["name"]: Standing(intent=row["intent"], is_empty=row["drain"] == "done") for row in rows}

    def _ask_manager(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Ask the placement manager through any host that answers.

        :raises ActorGridError: none does, or it refused
        """
        running = {handle.name for handle in self._roster.hosts}
        error: ActorGridError = HostUnavailableError("no host runs")
        for host in self._roster.grid.hosts:
            if host.name not in running or host.name in self._starting:
                continue
            try:
                return asyncio.run(
                    admin.ask(
                        host.address,
                        host.port,
                        verb,
                        arguments,
                        client_id=new_client_id(),
                        cluster_id=self._roster.grid.cluster_id,
                        wire=WireSettings(),
                        timeout_s=ASK_TIMEOUT_S,
                    )
                )
            except TransientError as silent:
                error = silent
        raise error

    # -- hosts

    def _start(self, node: RayNode) -> None:
        now = time.monotonic()
        if now < self._not_before.get(node.id, 0.0):
            return
        self._not_before[node.id] = now + START_AGAIN_S
        log.info("starting a host on a ray node: node=%s ray_node=%s", node.name, node.id)
        self._begin_start(node)

    def _begin_start(self, node: RayNode) -> None:
        _refuse_far([node])
        entry = self._entry_for(node)
        self._drop(entry.name)
        order = ray_host.order_of(self._roster.grid, entry, self._data, self._settings)
        handle = self._take_over(entry.name, node.id, order)
        if handle is None:
            handle = ray_api.create_host_actor(ray_host.HostActor, entry.name, order, node_id=node.id)
        self._roster.hosts.append(handle)
        self._starting[entry.name] = (handle.begin("wait_started"), time.monotonic() + self._start_timeout_s)

    def _entry_for(self, node: RayNode) -> HostEntry:
        """The host of the node as ``grid.json`` has it; a new one is written there."""
        grid = self._roster.grid
        entry = next((host for host in grid.hosts if host.node == node.name), None)
        if entry is None:
            entry = _entry_of(node, nodes.next_port(grid))
            self._roster.write_hosts((*grid.hosts, entry))
        return entry

    def _take_over(self, name: str, node_id: str, order: bytes) -> HostHandle | None:
        """The actor that an earlier keeper left, if it runs where and as it should; any other one is ended."""
        found = self._find_running(name, node_id)
        if found is None:
            return None
        handle, its_order = found
        if ray_host.is_same_order(its_order, order):
            log.info("host runs already and is taken over: host=%s", name)
            return handle
        self._end_earlier(handle, "its app, port or settings are others")
        return None

    def _find_running(self, name: str, node_id: str) -> tuple[HostHandle, bytes] | None:
        """The actor of an earlier keeper with its order, if it runs on that Ray node; any other one is ended."""
        handle = ray_api.find_host_actor(name, node_id)
        if handle is None:
            return None
        [answer] = ray_api.results([handle.begin("describe")], DESCRIBE_S, cancelled=self._told_to_stop)
        if not isinstance(answer, list):
            self._end_earlier(handle, answer)
            return None
        its_node, order, is_stopped = answer
        if its_node != node_id or is_stopped:
            self._end_earlier(handle, "it was stopped" if is_stopped else "it runs on another ray node")
            return None
        return handle, order

    def _end_earlier(self, handle: HostHandle, reason: object) -> None:
        log.info("host of an earlier run is ended: host=%s reason=%.200s", handle.name, reason)
        handle.end()
        ray_api.wait_until_free(handle.name)

    def _settle_starts(self) -> None:
        """See which hosts have started, or failed to."""
        handles = {handle.name: handle for handle in self._roster.hosts}
        for name, (reference, deadline) in list(self._starting.items()):
            if not ray_api.is_ready(reference):
                if time.monotonic() < deadline:
                    continue
                answer: Any = TimeoutError(f"no answer in {self._start_timeout_s:g} s")
            else:
                [answer] = ray_api.results([reference], 1.0)
            if answer is None:
                log.info("host has started on its ray node: host=%s", name)
                del self._starting[name]
            elif ray_api.is_end_of_process(answer) and time.monotonic() < deadline:
                self._starting[name] = (handles[name].begin("wait_started"), deadline)  # Ray starts another process
            else:
                log.error("host did not start, tried again: host=%s again_s=%g reason=%s", name, START_AGAIN_S, answer)
                self._not_before[handles[name].node_id] = time.monotonic() + START_AGAIN_S
                self._drop(name)

    def _stop(self, name: str) -> None:
        handle = next(each for each in self._roster.hosts if each.name == name)
        [answer] = ray_api.results([handle.begin("stop")], STOP_S, cancelled=self._told_to_stop)
        if answer is not None:
            log.warning("host did not stop in order: host=%s reason=%s", name, answer)
        log.info("drained host is stopped: host=%s", name)
        self._remove(name)

    def _remove(self, name: str) -> None:
        self._drop(name)
        self._roster.write_hosts(tuple(host for host in self._roster.grid.hosts if host.name != name))

    # -- memory

    def _remember(self, memory: Memory) -> None:
        if memory != self._memory:
            self._memory = memory
            grid_file.write_durably(self._data / MEMORY_FILE, msgspec.json.encode(memory))

    def _say(self, subject: str, trouble: str) -> None:
        troubles.say(log, self._said, subject, trouble)


def _read_memory(data: Path) -> Memory:
    try:
        return msgspec.json.decode((data / MEMORY_FILE).read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("what was asked for on behalf of ray is forgotten, an `undrain` may be needed: file=%s reason=%s", MEMORY_FILE, error)
        return Memory()


def _entry_of(node: RayNode, port: int) -> HostEntry:
    # The prefix keeps a node called `keeper` from the directory of that name.
    return HostEntry(name=node.name, node=node.name, address=ports.LOOPBACK, port=port, data_dir=f"host-of-{node.name}")


def _refuse_far(seen: list[RayNode]) -> None:
    """Ports of hosts take calls from everybody who reaches them, so they must not be reached from elsewhere.

    :raises SettingsError: a node is not at a loopback address
    """
    far = [node for node in seen if not ports.is_loopback(node.address)]
    if far:
        raise SettingsError(
            *(
                f"Ray node {node.name} is at {node.address}: hosts off this machine need credentials, which this release does not have; "
                "start Ray's nodes with `ray start --node-ip-address 127.0.0.1`"
                for node in far
            )
        )


def _say_double(node: RayNode) -> str:
    return f"two Ray nodes are called {node.name}, and {node.id} gets no host: give it a label {ray_api.NODE_LABEL} of its own"
