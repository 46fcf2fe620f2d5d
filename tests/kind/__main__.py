"""``python -m tests.kind``: what operators and accidents do to a grid on Kubernetes, under load. Does a client notice?

On a `kind` cluster with three workers, made if there is none of the name ``ACTORGRID_KIND_CLUSTER`` (``actorgrid``): builds the image,
loads it, installs the chart into a namespace that enforces the pod security standard "restricted", and lets a client call from a pod of
its own while one thing after another happens. Prints a table: calls that failed, changes that were lost or doubled, the longest time that
any one call took, and how long until the grid was balanced again. Exit code 1 if a planned step failed a call, or any step lost or doubled
one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.kind.cluster import (
    CHART,
    CLUSTER,
    HERE,
    IMAGE,
    LOAD_POD,
    CommandFailedError,
    Namespace,
    load_image,
    make_cluster,
    missing_tools,
    run,
    until,
)

RELEASE = "actorgrid"
HEAD = "actorgrid-head-0"
READY_S = 420.0
SETTLED_S = 420.0
#: What a step does to calls may show a little later.
AFTER_S = 2.0
API_SERVER_AWAY_S = 60.0
MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml"


@dataclasses.dataclass
class Step:
    """One thing that happened; times are dates in seconds."""

    name: str
    is_planned: bool
    began: float = 0.0
    done: float = 0.0
    settled: float = 0.0
    calls: int = 0
    failed: int = 0
    lost: int = 0
    doubled: int = 0
    slowest_ms: float = 0.0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""


class Drill:
    """The steps, one after another."""

    def __init__(self, space: Namespace, options: argparse.Namespace) -> None:
        self.space = space
        self.steps: list[Step] = []
        self._options = options
        self._nodes = 3
        self._ended = threading.Event()
        self._opener = threading.Thread(target=self._open_volumes, name="volumes", daemon=True)
        self._opener.start()

    def _open_volumes(self) -> None:
        while not self._ended.wait(0.5):
            with contextlib.suppress(CommandFailedError, subprocess.TimeoutExpired, ValueError, KeyError):  # the next look sees it, too
                self.space.open_volumes()

    # -- what happens

    def helm_values(self, **changes: str) -> list[str]:
        repository, _, tag = IMAGE.rpartition(":")
        values = {
            "image.repository": repository,
            "image.tag": tag,
            "partitions": str(self._options.partitions),
            "app.modules[0]": "counting",
            "nodes.terminationGracePeriodSeconds": "90",
            "nodes.resources.requests.cpu": "100m",
            "nodes.resources.requests.memory": "512Mi",
            "head.resources.requests.cpu": "50m",
            "nodes.storage.size": "1Gi",
            **changes,
        }
        arguments = [f"--set={name}={value}" for name, value in values.items()]
        return [*arguments, f"--set-file=app.files.counting\\.py={HERE / 'counting.py'}"]

    def install(self) -> None:
        """From ``helm install`` to the first answered call."""
        step = self._begin("helm install", is_planned=True)
        process = subprocess.Popen(
            ["helm", "--namespace", self.space.name, "install", RELEASE, str(CHART), *self.helm_values(), "--timeout", "10m"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: self.space.kubectl("get", "secret", f"{RELEASE}-caller", fails=False), READY_S, "the grid's Secrets")
            options = self._options
            address = f"{RELEASE}.{self.space.name}.svc:7400"
            self.space.start_load(address, lambda role: f"{RELEASE}-{role}", options.callers, options.actors, options.pause)
            first = until(
                lambda: next((line["first"] for line in self.space.load_lines() if "first" in line), None), READY_S, "a first call"
            )
        finally:
            _, said = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"helm install: {said}")
        step.note = f"first answered call after {first - step.began:.1f} s"
        self._finish(step, done=first)

    def scale(self, nodes: int) -> None:
        before = self._nodes

        def change() -> None:
            self.space.kubectl("scale", "statefulset", RELEASE, f"--replicas={nodes}")
            self._nodes = nodes
            until(lambda: len(self.space.pods()) == nodes and len(self.space.ready_pods()) == nodes, READY_S, "pods")

        self._step(f"kubectl scale {before} -> {nodes}", change)

    def drain_and_uncordon(self) -> None:
        node = self.space.node_of(f"{RELEASE}-1")

        def drain() -> None:
            run("kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
            run("kubectl", "uncordon", node)
            self._wait_ready()

        self._step("kubectl drain, uncordon", drain)

    def rollout_restart(self) -> None:
        def restart() -> None:
            before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.space.pods()}
            self.space.kubectl("rollout", "restart", f"statefulset/{RELEASE}")
            self._wait_replaced(before)

        self._step("kubectl rollout restart", restart)

    def delete_pod(self, *, force: bool) -> None:
        def delete() -> None:
            before = {f"{RELEASE}-0": self.space.uid_of(f"{RELEASE}-0")}
            how = ["--force", "--grace-period=0"] if force else []
            self.space.kubectl("delete", "pod", f"{RELEASE}-0", *how)
            self._wait_replaced(before)

        self._step("delete pod --force --grace-period=0" if force else "kubectl delete pod", delete, is_planned=not force)

    def kill_node(self) -> None:
        node = self.space.node_of(f"{RELEASE}-2")

        def kill() -> None:
            run("docker", "kill", node)
            time.sleep(20)
            run("docker", "start", node)
            until(lambda: "True" in run("kubectl", "get", "node", node, "--output", READY_PATH), READY_S, f"node {node}")
            self._wait_ready()

        self._step("a node's container killed, back after 20 s", kill, is_planned=False)

    def delete_head(self) -> None:
        def delete() -> None:
            before = self.space.uid_of(HEAD)
            self.space.kubectl("delete", "pod", HEAD)
            until(lambda: self.space.uid_of(HEAD) != before and self._is_ready(HEAD), READY_S, "Ray's head")

        self._step("Ray's head deleted", delete)

    def api_server_away(self) -> None:
        control_plane = f"{CLUSTER}-control-plane"

        def away() -> None:
            run("docker", "exec", control_plane, "mv", MANIFEST, "/root/kube-apiserver.yaml")
            try:
                time.sleep(API_SERVER_AWAY_S)
            finally:
                run("docker", "exec", control_plane, "mv", "/root/kube-apiserver.yaml", MANIFEST)
            until(lambda: run("kubectl", "get", "--raw", "/readyz") == "ok", READY_S, "the API server")

        self._step(f"API server away for {API_SERVER_AWAY_S:.0f} s", away)

    def upgrade(self) -> None:
        def upgrade() -> None:
            before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.space.pods()}
            changed = self.helm_values(**{"settings.placement_quiet_s": "8"})
            self.space.helm("upgrade", RELEASE, str(CHART), *changed, timeout_s=900)
            self._wait_replaced(before)

        self._step("helm upgrade, a setting changed", upgrade)

    def rollback(self) -> None:
        def rollback() -> None:
            before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.space.pods()}
            self.space.helm("rollback", RELEASE, timeout_s=900)
            self._wait_replaced(before)

        self._step("helm rollback", rollback)

    # -- steps

    def _wait_ready(self) -> None:
        until(lambda: len(self.space.ready_pods()) == self._nodes, READY_S, "pods")

    def _wait_replaced(self, before: dict[str, str]) -> None:
        def replaced() -> bool:
            now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in self.space.pods()}
            ready = self.space.ready_pods()
            return all(now.get(name, uid) != uid and name in ready for name, uid in before.items())

        until(replaced, READY_S * 2, "new pods")

    def _is_ready(self, pod: str) -> bool:
        conditions = self.space.get("pod", pod)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _begin(self, name: str, *, is_planned: bool) -> Step:
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        step = Step(name, is_planned, began=time.time_ns() / 1e9)
        self.steps.append(step)
        return step

    def _step(self, name: str, action: Callable[[], None], *, is_planned: bool = True) -> None:
        if self._options.only and not any(word in name for word in self._options.only):
            return
        step = self._begin(name, is_planned=is_planned)
        action()
        self._finish(step, done=time.time_ns() / 1e9)

    def _finish(self, step: Step, *, done: float) -> None:
        step.done = done
        until(lambda: self.space.is_settled(self._nodes), SETTLED_S, f"{step.name}: the grid settled", every_s=1.0)
        step.settled = time.time_ns() / 1e9
        time.sleep(AFTER_S)
        self._judge(step, time.time_ns() / 1e9)
        print(f"         {json.dumps(dataclasses.asdict(step))}", flush=True)

    def _judge(self, step: Step, until_date: float) -> None:
        for line in self.space.load_lines():
            if "at" in line and step.began <= line["at"] <= until_date:
                step.calls += line["ok"]
                step.failed += line["failed"]
                step.lost += line["lost"]
                step.doubled += line["doubled"]
                step.slowest_ms = max(step.slowest_ms, line["slowest_ms"])
                for name, count in line["errors"].items():
                    step.errors[name] = step.errors.get(name, 0) + count

    def end(self) -> dict[str, Any]:
        """Stop the load; what it found when it read everything back."""
        self._ended.set()
        self.space.kubectl("exec", LOAD_POD, "--", "python", "-c", "import os; os.kill(1, 15)", fails=False)
        found: dict[str, Any] = until(
            lambda: next((line for line in self.space.load_lines() if line.get("final")), None), 180, "all actors read back"
        )
        return found


READY_PATH = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'


def table_of(steps: list[Step]) -> Table:
    table = Table(title="a grid of three nodes on Kubernetes, under load")
    for column in ("what happened", "planned", "took s", "balanced again s", "calls", "failed", "lost", "doubled", "longest call ms", ""):
        table.add_column(column, justify="left" if column in ("what happened", "planned", "") else "right")
    for step in steps:
        note = step.note or ", ".join(f"{count} {name}" for name, count in step.errors.items())
        cells = (step.calls, step.failed, step.lost, step.doubled, round(step.slowest_ms))
        took, settled = f"{step.done - step.began:.1f}", f"{step.settled - step.began:.1f}"
        table.add_row(step.name, "yes" if step.is_planned else "no", took, settled, *(f"{cell:,}" for cell in cells), note)
    return table


def drill(options: argparse.Namespace) -> int:
    space = Namespace(options.namespace)
    space.make()
    made = Drill(space, options)
    try:
        made.install()
        made.scale(4)
        made.scale(3)
        made.drain_and_uncordon()
        made.rollout_restart()
        made.delete_pod(force=False)
        made.delete_pod(force=True)
        made.kill_node()
        made.delete_head()
        made.api_server_away()
        made.upgrade()
        made.rollback()
        final = made.end()
    finally:
        Console(width=170).print(table_of(made.steps))
        if options.json:
            options.json.write_text(json.dumps([dataclasses.asdict(step) for step in made.steps], indent=2))
    wrong = [step for step in made.steps if step.lost or step.doubled or (step.is_planned and step.failed)]
    print(f"read back: {final['actors']} actors, {final['wrong']} wrong; steps that broke their promise: {len(wrong)}")
    if not options.keep:
        space.helm("uninstall", RELEASE, "--wait", fails=False)
        space.remove()
    return 1 if wrong or final["wrong"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kind", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", default="actorgrid-drill")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--actors", type=int, default=16, help="of each caller")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two calls of a caller, on average")
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--only", action="append", default=[], help="steps whose name has this text; may be repeated")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    parser.add_argument("--keep", action="store_true", help="leave the grid running")
    parser.add_argument("--no-image", action="store_true", help="the image is on the nodes already")
    options = parser.parse_args()
    if missing := missing_tools():
        print(
            f"SKIPPED: not tested on Kubernetes, {', '.join(missing)} not found (docs/kubernetes.md says what is needed)", file=sys.stderr
        )
        return 3
    make_cluster()
    if not options.no_image:
        print(f"{time.strftime('%H:%M:%S')} image {IMAGE}", flush=True)
        load_image()
    return drill(options)


if __name__ == "__main__":
    sys.exit(main())
