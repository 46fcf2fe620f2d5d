"""What Kubernetes asks a pod: has it started, may it have clients, is it to be started anew. Answered from memory.

============  =================================================================================================================
``/startupz``  200 once every host of the pod has answered; also while Ray's head is away, which a new start would not mend
``/readyz``    200 once every host has said that it knows where every partition is, while each answers, serves and does not leave
``/livez``     503 when the raylet, or the process of a host, has been gone for long although Ray's head could start it
============  =================================================================================================================

Liveness says nothing of other pods, of a quorum or of the API server: to kill a pod for a slow neighbour makes two slow pods.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from actorgrid.cluster.pod_hosts import OwnHosts
from actorgrid.cluster.pod_leaving import Leaving
from actorgrid.cluster.pod_ray_link import RayLink
from actorgrid.cluster.pod_settings import PodSettings
from actorgrid.host.http import listen_for_http
from actorgrid.host.listening import Penalties

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

#: What is gone for so long, although it could have been started again, does not come by itself.
GONE_MAX_S: Final = 60.0
LOOK_EVERY_S: Final = 0.5


class Probes:
    """Answers to the kubelet."""

    def __init__(self, settings: PodSettings, hosts: OwnHosts, link: RayLink, leaving: Leaving) -> None:
        self._settings = settings
        self._hosts = hosts
        self._link = link
        self._leaving = leaving
        self._gone_s: dict[str, float] = {}
        self._was_ready = False
        self._runner: web.AppRunner | None = None

    def not_started(self) -> list[str]:
        """Why the pod has not started; empty if it has."""
        if not self._link.head_reachable:
            return []
        return [f"{name} has not answered yet" for name in self._hosts.never_answered()]

    def not_ready(self) -> list[str]:
        """Why the pod should get no clients; empty if it should."""
        return ["the pod leaves"] if self._leaving.began_s is not None else self._hosts.not_ready()

    def not_alive(self) -> list[str]:
        """Why the pod should be started anew; empty if it should not."""
        return [f"{what} has been gone for {gone_s:.0f} s" for what, gone_s in self._gone_s.items() if gone_s > GONE_MAX_S]

    async def watch(self) -> None:
        """Measure for ever how long something has been gone. Time without Ray's head does not count: nothing could be started then."""
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # A pause of this process, or of the machine, is nobody's absence.
            passed_s, before_s = min(loop.time() - before_s, 2 * LOOK_EVERY_S), loop.time()
            there = {"the raylet": self._link.is_up} | {f"the process of {view.info.name}": view.has_process for view in self._hosts.views}
            for what, is_there in there.items():
                if is_there:
                    self._gone_s.pop(what, None)
                elif self._link.head_reachable and self._leaving.began_s is None:
                    self._gone_s[what] = self._gone_s.get(what, 0.0) + passed_s
            is_ready = not self.not_ready()
            if is_ready != self._was_ready:
                self._was_ready = is_ready
                log.info("pod is %s: %s", "ready" if is_ready else "not ready", "; ".join(self.not_ready()) or "every host serves")

    def gone_s(self, host: str) -> float:
        """How long a host has had no process although it could have had one."""
        return self._gone_s.get(f"the process of {host}", 0.0)

    async def start(self) -> None:
        """Listen.

        :raises SettingsError: the port is taken, or the certificate cannot be used
        """
        application = web.Application()
        application.add_routes(
            [
                web.get("/startupz", lambda _: self._answer(self.not_started())),
                web.get("/readyz", lambda _: self._answer(self.not_ready())),
                web.get("/livez", lambda _: self._answer(self.not_alive())),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        address, port = self._settings.listen, self._settings.probe_port
        self._server = await listen_for_http(self._runner, address, port, context=self._context(), penalties=Penalties())

    def _context(self) -> ssl.SSLContext | None:
        if self._settings.credentials is None:
            return None
        from actorgrid.credentials import server_context

        return server_context(self._settings.credentials)

    @staticmethod
    async def _answer(reasons: list[str]) -> web.Response:
        body = msgspec.json.encode({"ok": not reasons, "reasons": reasons})
        return web.Response(body=body, status=503 if reasons else 200, content_type="application/json")
