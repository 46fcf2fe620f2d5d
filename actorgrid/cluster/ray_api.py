"""The one wrapper around Ray: nothing else imports it, and Ray's private interfaces are used here only.

What crosses Ray as argument or result is plain data of ours (bytes, str, numbers, dicts of these), never an object of a
user's class: Ray pickles, we do not (I18). None of this is on the path of a message: when Ray's control store is away,
hosts serve on, and only starting hosts and offloading waits.

Private here: ``ray._private.node.Node`` and ``RayParams`` (what ``ray start`` itself uses, head or not; it offers ports,
directories and processes that ``ray.init`` does not), a node's list of processes, ``GcsClient``, which tells of nodes and drains and
takes a time-out, which ``ray.nodes`` does not (`AttachedRay.look`), and ``GlobalStateAccessor`` with the wording of a raylet's report of
a worker's end (`WorkerRecords`). ``tests/cluster`` is their contract test; ray is pinned in ``pyproject.toml``.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actorgrid.cluster import ports
from actorgrid.cluster.ray_notices import RayNode
from actorgrid.errors import ActorGridError, SettingsError

NODE_LABEL = "actorgrid-node"
LOCAL_NODE = "local"
#: Label of a Ray node that is to have no host, with the value ``no``; one that only keeps the control store, for example.
HOST_LABEL = "actorgrid-host"
NO_HOST = "no"
#: What a node may be called: it names a directory, too.
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONNECT_S = 3.0
_NAME_FREE_S = 5.0
#: The least that Ray accepts; offloaded arguments and results of more than 100 KiB pass through it.
_OBJECT_STORE_BYTES = 80 << 20
_RECONNECT_S = 3600


def ray_environment(gcs_directory: Path) -> dict[str, str]:
    """Variables that Ray's processes of a local grid run with; to be set before Ray is imported, since it reads them then.

    The reasons are in docs/decisions/0007-ray-starts-hosts-and-nothing-more.md.
    """
    return {
        # Whoever can reach Ray's ports can run code as us. A token of our own, known only to the grid's own processes, shuts
        # out other users of the machine; without the explicit mode Ray would write a token into the home directory.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Despite its name, on Linux too it makes Ray take 127.0.0.1 for itself and not the machine's outer address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Hosts must not be the first that the kernel starves or kills, nor must one's memory take the others with it.
        "RAY_worker_niceness": "0",
        "RAY_worker_oom_score_adjustment": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        # The data plane outlives the control store, which comes back with what it knew.
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(gcs_directory),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_S),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        # Idle Ray logs 1-4 MB an hour and never stops.
        "RAY_ROTATION_MAX_BYTES": str(8 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
        "RAY_enable_metrics_collection": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def pod_environment(address: str, *, storage: Path | None = None) -> dict[str, str]:
    """Variables of Ray's processes in a pod, head or node; to be set before Ray is imported. How they prove themselves is the pod's to say.

    :param address: of the pod
    :param storage: of the head: the directory of its control store
    """
    kept = ray_environment(storage or Path())
    left_out = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    if not ports.is_loopback(address):
        left_out.add("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # it would take 127.0.0.1 for the pod's address
    if storage is None:
        left_out |= {"RAY_gcs_storage", "RAY_gcs_storage_path"}
    # A node that is gone is seen after 1.5 s, and one that hangs after 5 s, instead of 15 and 65.
    health = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    return {name: value for name, value in kept.items() if name not in left_out} | health


#: What a Ray node listens on, counted from the first port of a pod; a network policy names them so.
POD_PORTS = {
    "node-manager": 0,
    "object-manager": 1,
    "runtime-env": 2,
    "metrics-agent": 3,
    "metrics": 4,
    "agent": 5,
}
POD_WORKER_PORTS = range(20, 520)


class PodRay:
    """Ray's servers of one pod, started by and for the calling process, which must call from its main thread.

    When the calling process dies, the kernel kills them.

    :param directory: where Ray keeps sockets and logs; short (socket paths have at most 107 bytes)
    :param address: ``HOST:PORT`` of the control store
    :param ip: of the pod
    :param first_port: of `POD_PORTS` and `POD_WORKER_PORTS`; 0: the kernel gives any
    :param label: of a node: its name; empty: this is the head, which runs the control store and has no host
    :param cpus: what offloaded tasks may use; None: as many as Ray finds
    """

    def __init__(self, directory: Path, *, address: str, ip: str, first_port: int, label: str = "", cpus: int | None = None) -> None:
        import ray
        from ray._private.node import Node
        from ray._private.parameter import RayParams
        from ray._private.resource_isolation_config import ResourceIsolationConfig

        class BareNode(Node):  # type: ignore[misc]  # ray is untyped
            def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
                """Leave the dashboard's server out: 100 MB for something nobody asks."""

        def port(name: str) -> int:
            return first_port and first_port + POD_PORTS[name]

        self._ray = ray
        self._directory = directory
        self._ip = ip
        is_head = not label
        where: dict[str, Any] = {"gcs_server_port": int(address.rpartition(":")[2])} if is_head else {"gcs_address": address}
        self._node = BareNode(
            RayParams(
                node_ip_address=ip,
                node_manager_port=port("node-manager"),
                object_manager_port=port("object-manager"),
                runtime_env_agent_port=port("runtime-env"),
                metrics_agent_port=port("metrics-agent"),
                metrics_export_port=port("metrics"),
                dashboard_agent_listen_port=port("agent"),
                min_worker_port=first_port and first_port + POD_WORKER_PORTS.start,
                max_worker_port=first_port and first_port + POD_WORKER_PORTS.stop - 1,
                num_cpus=0 if is_head else cpus,
                num_gpus=0,
                object_store_memory=_OBJECT_STORE_BYTES,
                # A container's /dev/shm has 64 MB unless somebody thought of it.
                plasma_directory=str(directory),
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                temp_dir=str(directory),
                labels={HOST_LABEL: NO_HOST} if is_head else {NODE_LABEL: label},
                resource_isolation_config=ResourceIsolationConfig(enable_resource_isolation=False),
                **where,
            ),
            head=is_head,
            shutdown_at_exit=False,
            spawn_reaper=True,
        )
        self.address: str = self._node.gcs_address
        self.node_id: str = self._node.node_id

    def connect(self, namespace: str) -> None:
        """Become a driver on this very node."""
        self._ray.init(
            address=self.address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(self._directory),
            _node_ip_address=self._ip,
        )

    def dead_servers(self) -> list[str]:
        """Names of Ray's servers of this pod that have ended, such as ``gcs_server``."""
        return [str(name) for name, _process in self._node.dead_processes()]

    def restart_control_store(self) -> None:
        """Start the head's control store again at the same port, from what it stored."""
        del self._node.all_processes["gcs_server"]
        self._node._gcs_address = self._node._gcs_client = None  # else it refuses to start a second one
        self._node.start_gcs_server()

    def stop(self) -> None:
        """Kill Ray's servers."""
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)


class LocalRay:
    """One Ray head on 127.0.0.1, started by and for the calling process, which must call from its main thread.

    When the calling process dies, the kernel kills Ray's control store and its raylet (and workers leave when their raylet does).

    :param directory: where Ray keeps sockets and logs; short (socket paths have at most 107 bytes)
    :param cpus: what offloaded tasks may use; hosts themselves ask for none
    """

    def __init__(self, directory: Path, *, cpus: int) -> None:
        import ray
        from ray._private.node import Node
        from ray._private.parameter import RayParams
        from ray._private.resource_isolation_config import ResourceIsolationConfig

        class HeadNode(Node):  # type: ignore[misc]  # ray is untyped
            def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
                """Leave the dashboard's server out: 100 MB for something nobody asks."""

        self._ray = ray
        self._directory = directory
        self._node = HeadNode(
            RayParams(
                node_ip_address=ports.LOOPBACK,
                gcs_server_port=ports.find_free(1),
                # 0: from the kernel's own range. Ray's default for workers, 10002-19999, collides with another Ray's.
                min_worker_port=0,
                max_worker_port=0,
                num_cpus=cpus,
                num_gpus=0,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                temp_dir=str(directory),
                labels={NODE_LABEL: LOCAL_NODE},
                resource_isolation_config=ResourceIsolationConfig(enable_resource_isolation=False),
            ),
            head=True,
            shutdown_at_exit=False,
            spawn_reaper=True,
        )
        self.address: str = self._node.gcs_address

    def connect(self, namespace: str) -> None:
        """Become a driver of this Ray; its messages go to Ray's own logs, not to our output."""
        self._ray.init(
            address=self.address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(self._directory),
            _node_ip_address=ports.LOOPBACK,
        )

    def dead_servers(self) -> list[str]:
        """Names of Ray's servers on this node that have ended, such as ``gcs_server``."""
        return [str(name) for name, _process in self._node.dead_processes()]

    def restart_control_store(self) -> None:
        """Start Ray's control store again at the same port, from what it stored."""
        del self._node.all_processes["gcs_server"]
        self._node._gcs_address = self._node._gcs_client = None  # else it refuses to start a second one
        self._node.start_gcs_server()

    def stop(self) -> None:
        """Disconnect and kill Ray's servers."""
        self._ray.shutdown()
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)


def attached_environment() -> dict[str, str]:
    """Variables for the driver of a Ray cluster that somebody else runs; to be set before Ray is imported.

    Credentials (``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN``) are the caller's own.
    """
    return {
        # As for a Ray of our own: without it Ray would turn 127.0.0.1 into the machine's outer address and find nobody there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray ends a driver whose control store is away for longer.
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_S),
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


class AttachedRay:
    """A Ray cluster that somebody else runs; the calling process, on one of its machines, becomes a driver of it and ends nothing of it.

    :param address: ``HOST:PORT`` of its control store
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._gcs: Any = None

    def connect(self, namespace: str) -> None:
        """Become a driver. Ray prefers the head's raylet, if that is on this machine.

        :raises SettingsError: nobody listens at the address
        :raises ActorGridError: Ray refused
        """
        host, _, port = self.address.rpartition(":")
        try:  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except OSError as error:
            raise SettingsError(f"no Ray control store answers at {self.address}: {error}") from None
        import ray
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # not in ray's stub

        try:
            ray.init(address=self.address, namespace=namespace, log_to_driver=False, configure_logging=False)
        except Exception as error:
            raise ActorGridError(f"Ray at {self.address} takes no driver from here: {type(error).__name__}: {error}") from error
        self._gcs = GcsClient(address=self.address)

    def look(self, timeout_s: float) -> list[RayNode]:
        """All nodes that Ray knows, dead ones too, and which of them drain.

        A node's name is its label ``actorgrid-node``; else the name it was started with (``--node-name``); else it is made of its id,
        which changes when its raylet is started again.

        :param timeout_s: of each of two questions to the control store
        :raises Exception: whatever Ray raises when its control store does not answer
        """
        from ray.core.generated import gcs_pb2

        infos = self._gcs.get_all_node_info(timeout=timeout_s)
        draining = self._gcs.get_draining_nodes(timeout=timeout_s)
        nodes = []
        for info in infos.values():
            node_id, labels = info.node_id.hex(), dict(info.labels)
            # Unless one is given, Ray's name of a node is its address, and that of all on one machine is the same.
            given = info.node_name if info.node_name != info.node_manager_address else ""
            wished = labels.get(NODE_LABEL) or given
            nodes.append(
                RayNode(
                    id=node_id,
                    name=wished if _NODE_NAME.fullmatch(wished) else f"ray-{node_id[:12]}",
                    address=info.node_manager_address,
                    is_alive=info.state == gcs_pb2.GcsNodeInfo.ALIVE,
                    drain_deadline_ms=draining.get(node_id),
                    wants_host=labels.get(HOST_LABEL) != NO_HOST,
                )
            )
        return nodes

    def dead_servers(self) -> list[str]:
        """None: Ray's servers are somebody else's to watch."""
        return []

    def restart_control_store(self) -> None:
        """Never asked for, since `dead_servers` has none."""
        raise AssertionError("the control store of this Ray is not ours")

    def stop(self) -> None:
        """Disconnect."""
        import ray

        ray.shutdown()


class HostHandle:
    """A host actor, as its keeper sees it.

    :ivar node_id: the Ray node it is pinned to; empty: it is pinned to a label
    """

    def __init__(self, name: str, actor: Any, node_id: str = "") -> None:
        self.name = name
        self.node_id = node_id
        self._actor = actor

    def begin(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor with plain data; the reference goes to `results`."""
        return getattr(self._actor, method).remote(*arguments)

    def end(self) -> None:
        """End its process for good: Ray starts no other one."""
        import ray

        ray.kill(self._actor, no_restart=True)


def create_host_actor(host_class: type, name: str, order: bytes, *, node_label: str = LOCAL_NODE, node_id: str = "") -> HostHandle:
    """Create the detached actor ``actorgrid-<name>`` in the driver's namespace, restarted by Ray whenever it dies.

    Returns at once; the actor's process starts meanwhile.

    :param order: what `host_class` gets as its only argument, at the first start and at every restart
    :param node_label: value of the label of the Ray node it is pinned to. A label, not a node id: it comes back with the node.
    :param node_id: the Ray node it is pinned to, instead of a label. Once that is dead, the actor never runs again: create another one.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where: dict[str, Any] = {"label_selector": {NODE_LABEL: node_label}}
    if node_id:
        where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
    remote_class = ray.remote(host_class)
    actor = remote_class.options(
        name=_actor_name(name),
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=64,
        **where,
    ).remote(order)
    return HostHandle(name, actor, node_id)


def find_host_actor(name: str, node_id: str) -> HostHandle | None:
    """The host actor that an earlier driver left in this namespace, running or not; None if there is none.

    :param node_id: of the Ray node that it should be pinned to
    """
    import ray

    try:
        return HostHandle(name, ray.get_actor(_actor_name(name)), node_id)
    except ValueError:
        return None


def wait_until_free(name: str) -> None:
    """Wait until Ray has forgotten the actor of host `name`, which was ended just now.

    :raises ActorGridError: it has not in time
    """
    import ray

    deadline = time.monotonic() + _NAME_FREE_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(_actor_name(name))
        except ValueError:
            return
        time.sleep(0.05)
    raise ActorGridError(f"Ray still has an actor {_actor_name(name)} {_NAME_FREE_S:g} s after it was ended")


def _actor_name(host: str) -> str:
    return f"actorgrid-{host}"


def is_ready(reference: Any) -> bool:
    """Whether a call has an answer, or has failed."""
    import ray

    done, _waiting = ray.wait([reference], timeout=0)
    return bool(done)


def results(references: Sequence[Any], timeout_s: float, *, cancelled: Callable[[], bool] = lambda: False) -> list[Any]:
    """The result of each reference, in order; an exception object where the call failed or had no answer in `timeout_s` seconds."""
    import ray

    deadline = time.monotonic() + timeout_s
    waiting = list(references)
    while waiting and time.monotonic() < deadline and not cancelled():
        _done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(0.2, max(0.0, deadline - time.monotonic())))
    answers: list[Any] = []
    for reference in references:
        try:
            answers.append(ray.get(reference, timeout=0) if reference not in waiting else TimeoutError(f"no answer in {timeout_s:g} s"))
        except Exception as error:  # noqa: BLE001  # whatever Ray raises is that host's answer
            answers.append(error)
    return answers


def is_end_of_process(answer: Any) -> bool:
    """Whether a call of an actor has no answer because its process ended, or another one has not begun yet."""
    import ray

    return isinstance(answer, ray.exceptions.RayActorError)


class TaskRunner:
    """Runs one function of ours as Ray tasks from inside an actor's process.

    :param function: a module-level function of plain data; Ray finds it by its name in the worker
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        import ray

        self._ray = ray
        self._remote = ray.remote(function)

    def begin(self, arguments: tuple[Any, ...], *, cpus: float, memory_bytes: int | None, name: str) -> Any:
        """Submit a task. May block while Ray's control store is away: call it from a thread.

        A task whose worker process dies is run again twice, since an offloaded function has no effect but its result.
        """
        return self._remote.options(num_cpus=cpus, memory=memory_bytes, max_retries=2, name=name).remote(*arguments)

    def cancel(self, reference: Any) -> None:
        """Kill the task's worker process: CPU-heavy code does not listen."""
        self._ray.cancel(reference, force=True)

    def largest_node_cpus(self) -> float:
        """CPUs of the largest node. Asks the control store; call it from a thread."""
        return max((float(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]), default=0.0)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What Ray raises when a task could not be run."""
        return (self._ray.exceptions.RayError,)


def own_worker() -> tuple[str, str, str]:
    """The calling process as Ray knows it: hex id of the worker, hex id of its node, address of the control store.

    A worker id names one process; a restarted actor gets another. A node id names one raylet.
    """
    import ray

    context = ray.get_runtime_context()
    return str(context.get_worker_id()), str(context.get_node_id()), str(context.gcs_address)


#: How a raylet words that the kernel closed the other end of its Unix socket to a worker (``NodeManager::HandleClientConnectionError``
#: and ``CheckForUnexpectedWorkerDisconnects``). Every other text may be written while the process still runs: a worker that leaves by
#: itself says so first and waits for the raylet's answer (measured: it runs on for 10 to 270 ms), a raylet that kills one reports first.
#: The exit type tells nothing: SYSTEM_ERROR is also that of a SIGTERM and of ``sys.exit``.
_SOCKET_CLOSED = (
    "Worker unexpectedly exits with a connection error code 2. End of file.",
    "Worker unexpectedly exits with a connection error code 104. Connection reset by peer.",
    "Worker connection closed unexpectedly.",
)


class WorkerRecords:
    """What Ray's control store has written down about the ends of worker processes; each call is one request to it, 0.3 ms on one machine.

    Calls take no time-out and hang while the control store is away or stopped, until it answers again: call them from one thread that
    nobody waits for. They release the interpreter's lock.

    :param address: of the control store
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._accessor: Any = None

    def connect(self) -> bool:
        """Connect, unless that was done. False after 5 to 15 s if the control store does not answer."""
        from ray._raylet import GcsClientOptions, GlobalStateAccessor  # type: ignore[attr-defined]  # not in ray's stub

        if self._accessor is None:
            accessor = GlobalStateAccessor(
                GcsClientOptions.create(self._address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
            )
            if accessor.connect():
                self._accessor = accessor
        return self._accessor is not None

    def saw_end(self, worker_id: str) -> bool:
        """Whether the raylet of the worker saw the kernel close the worker's socket, which happens after its last thread has ended.

        False for a worker that runs, that is unknown or forgotten, that left by itself or was killed by Ray, or whose node was lost:
        none of these is proof that the process has ended. What Ray says of the *actor* is no proof either: it is restarted elsewhere
        when its node misses heartbeats, while the old process may live on.
        """
        import ray
        from ray.core.generated import common_pb2, gcs_pb2

        if not self.connect():
            return False
        found = self._accessor.get_worker_info(ray.WorkerID(bytes.fromhex(worker_id)))
        if found is None:
            return False
        record = gcs_pb2.WorkerTableData.FromString(found)
        return (
            not record.is_alive
            and record.worker_address.worker_id.hex() == worker_id
            and record.exit_type == common_pb2.SYSTEM_ERROR
            and str(record.exit_detail).startswith(_SOCKET_CLOSED)
        )


def quiet_actor_output(path: Path, *, bytes_max: int = 16 << 20) -> None:
    """Send the calling process's stdout and stderr, also of native code, to `path` instead of Ray's short-lived logs."""
    if path.exists() and path.stat().st_size > bytes_max:
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
