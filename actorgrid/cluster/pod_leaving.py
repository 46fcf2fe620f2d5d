"""How a pod leaves: the rest of the grid is to do without it before its processes end.

A pod that comes back wants ``restart``: primaries go elsewhere, and no more pods leave at a time than every partition can spare. One that
does not, because the StatefulSet was made smaller, wants ``remove_node``: its replicas are built elsewhere first. Either way everything is
served on meanwhile, and it goes on until it is done or until the grace period is nearly over; then what is stored here is on a write quorum
all the same. ``restart`` is asked for by the hosts themselves (`Host.leave`), so that it ends by itself once they are back.

`actorgrid pod leave`, the preStop hook, and SIGTERM, whichever comes first, begin the same leaving; the other one joins in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from actorgrid.cluster.pod_hosts import OwnHosts
from actorgrid.cluster.pod_ray_link import RayLink
from actorgrid.cluster.pod_settings import LEAVE_MARGIN_S, PodSettings
from actorgrid.errors import ActorGridError, RequestError

log = logging.getLogger(__name__)

RESTART: Final = "restart"
REMOVE_NODE: Final = "remove_node"
#: All pods end: there is nobody to wait for.
END_ALL: Final = "end_all"
INTENTS: Final = (RESTART, REMOVE_NODE, END_ALL)
#: Who wants it in the manager's records, where it is not a host of its own accord.
BY_KUBERNETES: Final = "kubernetes"
LOOK_EVERY_S: Final = 0.1
#: Hosts that answer nothing for so long are not waited for.
SILENCE_MAX_S: Final = 15.0
#: Between two looks whether the StatefulSet is still to have any pods.
END_OF_ALL_LOOK_S: Final = 3.0
#: States of a drain in which the node is not needed any more.
OVER: Final = ("done", "forgotten")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a leaving ended.

    :ivar state: ``done``: nobody needs the pod; ``late``: some still do, and the time is over; ``none``: there was nothing to wait for
    """

    pod: str
    intent: str
    state: str
    waited_s: float
    replicas_left: int = 0
    primaries_left: int = 0
    why: str = ""


def decide_intent(ordinal: int, wanted_replicas: int | None) -> str:
    """What follows for a pod from the size of its StatefulSet; None: that is not known."""
    if wanted_replicas is None:
        return RESTART
    if wanted_replicas == 0:
        return END_ALL
    return REMOVE_NODE if ordinal >= wanted_replicas else RESTART


class Leaving:
    """The leaving of this pod, of which there is at most one.

    :param wanted_replicas: asks how many pods there shall be; None if nobody answers
    :ivar began_s: loop time; None: it has not begun
    """

    def __init__(self, settings: PodSettings, hosts: OwnHosts, link: RayLink, wanted_replicas: Callable[[], Awaitable[int | None]]) -> None:
        self.began_s: float | None = None
        self._settings = settings
        self._hosts = hosts
        self._link = link
        self._wanted_replicas = wanted_replicas
        self._task: asyncio.Task[Outcome] | None = None

    def begin(self, intent: str = "") -> asyncio.Task[Outcome]:
        """Leave, unless that was begun.

        :param intent: empty: as the StatefulSet says
        """
        if self._task is None:
            loop = asyncio.get_running_loop()
            self.began_s = loop.time()
            self._task = loop.create_task(self._leave(intent), name="leaving")
        return self._task

    def left_s(self, margin_s: float) -> float:
        """Until `margin_s` seconds before the end of the grace period."""
        assert self.began_s is not None
        return max(0.0, self.began_s + self._settings.grace_s - margin_s - asyncio.get_running_loop().time())

    async def _leave(self, intent: str) -> Outcome:
        intent = intent or decide_intent(self._settings.ordinal, await self._wanted_replicas())
        log.info("pod leaves: intent=%s at_most_s=%.0f", intent, self.left_s(LEAVE_MARGIN_S))
        if intent == END_ALL:
            return self._outcome(intent, "none", why="no pod of the grid is to run")
        if not any(view.has_begun for view in self._hosts.views):
            return self._outcome(intent, "none", why="the grid was not begun, or no host of this pod runs")
        asking = asyncio.create_task(self._ask_to_leave(intent))
        waiting = asyncio.create_task(self._wait(intent, asking))
        ending = asyncio.create_task(self._look_for_end_of_all())
        try:
            await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            return self._outcome(END_ALL, "none", why="no pod of the grid is to run any more")
        finally:
            for task in (asking, waiting, ending):
                task.cancel()
            await asyncio.wait([asking, waiting, ending])

    async def _look_for_end_of_all(self) -> None:
        """Ends once no pod is to run: one that is told to end a moment before the StatefulSet goes would wait for the others in vain."""
        while True:
            await asyncio.sleep(END_OF_ALL_LOOK_S)
            if decide_intent(self._settings.ordinal, await self._wanted_replicas()) == END_ALL:
                return

    async def _ask_to_leave(self, intent: str) -> None:
        """Have it wanted; for `RESTART` until it is over."""
        if intent == RESTART:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._link.ask("leave", name, self.left_s(LEAVE_MARGIN_S))) for name in self._hosts.names]
            problems = [task.result() for task in tasks if task.result()]
            if not problems or self.left_s(LEAVE_MARGIN_S) == 0:
                return
            log.warning("hosts cannot be told to leave, it is asked for in their place: %s", "; ".join(problems))
        while self.left_s(LEAVE_MARGIN_S) > 0:
            arguments = {
                "node": self._settings.pod,
                "intent": intent,
                "by": BY_KUBERNETES,
                "deadline_s": max(1.0, self.left_s(LEAVE_MARGIN_S)),
            }
            try:
                await self._hosts.ask("drain", arguments)
            except RequestError as error:  # more is wanted of the node already, or nobody knows it
                log.info("nothing more is asked for: %s", error)
                return
            except ActorGridError as error:
                log.info("asked again: %s", error)
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                return

    async def _wait(self, intent: str, asking: asyncio.Task[None]) -> Outcome:
        loop = asyncio.get_running_loop()
        row: dict[str, Any] = {}
        why, heard_s, shown = "", loop.time(), ("", 0)
        while self.left_s(LEAVE_MARGIN_S) > 0:
            was_asked = asking.done()
            try:
                row = await self._hosts.ask("drain_status", {"node": self._settings.pod}, timeout_s=2.0)
                why, heard_s = "", loop.time()
            except RequestError as error:
                return self._outcome(intent, "none", why=str(error))
            except ActorGridError as error:
                why = str(error)
            state = row.get("state", "")
            if why == "" and state in OVER:
                return self._outcome(row.get("intent", intent), "done")
            # Until it was asked for, nothing is wanted; afterwards somebody has taken it back, or the grid has one host.
            if why == "" and state == "none" and was_asked:
                return self._outcome(intent, "none", why="nothing is wanted of the node")
            if loop.time() - heard_s > SILENCE_MAX_S:
                return self._outcome(intent, "late", row, why=f"the grid does not answer: {why}")
            if (state, row.get("replicas_left", 0)) != shown:
                shown = state, row.get("replicas_left", 0)
                log.info("leaving: state=%s replicas_left=%s primaries_left=%s estimate_s=%s", *_row(row))
            await asyncio.sleep(LOOK_EVERY_S)
        return self._outcome(row.get("intent", intent), "late", row, why=why or _first_reason(row))

    def _outcome(self, intent: str, state: str, row: dict[str, Any] | None = None, why: str = "") -> Outcome:
        assert self.began_s is not None
        row = row or {}
        outcome = Outcome(
            pod=self._settings.pod,
            intent=intent,
            state=state,
            waited_s=round(asyncio.get_running_loop().time() - self.began_s, 2),
            replicas_left=row.get("replicas_left", 0),
            primaries_left=row.get("primaries_left", 0),
            why=why,
        )
        log.info("pod has left: %s", msgspec.json.encode(outcome).decode())
        return outcome


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("state"), row.get("replicas_left"), row.get("primaries_left"), row.get("estimate_s")


def _first_reason(row: dict[str, Any]) -> str:
    pending = row.get("pending") or [{}]
    return f"partition {pending[0].get('partition')}: {pending[0].get('why')}" if pending[0] else ""


# -- from another process of the container


class _Wish(msgspec.Struct, frozen=True, kw_only=True):
    intent: str = ""


async def serve_wishes(settings: PodSettings, leaving: Leaving) -> web.AppRunner:
    """Listen for `ask_agent` on a socket that only this user may open."""

    async def leave(request: web.Request) -> web.Response:
        try:
            wish = msgspec.json.decode(await request.read(), type=_Wish)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(reason=str(error)) from None
        if wish.intent and wish.intent not in INTENTS:
            raise web.HTTPBadRequest(reason=f"intent must be one of {', '.join(INTENTS)}")
        outcome = await asyncio.shield(leaving.begin(wish.intent))
        return web.Response(body=msgspec.json.encode(outcome), content_type="application/json")

    application = web.Application()
    application.add_routes([web.post("/leave", leave)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    with contextlib.suppress(FileNotFoundError):
        settings.socket.unlink()
    await web.UnixSite(runner, str(settings.socket)).start()
    settings.socket.chmod(0o600)
    return runner


async def ask_agent(settings: PodSettings, intent: str = "") -> Outcome:
    """Have this pod's agent leave, and wait until it has; it knows when to stop waiting.

    :raises OSError, aiohttp.ClientError, TimeoutError: it does not run, or does not answer
    """
    timeout = aiohttp.ClientTimeout(total=settings.grace_s - LEAVE_MARGIN_S / 2, sock_connect=2.0)
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(settings.socket)), timeout=timeout) as session,
        session.post("http://agent/leave", data=msgspec.json.encode(_Wish(intent=intent))) as response,
    ):
        response.raise_for_status()
        return msgspec.json.decode(await response.read(), type=Outcome)
