"""What Kubernetes says of a grid's pods and of the machines they are on, turned into intents: a pure function of what is seen now.

It is level-triggered, as `ray_notices` is: it gets the objects as they are, not what happened to them, so that what was missed while
the API server or the watcher was away is had with the next look. It remembers nothing: whose an intent is, the placement manager says
(`Standing.by`). A pod has the name of its node of the grid.

1. A pod whose ordinal the StatefulSet is not to have any more gets ``remove_node``; its time is up with the pod's.
2. Any other pod that is being deleted gets ``restart``, with the time that its deletion leaves.
3. A pod on a machine that is cordoned, or tainted by what takes machines away (`TAINTS`), gets ``restart``.
4. In a rolling update, a pod that is yet to be replaced gets ``pause``: nothing new should come where it has to go again soon.
5. Intents only rise. One of an operator or of a host is never touched; it may be raised, and counts again when ours is taken back.
6. What is taken back is ours, and its cause is gone: the machine takes pods again, the StatefulSet has the ordinal again, the update is
   over, and the pod is there and ready. Until it is ready an intent stays, but no higher than ``restart``: nothing is moved away for it.
7. A StatefulSet of no replicas at all is stopped, not removed: there is nowhere to move to, so nothing is asked for and nothing taken
   back, and its volumes are its data.
8. The volume of a removed ordinal is free once there is no pod of it, and the manager has forgotten the node or has it empty and down.
9. Nothing is believed of a StatefulSet that is not there or has no pod: the watcher itself runs in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec import Struct

#: Who wants it, in the manager's records.
BY: Final = "kubernetes"
NONE: Final = "none"
PAUSE: Final = "pause"
RESTART: Final = "restart"
REMOVE_NODE: Final = "remove_node"
RANKS: Final = {NONE: 0, PAUSE: 1, RESTART: 2, "remove_data": 3, REMOVE_NODE: 4}
#: Taints by which a machine is taken away soon, with NoSchedule or NoExecute; a name that ends with ``/*`` is that of all keys below it.
#: Not here are ``not-ready``, ``unreachable`` and the pressure taints, since the grid sees for itself, and sooner, a host that does not
#: answer; nor what only says of which kind a machine is, such as ``kubernetes.azure.com/scalesetpriority``. Soft ones (PreferNoSchedule)
#: are put on mere candidates.
TAINTS: Final = (
    "node.kubernetes.io/unschedulable",  # kubectl cordon
    "node.kubernetes.io/out-of-service",  # set by people on a machine that is gone
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",  # before Karpenter 1.0
    "cloud.google.com/impending-node-termination",
    "aws-node-termination-handler/*",
)
TAINT_EFFECTS: Final = ("NoSchedule", "NoExecute")
#: A pod whose time is up is told a time all the same: 0 would mean none.
DEADLINE_LEAST_MS: Final = 1_000
#: Deadlines so near each other are the same: dates go over two clocks, in whole seconds.
DEADLINE_SLACK_MS: Final = 2_500


class StatefulSet(Struct, frozen=True, kw_only=True):
    """The grid's StatefulSet.

    :ivar first_ordinal: ``spec.ordinals.start``
    :ivar updates_from: pods below this ordinal are not replaced by an update (``partition``); None: no pod is, by itself (``OnDelete``)
    """

    name: str
    uid: str = ""
    replicas: int = 1
    first_ordinal: int = 0
    current_revision: str = ""
    update_revision: str = ""
    updates_from: int | None = 0

    def has(self, ordinal: int) -> bool:
        """Whether it is to have a pod of this ordinal."""
        return self.first_ordinal <= ordinal < self.first_ordinal + self.replicas

    def replaces(self, pod: Pod) -> bool:
        """Whether the update that is under way will replace the pod, and has not done so."""
        is_under_way = bool(self.current_revision and self.update_revision) and self.current_revision != self.update_revision
        return is_under_way and self.updates_from is not None and pod.ordinal >= self.updates_from and pod.revision != self.update_revision


class Pod(Struct, frozen=True, kw_only=True):
    """A pod of the StatefulSet.

    :ivar machine: Kubernetes node, empty until it is scheduled
    :ivar deleted_ms: date by which it is to be gone (``deletionTimestamp``); None: it is not being deleted
    :ivar revision: label ``controller-revision-hash``
    """

    name: str
    ordinal: int
    uid: str = ""
    machine: str = ""
    deleted_ms: int | None = None
    is_ready: bool = False
    revision: str = ""


class Machine(Struct, frozen=True, kw_only=True):
    """A node of Kubernetes; `node` is one of the grid here.

    :ivar taints: key and effect of each
    """

    name: str
    is_cordoned: bool = False
    taints: tuple[tuple[str, str], ...] = ()


class Claim(Struct, frozen=True, kw_only=True):
    """A PersistentVolumeClaim of the StatefulSet that is not being deleted."""

    name: str
    ordinal: int
    uid: str = ""


class Seen(Struct, frozen=True, kw_only=True):
    """What the API server says.

    :ivar statefulset: None: there is none
    :ivar machines: None: not known, since reading them is not allowed
    """

    statefulset: StatefulSet | None
    pods: Sequence[Pod]
    machines: Sequence[Machine] | None = ()
    claims: Sequence[Claim] = ()


class Standing(Struct, frozen=True, kw_only=True):
    """What is wanted of a node of the grid, as the placement manager says.

    :ivar by: `BY`, a host's name, or empty: an operator
    :ivar deadline_ms: date, 0: none
    :ivar is_done: what the intent wants is reached
    :ivar is_down: none of its hosts runs
    """

    intent: str = NONE
    by: str = ""
    deadline_ms: int = 0
    is_done: bool = False
    is_down: bool = False


class Drain(Struct, frozen=True):
    """Ask for the intent.

    :ivar deadline_ms: date, 0: none
    :ivar why: for logs
    """

    node: str
    intent: str
    deadline_ms: int = 0
    why: str = ""


class Undrain(Struct, frozen=True):
    """Take our intent back."""

    node: str


class VolumeIsFree(Struct, frozen=True):
    """Say, once, that the claim may be deleted."""

    claim: Claim


Action = Drain | Undrain | VolumeIsFree


class _Wish(Struct, frozen=True):
    """What should be wanted of a node now."""

    intent: str = NONE
    deadline_ms: int = 0
    why: str = ""


def ordinal_of(statefulset: str, pod: str) -> int | None:
    """Ordinal of the pod, or node of the grid; None: it is none of this StatefulSet."""
    found = re.fullmatch(rf"{re.escape(statefulset)}-(0|[1-9][0-9]{{0,8}})", pod)
    return int(found[1]) if found is not None else None


def ordinal_of_claim(statefulset: str, claim: str) -> int | None:
    """Ordinal of the pod that the claim is for, whichever template it is made from; None: it is for none of this StatefulSet."""
    template, _, pod = claim.partition(f"-{statefulset}-")
    return ordinal_of(statefulset, f"{statefulset}-{pod}") if template and pod else None


def decide(
    seen: Seen, standing: Mapping[str, Standing], told: Collection[str], now_ms: int, taints: Sequence[str] = TAINTS
) -> tuple[Action, ...]:
    """What is to be done now, the most urgent first; the numbers are those of the module's text.

    :param standing: by node of the grid
    :param told: names of claims that were said to be free
    :param now_ms: date
    :param taints: keys of taints that count, as in `TAINTS`
    """
    statefulset = seen.statefulset
    if statefulset is None or not statefulset.replicas or not seen.pods or not standing:  # 7, 9
        return ()
    pods = {pod.name: pod for pod in seen.pods}
    leaving = None if seen.machines is None else {machine.name: why_leaves(machine, taints) for machine in seen.machines}
    groups: list[tuple[int, str, list[Action]]] = []
    for node, stands in sorted(standing.items()):
        if (ordinal := ordinal_of(statefulset.name, node)) is None:
            continue
        held = stands.intent if stands.by == BY else NONE
        wish = _wish(statefulset, ordinal, pods.get(node), leaving, held)
        if actions := _follow(node, wish, stands, now_ms):
            groups.append((-RANKS[wish.intent], node, actions))
    free: list[Action] = [VolumeIsFree(claim) for claim in free_claims(seen, standing) if claim.name not in told]
    return (*(action for _, _, actions in sorted(groups, key=lambda group: group[:2]) for action in actions), *free)


def has_cause(seen: Seen, standing: Mapping[str, Standing], taints: Sequence[str] = TAINTS) -> bool:
    """Whether something is under way, so that what stands should be looked at often: nobody says when it changes."""
    statefulset = seen.statefulset
    if statefulset is None:
        return False
    if any(stands.by == BY for stands in standing.values()):
        return True
    leaving = {machine.name for machine in seen.machines or () if why_leaves(machine, taints)}
    return any(
        pod.deleted_ms is not None or pod.machine in leaving or not statefulset.has(pod.ordinal) or statefulset.replaces(pod)
        for pod in seen.pods
    )


def why_leaves(machine: Machine, taints: Sequence[str] = TAINTS) -> str:
    """Why pods should leave the machine; empty: they need not."""
    if machine.is_cordoned:
        return f"{machine.name} is cordoned"
    for key, effect in machine.taints:
        if effect in TAINT_EFFECTS and any(key.startswith(known[:-1]) if known.endswith("/*") else key == known for known in taints):
            return f"{machine.name} has the taint {key}:{effect}"
    return ""


def free_claims(seen: Seen, standing: Mapping[str, Standing]) -> list[Claim]:
    """Claims whose volumes nobody needs any more, told or not."""
    statefulset = seen.statefulset
    if statefulset is None or not statefulset.replicas or not seen.pods or not standing:  # 7, 9
        return []
    running = {pod.ordinal for pod in seen.pods}
    return [
        claim
        for claim in sorted(seen.claims, key=lambda claim: (claim.ordinal, claim.name))
        if not statefulset.has(claim.ordinal)
        and claim.ordinal not in running
        and _is_gone(standing.get(f"{statefulset.name}-{claim.ordinal}"))
    ]


def _is_gone(stands: Standing | None) -> bool:  # 8
    return stands is None or (stands.intent == REMOVE_NODE and stands.is_done and stands.is_down)


def _wish(statefulset: StatefulSet, ordinal: int, pod: Pod | None, leaving: Mapping[str, str] | None, held: str) -> _Wish:
    """What should be wanted of a node.

    :param leaving: by machine: why pods should leave it; None: not known
    :param held: our intent that stands
    """
    deadline_ms = (pod.deleted_ms or 0) if pod is not None else 0
    if not statefulset.has(ordinal):
        return _Wish(REMOVE_NODE, deadline_ms, f"the StatefulSet is to have {statefulset.replicas} pods")  # 1
    if pod is not None and pod.deleted_ms is not None:
        return _Wish(RESTART, deadline_ms, "its pod is being deleted")  # 2
    why = (leaving or {}).get(pod.machine, "") if pod is not None else ""
    if why:
        return _Wish(RESTART, 0, why)  # 3
    is_settled = pod is not None and pod.is_ready and (leaving is None or pod.machine in leaving)
    kept = held if is_settled or RANKS[held] <= RANKS[RESTART] else RESTART
    if not is_settled and RANKS[kept] >= RANKS[RESTART]:
        return _Wish(kept, 0, "its pod is not back yet")  # 6
    if pod is not None and statefulset.replaces(pod):
        return _Wish(PAUSE, 0, f"the update to {statefulset.update_revision} will replace its pod")  # 4
    return _Wish() if is_settled else _Wish(kept, 0, "its pod is not back yet")


def _follow(node: str, wish: _Wish, stands: Standing, now_ms: int) -> list[Action]:
    """What brings what stands to the wish; 5."""
    deadline_ms = max(wish.deadline_ms, now_ms + DEADLINE_LEAST_MS) if wish.deadline_ms else 0
    drain = Drain(node, wish.intent, deadline_ms, wish.why)
    rank, standing_rank = RANKS[wish.intent], RANKS.get(stands.intent, RANKS[REMOVE_NODE])
    if rank > standing_rank:
        return [drain]
    if stands.by != BY:
        return []
    if rank < standing_rank:
        return [Undrain(node), drain] if rank else [Undrain(node)]
    return [drain] if _is_other_deadline(wish.deadline_ms, deadline_ms, stands.deadline_ms, now_ms) else []


def _is_other_deadline(wanted_ms: int, asked_ms: int, standing_ms: int, now_ms: int) -> bool:
    if not wanted_ms or (standing_ms and max(wanted_ms, standing_ms) <= now_ms):  # none is wanted, or both are over
        return False
    return abs(asked_ms - standing_ms) > DEADLINE_SLACK_MS
