"""What happens on a cluster that runs no pod: fake machines, pods bound to them by hand, and a manager that records."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from actorgrid.cluster.kubernetes_notices import RANKS
from actorgrid.errors import HostUnavailableError, RequestError

#: All that the watcher needs, and all that it gets here; `{name}` is the StatefulSet's.
ROLE = [
    {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": ["{name}"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]
CLUSTER_ROLE = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
CALL_S = 10.0


async def until(check: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < deadline, what or "not in time"
        await asyncio.sleep(0.005)
    return found


class FakeManager:
    """Takes intents as the placement manager does, and remembers when."""

    def __init__(self, *nodes: str) -> None:
        self.standing: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[float, str, dict[str, Any]]] = []
        self.is_away = False
        for node in nodes:
            self.forget(node)
        self._kept: dict[str, dict[str, Any]] = {}

    def forget(self, node: str) -> None:
        self.standing[node] = {"intent": "none", "by": "", "deadline_ms": 0, "drain": None, "state": "up"}

    def intent(self, node: str) -> tuple[str, str]:
        return self.standing[node]["intent"], self.standing[node]["by"]

    async def ask(self, verb: str, arguments: dict[str, Any]) -> Any:
        if self.is_away:
            raise HostUnavailableError("the manager is moving")
        if verb == "nodes":
            return {"nodes": [{"name": name} | row | {"deadline_left_s": self._left_s(row)} for name, row in self.standing.items()]}
        self.asked.append((time.monotonic(), verb, arguments))
        assert arguments["by"] == "kubernetes"
        node = arguments["node"]
        if node not in self.standing:
            raise RequestError(f"there is no node {node!r}")
        row = self.standing[node]
        if verb == "undrain":
            if row["by"] == "kubernetes":
                row |= self._kept.pop(node, {"intent": "none", "by": "", "deadline_ms": 0})
            return {}
        if RANKS[arguments["intent"]] < RANKS[row["intent"]]:
            raise RequestError("intents only rise")
        if row["by"] != "kubernetes" and row["intent"] != "none":
            if row["intent"] == arguments["intent"]:
                return {}
            self._kept[node] = {"intent": row["intent"], "by": "", "deadline_ms": 0}
        deadline_s = arguments.get("deadline_s", 0)
        deadline_ms = time.time_ns() // 1_000_000 + int(deadline_s * 1000) if deadline_s else 0
        row |= {"intent": arguments["intent"], "by": "kubernetes", "deadline_ms": deadline_ms}
        return {}

    @staticmethod
    def _left_s(row: dict[str, Any]) -> float | None:
        return round(row["deadline_ms"] / 1000 - time.time_ns() / 1e9, 1) if row["deadline_ms"] else None

    def first(self, since_s: float, node: str, intent: str) -> float | None:
        """When the intent was first asked for after `since_s`; ``none``: when it was taken back."""
        for at_s, _verb, arguments in self.asked:
            if at_s >= since_s and arguments["node"] == node and arguments.get("intent", "none") == intent:
                return at_s
        return None


class Stage:
    """Objects of one test, in a namespace of its own. Its methods block."""

    def __init__(self, kubeconfig: Path, scratch: Path) -> None:
        settings: Any = client.Configuration()
        config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
        self._client = client.ApiClient(settings)
        self.core: Any = client.CoreV1Api(self._client)
        self.apps: Any = client.AppsV1Api(self._client)
        self.rbac: Any = client.RbacAuthorizationV1Api(self._client)
        self.kubeconfig = kubeconfig
        self.namespace = f"watch-{secrets.token_hex(3)}"
        self.name = "grid"
        self.machines: list[str] = []
        self._cluster_roles: list[str] = []
        self._scratch = scratch
        self.core.create_namespace({"metadata": {"name": self.namespace}}, _request_timeout=CALL_S)

    def close(self) -> None:
        with contextlib.suppress(ApiException):
            self.apps.delete_namespaced_stateful_set(self.name, self.namespace, _request_timeout=CALL_S)
        for pod in self.core.list_namespaced_pod(self.namespace, _request_timeout=CALL_S).items:
            self.end_pod(pod.metadata.name)
        for machine in self.machines:
            with contextlib.suppress(ApiException):
                self.core.delete_node(machine, _request_timeout=CALL_S)
        for name in self._cluster_roles:
            self.rbac.delete_cluster_role_binding(name, _request_timeout=CALL_S)
            self.rbac.delete_cluster_role(name, _request_timeout=CALL_S)
        self.core.delete_namespace(self.namespace, _request_timeout=CALL_S)
        self._client.close()

    # -- who may do what

    def account(self, *, may_read_nodes: bool = True, role: list[dict[str, Any]] = ROLE) -> Path:
        """A kubeconfig of a ServiceAccount with the rights that are documented."""
        name = f"watcher-{secrets.token_hex(3)}"
        rules = json.loads(json.dumps(role).replace("{name}", self.name))
        subject = {"kind": "ServiceAccount", "name": name, "namespace": self.namespace}
        group = "rbac.authorization.k8s.io"
        self.core.create_namespaced_service_account(self.namespace, {"metadata": {"name": name}}, _request_timeout=CALL_S)
        self.rbac.create_namespaced_role(self.namespace, {"metadata": {"name": name}, "rules": rules}, _request_timeout=CALL_S)
        binding = {"metadata": {"name": name}, "subjects": [subject], "roleRef": {"apiGroup": group, "kind": "Role", "name": name}}
        self.rbac.create_namespaced_role_binding(self.namespace, binding, _request_timeout=CALL_S)
        if may_read_nodes:
            self.rbac.create_cluster_role({"metadata": {"name": name}, "rules": CLUSTER_ROLE}, _request_timeout=CALL_S)
            binding["roleRef"] = {"apiGroup": group, "kind": "ClusterRole", "name": name}
            self.rbac.create_cluster_role_binding(binding, _request_timeout=CALL_S)
            self._cluster_roles.append(name)
        token = self.core.create_namespaced_service_account_token(
            name, self.namespace, {"spec": {"expirationSeconds": 3600}}, _request_timeout=CALL_S
        ).status.token
        admin = yaml.safe_load(self.kubeconfig.read_text())
        path = self._scratch / f"{name}.conf"
        cluster = admin["clusters"][0]["cluster"]
        if "certificate-authority" in cluster:  # a path, next to the file that says it
            there = self.kubeconfig.parent / cluster.pop("certificate-authority")
            cluster["certificate-authority-data"] = base64.b64encode(there.read_bytes()).decode()
        settings = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(settings))
        return path

    def let_nodes_be_read(self, name: str, may_read: bool = True) -> None:
        self.rbac.patch_cluster_role(name, {"rules": CLUSTER_ROLE if may_read else []}, _request_timeout=CALL_S)

    # -- machines

    def add_machines(self, count: int) -> None:
        for number in range(count):
            name = f"{self.namespace}-m{number}"
            body = {"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": f"zone-{number}"}}}
            self.core.create_node(body, _request_timeout=CALL_S)
            self.machines.append(name)

    def cordon(self, number: int, is_cordoned: bool = True) -> None:
        self.core.patch_node(self.machines[number], {"spec": {"unschedulable": is_cordoned}}, _request_timeout=CALL_S)

    def taint(self, number: int, *taints: tuple[str, str]) -> None:
        found = [{"key": key, "effect": effect} for key, effect in taints]
        self.core.patch_node(self.machines[number], {"spec": {"taints": found or None}}, _request_timeout=CALL_S)

    # -- the StatefulSet and its pods

    def create(self, replicas: int, **update_strategy: Any) -> None:
        """The StatefulSet, with pods that are there and ready, each on its machine."""
        labels = {"app": self.name, "of": self.namespace}
        container = {"name": "node", "image": "example.com/none:1", "env": [{"name": "N", "value": "1"}]}
        claim = {
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Mi"}}},
        }
        spec = {
            "replicas": replicas,
            "serviceName": self.name,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 30}},
            "volumeClaimTemplates": [claim],
            "updateStrategy": {"type": "RollingUpdate", **update_strategy},
        }
        self.apps.create_namespaced_stateful_set(self.namespace, {"metadata": {"name": self.name}, "spec": spec}, _request_timeout=CALL_S)
        for ordinal in range(replicas):
            self.settle(ordinal)

    def pod(self, ordinal: int) -> Any:
        with contextlib.suppress(ApiException):
            return self.core.read_namespaced_pod(f"{self.name}-{ordinal}", self.namespace, _request_timeout=CALL_S)
        return None

    def wait_for_pod(self, ordinal: int, *, other_than: str = "", timeout_s: float = 90.0) -> Any:
        """Long, since controllers wait up to half a minute before they ask an API server again that was away."""
        deadline = time.monotonic() + timeout_s
        while (pod := self.pod(ordinal)) is None or pod.metadata.uid == other_than:
            assert time.monotonic() < deadline, f"no pod {ordinal}"
            time.sleep(0.05)
        return pod

    def bind(self, ordinal: int, machine: int | None = None) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": self.machines[ordinal if machine is None else machine]}
        name = f"{self.name}-{ordinal}"
        self.core.create_namespaced_pod_binding(
            name, self.namespace, {"metadata": {"name": name}, "target": target}, _preload_content=False, _request_timeout=CALL_S
        )

    def make_ready(self, ordinal: int, is_ready: bool = True) -> None:
        condition = {"type": "Ready", "status": "True" if is_ready else "False"}
        status = {"status": {"phase": "Running", "conditions": [condition]}}
        self.core.patch_namespaced_pod_status(f"{self.name}-{ordinal}", self.namespace, status, _request_timeout=CALL_S)

    def settle(self, ordinal: int, *, other_than: str = "") -> None:
        """Wait for the pod, put it on its machine, and let it be ready."""
        self.wait_for_pod(ordinal, other_than=other_than)
        self.bind(ordinal)
        self.make_ready(ordinal)

    def delete_pod(self, ordinal: int, grace_s: int = 30) -> None:
        """It stays as one that is being deleted: no kubelet says that it has ended."""
        self.core.delete_namespaced_pod(f"{self.name}-{ordinal}", self.namespace, grace_period_seconds=grace_s, _request_timeout=CALL_S)

    def end_pod(self, name: str) -> None:
        """As a kubelet does once its containers have ended."""
        with contextlib.suppress(ApiException):
            self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0, _request_timeout=CALL_S)

    def scale(self, replicas: int) -> None:
        self.apps.patch_namespaced_stateful_set(self.name, self.namespace, {"spec": {"replicas": replicas}}, _request_timeout=CALL_S)

    def update(self, value: str) -> None:
        container = {"name": "node", "env": [{"name": "N", "value": value}]}
        body = {"spec": {"template": {"spec": {"containers": [container]}}}}
        self.apps.patch_namespaced_stateful_set(self.name, self.namespace, body, _request_timeout=CALL_S)

    def events(self) -> list[Any]:
        found = self.core.list_namespaced_event(self.namespace, field_selector="reason=VolumeFree", _request_timeout=CALL_S)
        return list(found.items)


class Daemon:
    """A process of the control plane, if it is one of this machine whose pid file is next to the kubeconfig."""

    def __init__(self, kubeconfig: Path, name: str) -> None:
        self._pid_file = kubeconfig.parent / f"{name}.pid"
        self._log_file = kubeconfig.parent / f"{name}.log"
        self._command: list[str] = []
        if self._pid_file.exists():
            line = Path(f"/proc/{self.pid}/cmdline").read_bytes()
            self._command = [part.decode() for part in line.split(b"\0")[:-1]]
        self.is_here = bool(self._command) and Path(self._command[0]).name == name

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text())

    def suspend(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
            time.sleep(0.05)

    def start(self) -> None:
        """As no child of ours, since it outlives us."""
        script = 'exec >>"$0" 2>&1; setsid nohup "$@" </dev/null & echo $! >"$PID_FILE"'
        environment = {**os.environ, "PID_FILE": str(self._pid_file)}
        subprocess.run(["sh", "-c", script, str(self._log_file), *self._command], check=True, timeout=10, env=environment)


def wait_ready(core: Any, timeout_s: float = 60.0) -> None:
    """Until the API server answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            core.list_namespace(limit=1, _request_timeout=2.0)
        except Exception:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return
