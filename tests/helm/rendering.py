"""The chart as the API server would get it: rendered by Helm's own engine, in this process and without a cluster."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "actorgrid"
EXAMPLES = ROOT / "examples" / "kubernetes"

Object = dict[str, Any]
Values = dict[str, Any]


@functools.cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def render(values: Values | None = None, *, name: str = "shop", namespace: str = "prod", upgrade: bool = False) -> list[Object]:
    """All objects of a release, hooks and tests among them."""
    texts = chart().render(values or {}, name=name, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade)
    documents = (yaml.safe_load_all(text) for path, text in sorted(texts.items()) if path.endswith(".yaml"))
    return [document for group in documents for document in group if document]


def notes(values: Values | None = None) -> str:
    """What is printed after an install."""
    texts = chart().render(values or {}, name="shop", namespace="prod")
    return next(text for path, text in texts.items() if path.endswith("NOTES.txt"))


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of {sorted((each['kind'], each['metadata']['name']) for each in objects)}"
    return found[0]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Objects of a kind, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod that a release makes, as (who makes it, the pod's template)."""
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        match each["kind"]:
            case "Pod":
                yield name, each
            case "CronJob":
                yield name, each["spec"]["jobTemplate"]["spec"]["template"]
            case "StatefulSet" | "Deployment" | "DaemonSet" | "Job":
                yield name, each["spec"]["template"]


def environment_of(container: Object, objects: list[Object]) -> dict[str, str]:
    """Variables with their values; one from a field of the pod as ``$path``."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        found[variable["name"]] = variable["value"] if "value" in variable else "$" + variable["valueFrom"]["fieldRef"]["fieldPath"]
    return found


def node_user() -> int:
    """The user of the nodes' processes."""
    user = next(pod for name, pod in pods(render()) if name.startswith("StatefulSet"))["spec"]["securityContext"]["runAsUser"]
    assert isinstance(user, int)
    return user


def example(name: str) -> Values:
    """The values of a file of examples/kubernetes."""
    values = helm_python.values_from_yaml((EXAMPLES / f"{name}.yaml").read_text())
    if name == "small":  # as its head says, with --set-file
        values["app"]["files"] = {"bank.py": (ROOT / "examples" / "bank.py").read_text()}
    return values


#: Everything that can be switched, the other way; names of examples stand for their files.
OTHER_WAY: Values = {
    "nameOverride": "grid",
    "clusterDomain": "corp.example",
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "clusterId": "other",
    "settings": {"copy_bytes_per_s": 134217728, "replica_restart_wait_s": 0.5},
    "app": {"modules": ["a.b", "c"], "path": "/x:/y", "files": {"c.py": "  print('<&>')\n\n  #: {{ no template }}\n"}},
    "nodes": {
        "replicas": 5,
        "hostsPerPod": 3,
        "port": 9000,
        "storage": {"storageClass": "fast"},
        "tmpSizeLimit": "1Gi",
        "podDisruptionBudget": {"enabled": False},
        "spread": {"zones": {"enabled": False}, "hosts": {"enabled": False}},
        "watchKubernetesNodes": False,
        "nodeSelector": {"pool": "grid"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}}},
        "priorityClassName": "high",
        "podAnnotations": {"example.com/a": "1"},
        "podLabels": {"example.com/b": "2"},
        "extraEnv": [{"name": "EXTRA", "value": "1"}],
    },
    "head": {
        "storage": {"storageClass": "fast"},
        "tmpSizeLimit": "1Gi",
        "podAnnotations": {"example.com/a": "1"},
        "priorityClassName": "high",
    },
    "service": {"type": "LoadBalancer", "annotations": {"example.com/c": "3"}},
    "init": {"enabled": False},
    "certificates": {"renewal": {"enabled": False}, "addresses": ["grid.example.com"]},
    "jobs": {"nodeSelector": {"pool": "jobs"}},
    "serviceAccount": {"create": False, "name": "given"},
    "podSecurity": {"runAsUser": 2000, "fsGroup": 3000},
    "networkPolicy": {"enabled": False},
    "test": {"call": ["Account", "alice", "deposit", "1"]},
}

CASES: dict[str, Values] = {
    "default": {},
    "other way": OTHER_WAY,
    "hook": {"init": {"hook": True}},
    **{path.stem: example(path.stem) for path in sorted(EXAMPLES.glob("*.yaml"))},
}
