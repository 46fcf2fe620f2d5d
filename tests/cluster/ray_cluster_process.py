"""Several raylets on one machine, in a process of their own: ``python ray_cluster_process.py DIRECTORY``.

Commands are lines on stdin, answers JSON lines on stdout; the first answer, unasked, is the address of the control store.

    add NAME            start a raylet labelled ``actorgrid-node=NAME``
    drain NAME SECONDS  Ray's own drain, as a spot instance gets it before it goes
    kill NAME           SIGKILL of the raylet
    control stop|start  the control store, which comes back with what it knew
    nodes               names that are alive, by Ray

The end of stdin ends all of it. Its own process, since Ray reads its environment when it is imported, and leaves threads and hooks behind.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

DRAIN_REASON_PREEMPTION = 2


def main() -> None:
    directory = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    from actorgrid.cluster import ports, ray_api

    os.environ.update(ray_api.ray_environment(directory / "gcs") | {"RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]})
    # A killed raylet is seen as dead within 3 s instead of 15 s.
    os.environ |= {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500"}
    os.environ |= {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3"}
    # Sockets, logs, and the file in which `Cluster` notes its address for everybody on the machine.
    os.environ["RAY_TMPDIR"] = str(directory)
    for name in ("gcs", "ray"):
        (directory / name).mkdir()
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    raylets = {}

    def add(name: str, **more: object) -> None:
        raylets[name] = cluster.add_node(
            node_ip_address=ports.LOOPBACK,
            num_cpus=1,
            object_store_memory=80 << 20,
            include_dashboard=False,
            labels={ray_api.NODE_LABEL: name},
            **more,
        )

    add("head", gcs_server_port=ports.find_free(1), no_monitor=True, include_log_monitor=False)
    gcs = GcsClient(address=cluster.gcs_address)
    print(json.dumps(cluster.gcs_address), file=answers)
    for line in sys.stdin:
        verb, *arguments = line.split()
        answer: object = None
        if verb == "add":
            add(arguments[0])
        elif verb == "drain":
            deadline_ms = time.time_ns() // 1_000_000 + int(float(arguments[1]) * 1000)
            answer = gcs.drain_node(raylets[arguments[0]].node_id, DRAIN_REASON_PREEMPTION, "test", deadline_ms, timeout=5)
        elif verb == "kill":
            raylets[arguments[0]].kill_raylet()
        elif verb == "control" and arguments == ["stop"]:
            raylets["head"].kill_gcs_server()
        elif verb == "control":
            raylets["head"]._gcs_address = raylets["head"]._gcs_client = None  # else it refuses to start a second one
            raylets["head"].start_gcs_server()
        elif verb == "nodes":
            infos = gcs.get_all_node_info(timeout=5).values()
            answer = sorted(dict(info.labels)[ray_api.NODE_LABEL] for info in infos if info.state == 0)
        print(json.dumps(answer), file=answers)
    for raylet in raylets.values():
        raylet.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
