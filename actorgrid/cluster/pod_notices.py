"""A pod's dealings with Kubernetes: the zone of its machine, how many pods there shall be, and notices while the placement manager is here.

None of it is needed to serve: without the ``kubernetes`` package, outside Kubernetes, and while the API server is away, the pod goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
from typing import Any, Final

from actorgrid.cluster.pod_hosts import OwnHosts
from actorgrid.cluster.pod_settings import PodSettings

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 3.0
LOOK_EVERY_S: Final = 0.5
WATCH_AGAIN_S: Final = 5.0
WATCH_AGAIN_MAX_S: Final = 300.0
STOP_S: Final = 2.0
UNAUTHORIZED: Final = 401
#: Nobody knows the StatefulSet, or this pod; believed if it is so for longer than an API server takes to start, or a token to be renewed.
GONE: Final = -1
GONE_SURE_S: Final = 10.0


class Notices:
    """What this pod asks the API server, and hears from it."""

    def __init__(self, settings: PodSettings) -> None:
        self._settings = settings
        self._is_there = _say_whether_there()
        self._unsaid: set[str] = set()
        self._gone_since_s = 0.0

    async def zone(self) -> str:
        """Of the machine that the pod is on; empty if nobody says."""
        name = self._settings.kubernetes_node
        if not name or not self._is_there:
            return ""
        from actorgrid.cluster.kubernetes_api import zone_of_node

        found = await self._ask("the zone", lambda: zone_of_node(name, ASK_TIMEOUT_S))
        return str(found or "")

    async def wanted_replicas(self) -> int | None:
        """How many pods the StatefulSet shall have, 0 if it has been gone for a while; None if nobody says."""
        if not self._is_there:
            return None
        settings = self._settings
        found = await self._ask("the wanted number of pods", lambda: _wanted_replicas(settings.namespace, settings.statefulset))
        if found != GONE:
            self._gone_since_s = 0.0
            return found if isinstance(found, int) else None
        now_s = asyncio.get_running_loop().time()
        self._gone_since_s = self._gone_since_s or now_s
        return 0 if now_s - self._gone_since_s >= GONE_SURE_S else None

    async def _ask(self, what: str, question: Any) -> Any:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S + 1.0):
                found = await asyncio.to_thread(question)
        except Exception as error:  # noqa: BLE001  # of the client's library, of the network: the pod goes on without
            if what not in self._unsaid:
                log.warning("kubernetes does not say %s: %s: %s", what, type(error).__name__, error)
            self._unsaid.add(what)
            return None
        self._unsaid.discard(what)
        return found

    async def run(self, hosts: OwnHosts) -> None:
        """Watch while the placement manager is in one of `hosts`, for ever."""
        again_s = WATCH_AGAIN_S
        while True:
            while not (self._is_there and hosts.manager() in hosts.names):
                await asyncio.sleep(LOOK_EVERY_S)
            log.info("the placement manager is in this pod: kubernetes is watched")
            try:
                await self._watch(hosts)
            except Exception:
                log.exception("the watch of kubernetes ended, it begins anew: again_s=%g", again_s)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, WATCH_AGAIN_MAX_S)
            else:
                again_s = WATCH_AGAIN_S
                log.info("the placement manager is elsewhere: kubernetes is watched there")

    async def _watch(self, hosts: OwnHosts) -> None:
        from actorgrid.cluster.kubernetes_watch import KubernetesWatch

        watch = KubernetesWatch(self._settings.namespace, self._settings.statefulset, hosts.ask)
        try:
            await watch.start()
            while hosts.manager() in (*hosts.names, ""):  # empty: it moves, and nobody knows yet where to
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await watch.stop(STOP_S)


def _wanted_replicas(namespace: str, statefulset: str) -> int | None:
    """As `Notices.wanted_replicas` has it.

    A release that is uninstalled takes the ServiceAccount along: then the API server knows this pod no more (401), which a token that was
    not renewed in time looks like, too. So it counts only if that goes on (`Notices.wanted_replicas`). Where rights are missing (403), that
    says nothing. A StatefulSet that is deleted without its pods (``--cascade=orphan``) is about to be made anew.
    """
    from actorgrid.cluster.kubernetes_api import KubernetesApi, KubernetesError

    with contextlib.closing(KubernetesApi()) as kubernetes:
        try:
            found = kubernetes.get("apps", "read_namespaced_stateful_set", ASK_TIMEOUT_S, namespace=namespace, name=statefulset)
        except KubernetesError as error:
            if error.status == UNAUTHORIZED:
                return GONE
            raise
    metadata: dict[str, Any] = found.get("metadata", {}) if found is not None else {}
    if found is None or (metadata.get("deletionTimestamp") and "orphan" not in metadata.get("finalizers", [])):
        return GONE
    count = found.get("spec", {}).get("replicas")
    return count if isinstance(count, int) else None


def _say_whether_there() -> bool:
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        log.warning("not in kubernetes: no notices, and a pod that leaves is taken for one that comes back")
        return False
    if importlib.util.find_spec("kubernetes") is None:
        log.warning("the package kubernetes is not installed: no notices, and a pod that leaves is taken for one that comes back")
        return False
    return True
