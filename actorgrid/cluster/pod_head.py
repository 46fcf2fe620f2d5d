"""The pod of Ray's head: the control store, on a disk of its own, and nothing else (``actorgrid pod head``).

It may be away for as long as it likes: hosts serve on, and what is to be started waits. It comes back with what it knew, at the same name
if not at the same address.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from typing import Final

from actorgrid.cluster import ray_api
from actorgrid.cluster.pod_ray_link import reap_orphans
from actorgrid.cluster.pod_settings import HeadSettings, make_directory

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
STORE_DIRECTORY: Final = "control-store"


def run(settings: HeadSettings) -> int:
    """Run the head until SIGTERM; the exit code. Call it from the main thread.

    :raises SettingsError: a directory cannot be written to
    """
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    shutil.rmtree(settings.run, ignore_errors=True)
    directory = settings.run / "r"
    store = settings.data / STORE_DIRECTORY
    for each in (directory, store):
        make_directory(each)
    os.environ.update(ray_api.pod_environment(settings.pod_ip, storage=store))
    head = ray_api.PodRay(directory, address=settings.address, ip=settings.pod_ip, first_port=settings.ray_port)
    log.info("ray's head runs: address=%s ip=%s store=%s", settings.address, settings.pod_ip, store)
    code = 0
    while not ending.wait(LOOK_EVERY_S):
        reap_orphans()
        dead = head.dead_servers()
        if dead == ["gcs_server"]:
            log.warning("ray's control store died, it is started again; hosts serve on")
            head.restart_control_store()
        elif dead:
            log.error("a server of ray's head died, the head begins anew: server=%s", ", ".join(dead))
            code = 1
            break
    head.stop()
    shutil.rmtree(settings.run, ignore_errors=True)
    log.info("ray's head has ended")
    logging.shutdown()
    os._exit(code)
