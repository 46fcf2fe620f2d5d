"""The watcher beside the placement manager: what `kubernetes_notices.decide` makes of Kubernetes' objects is asked for.

The threads of `kubernetes_mirror` wake the event loop when something that matters has changed. The loop asks the manager what stands,
decides, and asks for what follows. An API server that is away stops nothing but new notices: what it said last goes on to be asked for.
Nothing is taken back, and no volume called free, on its last word alone: for these the objects are listed anew, so that a stalled watch
undoes nothing that a pod has asked for itself meanwhile.

Two watchers at a time, as when the manager moves, ask for the same and do no harm. An operator who takes back what Kubernetes is still
about to do is asked over again; `kubectl uncordon` is the way. The rights it needs are in `kubernetes_api`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from actorgrid import ambient
from actorgrid.cluster import kubernetes_notices, troubles
from actorgrid.cluster.kubernetes_api import KubernetesApi, KubernetesError
from actorgrid.cluster.kubernetes_mirror import Mirrors
from actorgrid.cluster.kubernetes_notices import BY, Action, Claim, Drain, Seen, Standing, StatefulSet, Undrain, VolumeIsFree
from actorgrid.errors import ActorGridError, RequestError

log = logging.getLogger(__name__)

#: What stands may change without a word of Kubernetes: looked at so often while something is under way ...
LOOK_EVERY_S: Final = 1.0
#: ... and so often otherwise, since the manager's answer costs it a look at all replicas.
LOOK_IDLE_S: Final = 5.0
#: After the manager did not answer.
LOOK_AGAIN_S: Final = 0.25
#: Objects change in bursts: ten pods on one machine, a pod's conditions one by one.
BURST_S: Final = 0.05
#: Of one question to the manager.
ASK_S: Final = 5.0
EVENT_S: Final = 3.0
STOP_S: Final = 8.0
EVENT_REASON: Final = "VolumeFree"

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]


class KubernetesWatch:
    """What Kubernetes is about to do with a grid's pods, told to the placement manager.

    :param statefulset: name of the grid's StatefulSet
    :param ask: verb and arguments for the placement manager -> its answer; raises `ActorGridError`
    :param taints: keys that count besides `kubernetes_notices.TAINTS`
    :ivar counters: ``lists``, ``watches``, ``gone`` (410 answers), ``errors`` of the API server, ``intents`` asked for or taken back
    """

    def __init__(self, namespace: str, statefulset: str, ask: Ask, *, taints: Sequence[str] = ()) -> None:
        self.counters = dict.fromkeys(("lists", "watches", "gone", "errors", "intents"), 0)
        self._namespace = namespace
        self._name = statefulset
        self._ask = ask
        self._taints = (*kubernetes_notices.TAINTS, *taints)
        self._changed = asyncio.Event()
        self._api: KubernetesApi | None = None
        self._mirrors: Mirrors | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: set[str] = set()
        self._said: dict[str, str] = {}  # by subject: the trouble that was logged last, so that it is logged once

    async def start(self) -> None:
        """Begin to mirror and to ask. Needs no API server: it is waited for.

        :raises SettingsError: there is no ServiceAccount and no kubeconfig
        """
        assert self._task is None, "it runs already"
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a thread outlived its time to stop
                loop.call_soon_threadsafe(self._changed.set)

        self._api = await asyncio.to_thread(KubernetesApi)
        self._mirrors = Mirrors(self._api, self._namespace, self._name, self.counters, wake)
        self._mirrors.start()
        self._task = loop.create_task(self._run(), name="kubernetes watch")

    async def stop(self, timeout_s: float = STOP_S) -> bool:
        """Ask for nothing more, and end the threads; whether all have ended in time; the others are daemons and change nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=timeout_s)
        mirrors, self._mirrors = self._mirrors, None
        have_ended = await asyncio.to_thread(mirrors.stop, timeout_s) if mirrors is not None else True
        api, self._api = self._api, None
        if api is not None:
            await asyncio.to_thread(api.close)
        if not have_ended:
            log.warning("threads of the kubernetes watch have not ended in time timeout_s=%g", timeout_s)
        return have_ended

    # -- looks

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                pause_s = await self._look()
            except Exception:
                # Our own mistake, or an answer of a release we do not know: it must not end the notices for good.
                if "look" not in self._said:
                    log.exception("what kubernetes says was not followed to the end, the next look tries again")
                self._said["look"], pause_s = "not followed", LOOK_EVERY_S
            else:
                self._said.pop("look", None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
                    await asyncio.sleep(BURST_S)

    async def _look(self) -> float:
        """See how things stand, and do what follows; how long the next look may wait if nothing changes."""
        assert self._mirrors is not None
        seen = self._mirrors.seen()
        if seen is None:
            return LOOK_IDLE_S  # a thread wakes us once it is complete
        standing = await self._standing()
        if standing is None:
            return LOOK_AGAIN_S
        actions = kubernetes_notices.decide(seen, standing, self._told, _now_ms(), self._taints)
        taken = {action.node for action in actions if isinstance(action, Undrain)}
        at_once = [action for action in actions if isinstance(action, Drain) and action.node not in taken]
        is_done = [await self._do(action, seen) for action in at_once]
        if len(at_once) < len(actions):
            seen = await asyncio.to_thread(self._mirrors.look_afresh)
            if seen is not None:
                confirmed = kubernetes_notices.decide(seen, standing, self._told, _now_ms(), self._taints)
                is_done += [await self._do(action, seen) for action in confirmed if not _is_among(action, at_once)]
        if seen is not None:
            self._told &= {claim.name for claim in kubernetes_notices.free_claims(seen, standing)}
        if not all(is_done):
            return LOOK_AGAIN_S
        return LOOK_EVERY_S if actions or seen is None or kubernetes_notices.has_cause(seen, standing, self._taints) else LOOK_IDLE_S

    async def _standing(self) -> dict[str, Standing] | None:
        try:
            answer = await self._ask_manager("nodes", {})
        except (ActorGridError, TimeoutError) as error:
            self._say("manager", f"the placement manager does not answer, asked again: {type(error).__name__}: {error}")
            return None
        self._say("manager", "")
        now_ms = _now_ms()
        return {row["name"]: _standing_of(row, now_ms) for row in answer["nodes"]}

    async def _ask_manager(self, verb: str, arguments: dict[str, Any]) -> Any:
        async with asyncio.timeout(ASK_S):
            return await self._ask(verb, arguments)

    async def _do(self, action: Action, seen: Seen) -> bool:
        """Whether it is done, or cannot be."""
        if isinstance(action, VolumeIsFree):
            await self._tell(action.claim, seen.statefulset)
            return True
        try:
            if isinstance(action, Drain):
                arguments: dict[str, Any] = {"node": action.node, "intent": action.intent, "by": BY}
                if action.deadline_ms:
                    arguments["deadline_s"] = max(kubernetes_notices.DEADLINE_LEAST_MS, action.deadline_ms - _now_ms()) / 1000
                await self._ask_manager("drain", arguments)
                log.info(
                    "kubernetes intent node=%s intent=%s deadline_s=%s why=%s",
                    action.node, action.intent, arguments.get("deadline_s"), action.why,
                )  # fmt: skip
            else:
                await self._ask_manager("undrain", {"node": action.node, "by": BY})
                log.info("kubernetes intent taken back node=%s", action.node)
        except RequestError as error:
            # Somebody was faster: more is wanted by now, or the node is forgotten. The next look sees it.
            log.info("kubernetes intent refused action=%s error=%s", action, error)
            return True
        except (ActorGridError, TimeoutError) as error:
            self._say(action.node, f"not done, tried again: {action}: {type(error).__name__}: {error}")
            return False
        self._said.pop(action.node, None)
        self.counters["intents"] += 1
        return True

    # -- free volumes

    async def _tell(self, claim: Claim, statefulset: StatefulSet | None) -> None:
        self._told.add(claim.name)
        log.info("volume of a removed node is free, its claim may be deleted claim=%s namespace=%s", claim.name, self._namespace)
        if statefulset is None or self._api is None:
            return
        try:
            await asyncio.to_thread(self._api.create_event, self._namespace, self._event(claim, statefulset), EVENT_S)
        except KubernetesError as error:
            self._say("events", f"kubernetes took no event of a free volume, it is only logged: {error}")

    def _event(self, claim: Claim, statefulset: StatefulSet) -> dict[str, Any]:
        """Named by the claim, so that the watcher after this one tells it no second time while the Event is kept."""
        now = datetime.datetime.fromtimestamp(_now_ms() / 1000, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "metadata": {"name": f"{claim.name[:200]}.{claim.uid[:8] or 'volume'}.free", "namespace": self._namespace},
            "involvedObject": {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "name": statefulset.name,
                "namespace": self._namespace,
                "uid": statefulset.uid,
            },
            "reason": EVENT_REASON,
            "message": f"The replicas of {statefulset.name}-{claim.ordinal} are elsewhere: claim {claim.name} may be deleted.",
            "type": "Normal",
            "source": {"component": "actorgrid"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    def _say(self, subject: str, trouble: str) -> None:
        troubles.say(log, self._said, subject, trouble)


def _is_among(action: Action, done: Sequence[Drain]) -> bool:
    return isinstance(action, Drain) and any((action.node, action.intent) == (each.node, each.intent) for each in done)


def _standing_of(row: dict[str, Any], now_ms: int) -> Standing:
    left_s = row.get("deadline_left_s")
    return Standing(
        intent=row["intent"],
        by=row.get("by", ""),  # a manager of the release before says nothing, and then it is an operator's
        deadline_ms=now_ms + int(left_s * 1000) if left_s is not None else 0,
        is_done=row["drain"] == "done",
        is_down=row["state"] == "down",
    )


def _now_ms() -> int:
    return ambient.wall_clock_ns() // 1_000_000
