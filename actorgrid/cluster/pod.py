"""The agent of a pod: it starts the pod's raylet and hosts, watches them, answers probes, and leaves in order (``actorgrid pod run``).

It is the first process of the container and takes no part in serving. Ray is touched by a child process alone (`pod_ray`): nothing here
waits for Ray's control store. While that is away, hosts serve on, probes answer and a pod may leave; only starting something waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final

from actorgrid.cluster import pod_leaving, pod_notices
from actorgrid.cluster.pod_hosts import OwnHosts
from actorgrid.cluster.pod_leaving import Leaving
from actorgrid.cluster.pod_probes import Probes
from actorgrid.cluster.pod_ray_link import RayLink, reap_orphans
from actorgrid.cluster.pod_settings import STOP_MARGIN_S, PodSettings, make_directory
from actorgrid.errors import ActorGridError

log = logging.getLogger(__name__)

#: What `Host.stop` gets; it takes 3 s at most, and running turns have their grace inside it.
HOSTS_STOP_S: Final = 8.0
HOSTS_STOP_LEAST_S: Final = 1.0
END_ACTOR_S: Final = 2.0
#: A host whose process Ray has not brought back by then gets a new actor.
RENEW_AFTER_S: Final = 25.0
RENEW_S: Final = 20.0
RENEW_LOOK_S: Final = 1.0
ESTIMATE_EVERY_S: Final = 600.0
ESTIMATE_AGAIN_S: Final = 10.0
#: What a drain may take longer than estimated, and what the end of the pod takes.
ESTIMATE_MARGIN_S: Final = 30.0
REAP_EVERY_S: Final = 5.0


class PodAgent:
    """The agent of one pod; `run` it once."""

    def __init__(self, settings: PodSettings) -> None:
        self._settings = settings
        self._notices = pod_notices.Notices(settings)
        self._hosts = OwnHosts(settings)
        self._link = RayLink(settings)
        self._leaving = Leaving(settings, self._hosts, self._link, self._notices.wanted_replicas)
        self._probes = Probes(settings, self._hosts, self._link, self._leaving)
        self._told_to_end = asyncio.Event()
        self._told_twice = asyncio.Event()
        self._grace_said = 0.0

    async def run(self) -> int:
        """Run the pod until SIGTERM; the exit code.

        :raises SettingsError: a port is taken, or a directory cannot be written to
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        shutil.rmtree(settings.run, ignore_errors=True)  # what an earlier life of the container left
        make_directory(settings.run, mode=0o700)
        for name in self._hosts.names:
            make_directory(settings.directory_of(name))
        log.info("pod starts: pod=%s hosts=%s ray=%s", settings.pod, ",".join(self._hosts.names), settings.ray_address)
        await self._probes.start()
        wishes = await pod_leaving.serve_wishes(settings, self._leaving)
        zone = settings.zone or await self._notices.zone()
        output = f"/proc/{os.getpid()}/fd/1"
        for host in settings.own:
            self._link.orders[host.name] = settings.order_for(host, zone=zone, output=output)
        ray = loop.create_task(self._link.run(), name="ray")
        tasks = [ray, *(loop.create_task(work, name=name) for name, work in self._work().items())]
        ending = loop.create_task(self._wait_for_signal(), name="signal")
        await asyncio.wait([ending, *tasks], return_when=asyncio.FIRST_COMPLETED)
        broken = [task for task in tasks if task.done()]
        for task in broken:
            log.error("a part of the agent ended by a bug: task=%s", task.get_name(), exc_info=task.exception())
        await self._end()
        for task in (*tasks, ending):
            task.cancel()
        await asyncio.wait([*tasks, ending])  # the raylet ends here
        await wishes.cleanup()
        shutil.rmtree(settings.run, ignore_errors=True)
        log.info("pod has ended: pod=%s", settings.pod)
        return 1 if broken else 0

    def _work(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "head": self._link.watch_head(),
            "hosts": self._hosts.watch(),
            "probes": self._probes.watch(),
            "notices": self._notices.run(self._hosts),
            "estimate": self._estimate(),
            "renewals": self._renew(),
            "orphans": self._reap(),
        }

    async def _wait_for_signal(self) -> None:
        await self._told_to_end.wait()

    def _on_signal(self) -> None:
        (self._told_twice if self._told_to_end.is_set() else self._told_to_end).set()

    # -- the end

    async def _end(self) -> None:
        """Leave, then stop the hosts, and end their actors; a second signal cuts that short."""
        leaving = self._leaving.begin()
        twice = asyncio.create_task(self._told_twice.wait())
        await asyncio.wait([leaving, twice], return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            log.warning("told to end a second time: the pod ends at once")
            leaving.cancel()
            await asyncio.wait([leaving])
        elif leaving.exception() is not None:
            log.error("leaving failed, the pod ends as it is", exc_info=leaving.exception())
        stop_s = min(HOSTS_STOP_S, self._leaving.left_s(STOP_MARGIN_S)) if not twice.done() else HOSTS_STOP_LEAST_S
        twice.cancel()
        await self._tell_all("stop", max(HOSTS_STOP_LEAST_S, stop_s))
        if self._link.head_reachable:
            await self._tell_all("end", END_ACTOR_S)

    async def _tell_all(self, verb: str, timeout_s: float) -> None:
        async def tell(name: str) -> None:
            problem = await self._link.ask(verb, name, timeout_s)
            if problem:
                log.warning("host did not %s in order: host=%s reason=%s", verb, name, problem)

        async with asyncio.TaskGroup() as group:
            for name in self._hosts.names:
                group.create_task(tell(name))

    # -- in the background

    async def _renew(self) -> None:
        """Give a host another actor when Ray does not bring its process back."""
        after_s = dict.fromkeys(self._hosts.names, RENEW_AFTER_S)
        while True:
            await asyncio.sleep(RENEW_LOOK_S)
            for name in self._hosts.names:
                gone_s = self._probes.gone_s(name)
                if gone_s == 0.0:
                    after_s[name] = RENEW_AFTER_S
                elif gone_s > after_s[name] and self._link.is_up:
                    after_s[name] = gone_s + RENEW_AFTER_S
                    log.warning("host has had no process for long, it gets another actor: host=%s gone_s=%.0f", name, gone_s)
                    problem = await self._link.ask("renew", name, RENEW_S)
                    if problem:
                        log.warning("host got no other actor: host=%s reason=%s", name, problem)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_EVERY_S)
            reap_orphans()

    async def _estimate(self) -> None:
        """Warn when the grace period is too short for what is here, before it is too late."""
        while True:
            delay_s = ESTIMATE_AGAIN_S
            if self._leaving.began_s is None and not self._hosts.not_ready():
                arguments = {"node": self._settings.pod, "intent": pod_leaving.REMOVE_NODE, "estimate": True}
                try:
                    row = await self._hosts.ask("drain", arguments)
                except ActorGridError as error:
                    log.debug("no estimate: %s", error)
                else:
                    self._say_grace(float(row["estimate_s"]))
                    delay_s = ESTIMATE_EVERY_S
            await asyncio.sleep(delay_s)

    def _say_grace(self, estimate_s: float) -> None:
        wanted_s = float(round(estimate_s + ESTIMATE_MARGIN_S)) if estimate_s >= 0 else 0.0  # < 0: there is no other node to take it
        if wanted_s <= self._settings.grace_s:
            if self._grace_said:
                log.info("the grace period is long enough now: estimate_s=%.0f grace_s=%.0f", estimate_s, self._settings.grace_s)
            self._grace_said = 0.0
        elif abs(wanted_s - self._grace_said) > 0.1 * wanted_s:
            self._grace_said = wanted_s
            log.warning(
                "the grace period is too short to empty this node: estimate_s=%.0f grace_s=%.0f; set terminationGracePeriodSeconds to %.0f",
                estimate_s, self._settings.grace_s, wanted_s,
            )  # fmt: skip


def run(settings: PodSettings) -> int:
    """Run a pod's agent; the exit code."""

    async def live() -> int:
        return await PodAgent(settings).run()

    try:
        code = asyncio.run(live())
    except ActorGridError as error:
        log.error("the pod cannot run: %s", error)
        code = 2
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a thread may still wait for the API server
