"""What a pod's agent knows of its own hosts: it asks each of them twice a second, and remembers, so that probes wait for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import grid_file
from actorgrid.cluster.grid_file import HostEntry
from actorgrid.cluster.pod_settings import PodSettings
from actorgrid.errors import ActorGridError, HostUnavailableError, TransientError
from actorgrid.settings import WireSettings
from actorgrid.wire.messages import HostInfo

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
LOOK_TIMEOUT_S: Final = 1.0
#: An answer counts for so long: one that came late on a busy machine is no reason to take a pod out of a service.
ANSWER_COUNTS_S: Final = 3.0
ASK_TIMEOUT_S: Final = 5.0


class HostView:
    """One host of the pod, as last seen.

    :ivar was_complete: it said once that its map of the grid is complete
    :ivar has_process: a process of it runs, whatever that does
    """

    def __init__(self, info: HostInfo, entry: HostEntry) -> None:
        self.info = info
        self.entry = entry
        self.answer: dict[str, Any] | None = None
        self.was_complete = False
        self.has_process = False
        self._answered_s = float("-inf")

    def take(self, answer: dict[str, Any], now_s: float) -> None:
        """It has answered."""
        if self.answer is None or self.state != answer["host"]["state"]:
            log.info("host of this pod answers: host=%s state=%s pid=%s", self.info.name, answer["host"]["state"], answer["host"]["pid"])
        self.answer, self._answered_s = answer, now_s
        self.has_process = True
        if not self.was_complete and self.has_begun and self.grid.get("map_is_complete"):
            self.was_complete = True
            log.info("host of this pod knows where every partition is: host=%s", self.info.name)

    def miss(self, *, has_process: bool) -> None:
        """It has not answered."""
        if not has_process and self.has_process:
            log.warning("host of this pod has no process: host=%s", self.info.name)
            self._answered_s = float("-inf")
        self.has_process = has_process

    def answers(self, now_s: float) -> bool:
        """Whether it has answered a moment ago."""
        return now_s - self._answered_s < ANSWER_COUNTS_S

    @property
    def state(self) -> str:
        """As it said last; empty if it never did."""
        return str(self.answer["host"]["state"]) if self.answer is not None else ""

    @property
    def grid(self) -> Mapping[str, Any]:
        """What it said last of the grid."""
        return self.answer["grid"] if self.answer is not None else {}

    @property
    def has_begun(self) -> bool:
        """Whether the grid was begun, as far as it knows."""
        return bool(self.grid.get("has_begun"))


class OwnHosts:
    """The hosts of this pod."""

    def __init__(self, settings: PodSettings) -> None:
        self._settings = settings
        self.views = [
            HostView(info, HostEntry(name=info.name, node=settings.pod, address=info.address, port=info.port, data_dir=info.name))
            for info in settings.own
        ]

    @property
    def names(self) -> list[str]:
        """Of all of them."""
        return [view.info.name for view in self.views]

    def not_ready(self) -> list[str]:
        """Why the pod should get no new clients; empty: it should."""
        now_s = asyncio.get_running_loop().time()
        reasons = []
        for view in self.views:
            if not view.answers(now_s):
                reasons.append(f"{view.info.name} does not answer")
            elif not view.was_complete:
                reasons.append(f"{view.info.name} does not know yet where every partition is")
            elif view.state != "serving":
                reasons.append(f"{view.info.name} is {view.state}")
        return reasons

    def never_answered(self) -> list[str]:
        """Hosts that have not answered once."""
        return [view.info.name for view in self.views if view.answer is None]

    def manager(self) -> str:
        """The host with the placement manager, as one of these knows it; empty if none does."""
        now_s = asyncio.get_running_loop().time()
        known = [str(view.grid.get("manager", "")) for view in self.views if view.answers(now_s)]
        return next((name for name in known if name), "")

    async def watch(self) -> None:
        """Ask all of them, for ever."""
        async with asyncio.TaskGroup() as group:
            for view in self.views:
                group.create_task(self._watch(view), name=f"watch {view.info.name}")

    async def _watch(self, view: HostView) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                view.take(await self._ask(view, "status", {}, LOOK_TIMEOUT_S), loop.time())
            except ActorGridError as error:
                view.miss(has_process=grid_file.read_host_mark(self._settings.data, view.entry) is not None)
                log.debug("no answer host=%s error=%s", view.info.name, error)
            except (LookupError, TypeError) as error:
                log.warning("host answers strangely: host=%s error=%s", view.info.name, error)
            await asyncio.sleep(max(0.05, LOOK_EVERY_S - (loop.time() - began_s)))

    async def ask(self, verb: str, arguments: dict[str, Any], *, timeout_s: float = ASK_TIMEOUT_S) -> Any:
        """Ask the grid through a host of this pod.

        :raises HostUnavailableError: none of them answers
        :raises ActorGridError: what was answered
        """
        now_s = asyncio.get_running_loop().time()
        error: ActorGridError = HostUnavailableError("no host of this pod answers")
        for view in sorted(self.views, key=lambda each: not each.answers(now_s)):
            try:
                return await self._ask(view, verb, arguments, timeout_s)
            except TransientError as silent:
                error = silent
        raise error

    async def _ask(self, view: HostView, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        return await admin.ask(
            self._settings.inside,
            view.info.port,
            verb,
            arguments,
            client_id=new_client_id(),
            cluster_id=self._settings.cluster_id,
            wire=WireSettings(),
            timeout_s=timeout_s,
            credentials=self._settings.credentials,
        )
