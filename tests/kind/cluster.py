"""A `kind` cluster, what runs on it, and the commands that a person would give: kubectl, helm, docker, kind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CHART = ROOT / "helm" / "actorgrid"
CLUSTER = os.environ.get("ACTORGRID_KIND_CLUSTER", "actorgrid")
IMAGE = os.environ.get("ACTORGRID_KIND_IMAGE", "actorgrid:kind")
#: For ``docker build``: a base image, the registry of packages, and the like.
BUILD_ARGUMENTS = shlex.split(os.environ.get("ACTORGRID_IMAGE_BUILD_ARGUMENTS", ""))
TOOLS = ("docker", "kind", "kubectl", "helm")
WORKERS = 3
COMMAND_S = 300.0
LOAD_POD = "load"
CLUSTER_CONFIGURATION = {
    "kind": "Cluster",
    "apiVersion": "kind.x-k8s.io/v1alpha4",
    "nodes": [{"role": "control-plane"}, *({"role": "worker"} for _ in range(WORKERS))],
}


class CommandFailedError(Exception):
    """A command did not succeed; the text has what it said."""


def run(*command: str, timeout_s: float = COMMAND_S, given: str | None = None, fails: bool = True) -> str:
    """Its stdout."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode and fails:
        raise CommandFailedError(f"{shlex.join(command)[:300]}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def until(condition: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.5) -> Any:
    """What `condition` answered when it was true at last; commands that fail meanwhile are asked again."""
    ends_at, last = time.monotonic() + timeout_s, ""
    while time.monotonic() < ends_at:
        try:
            if found := condition():
                return found
        except (CommandFailedError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            last = str(error)
        time.sleep(every_s)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s{': ' + last if last else ''}")


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def make_cluster() -> bool:
    """A cluster of `WORKERS` workers, and kubectl pointed at it; whether it is new."""
    is_new = CLUSTER not in run("kind", "get", "clusters", fails=False).split()
    if is_new:
        run("kind", "create", "cluster", "--name", CLUSTER, "--config", "-", "--wait", "180s", given=json.dumps(CLUSTER_CONFIGURATION))
    # Not the file of the caller: its current context may be somebody's real cluster.
    path = Path(tempfile.mkdtemp(prefix="actorgrid-kind-")) / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(run("kind", "get", "kubeconfig", "--name", CLUSTER))
    os.environ["KUBECONFIG"] = str(path)
    return is_new


def load_image() -> None:
    """Build the image and copy it to every node."""
    run("docker", "build", "--tag", IMAGE, *BUILD_ARGUMENTS, str(ROOT), timeout_s=3600)
    run("kind", "load", "docker-image", "--name", CLUSTER, IMAGE, timeout_s=900)


class Namespace:
    """A namespace with a grid in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._opened: set[str] = set()

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return run("kubectl", "--namespace", self.name, *arguments, **options)

    def helm(self, *arguments: str, **options: Any) -> str:
        return run("helm", "--namespace", self.name, *arguments, **options)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def make(self) -> None:
        """With the strictest of the pod security standards enforced."""
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        run("kubectl", "apply", "--filename", "-", given=json.dumps(body))

    def remove(self) -> None:
        run("kubectl", "delete", "namespace", self.name, "--ignore-not-found", "--timeout", "120s", fails=False)

    # -- the grid

    def pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("pods", "--selector", "app.kubernetes.io/component=node")["items"]
        return found

    def ready_pods(self) -> list[str]:
        """Counted from the pods: a StatefulSet's own status lags behind a deletion."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if "deletionTimestamp" not in pod["metadata"]
            and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
        ]

    def node_of(self, pod: str) -> str:
        return str(self.get("pod", pod)["spec"]["nodeName"])

    def uid_of(self, pod: str) -> str:
        return str(self.get("pod", pod)["metadata"]["uid"])

    def operator(self, *arguments: str) -> Any:
        """A command of the grid, as an operator gives it."""
        answer = self.kubectl("exec", LOAD_POD, "--", "env", "ACTORGRID_TOKEN_FILE=/credentials/operator/token", "actorgrid", *arguments)
        return json.loads(answer.splitlines()[0])

    def is_settled(self, nodes: int) -> bool:
        """Whether the grid has so many nodes, all up and wanted, every partition healthy, and nothing left to move."""
        if len(self.ready_pods()) != nodes:
            return False
        seen = self.operator("nodes", "--json")
        rows = seen["nodes"]
        if len(rows) != nodes or any(row["state"] != "up" or row["intent"] != "none" for row in rows) or not seen["is_balanced"]:
            return False
        return all(partition["health"] == "ok" for partition in self.operator("status", "--json")["partitions"])

    def open_volumes(self) -> None:
        """Let pods that are not root write to their volumes.

        A kubelet applies no ``fsGroup`` to directories of the node, which the volumes of `kind` are, and some provisioners make them for
        root alone.
        """
        for claim in self.get("persistentvolumeclaims")["items"]:
            volume = claim["spec"].get("volumeName")
            if not volume or volume in self._opened:
                continue
            spec = json.loads(run("kubectl", "get", "persistentvolume", volume, "--output", "json"))["spec"]
            path = (spec.get("hostPath") or spec.get("local") or {}).get("path")
            terms = spec.get("nodeAffinity", {}).get("required", {}).get("nodeSelectorTerms", [])
            nodes = [value for term in terms for each in term.get("matchExpressions", []) for value in each["values"]]
            for node in nodes if path else []:
                run("docker", "exec", node, "sh", "-c", f"mkdir -p {path} && chmod 0777 {path}")
            self._opened.add(volume)

    # -- the load

    def start_load(self, address: str, secret_of: Callable[[str], str], callers: int, actors: int, pause_s: float) -> None:
        """The client's pod, on the control plane's node, which no step takes away."""
        files = {name: (HERE / name).read_text() for name in ("counting.py", "load.py")}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": LOAD_POD}, "data": files}
        self.kubectl("apply", "--filename", "-", given=json.dumps(body))
        secure = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": LOAD_POD},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
                "tolerations": [{"operator": "Exists"}],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 10001,
                    "fsGroup": 10001,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "load",
                        "image": IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python", "/load/load.py", str(callers), str(actors), str(pause_s), address],
                        "securityContext": secure,
                        "env": [
                            {"name": "PYTHONPATH", "value": "/load"},
                            {"name": "ACTORGRID_ADDRESS", "value": address},
                            {"name": "ACTORGRID_CA", "value": "/credentials/caller/ca.crt"},
                            {"name": "ACTORGRID_TOKEN_FILE", "value": "/credentials/caller/token"},
                        ],
                        "volumeMounts": [
                            {"name": "load", "mountPath": "/load"},
                            {"name": "tmp", "mountPath": "/tmp"},
                            *({"name": role, "mountPath": f"/credentials/{role}"} for role in ("caller", "operator")),
                        ],
                    }
                ],
                "volumes": [
                    {"name": "load", "configMap": {"name": LOAD_POD}},
                    {"name": "tmp", "emptyDir": {}},
                    *({"name": role, "secret": {"secretName": secret_of(role), "defaultMode": 0o440}} for role in ("caller", "operator")),
                ],
            },
        }
        self.kubectl("apply", "--filename", "-", given=json.dumps(pod))

    def load_lines(self) -> list[dict[str, Any]]:
        """All that the load has told."""
        lines = []
        for line in self.kubectl("logs", LOAD_POD, "--tail=-1", fails=False).splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # a line that is being written, or one of a library
        return lines
