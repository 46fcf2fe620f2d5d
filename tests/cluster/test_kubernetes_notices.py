"""What Kubernetes says of pods and machines, and what is asked of the placement manager then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.cluster.kubernetes_notices import (
    BY,
    RANKS,
    TAINTS,
    Action,
    Claim,
    Drain,
    Machine,
    Pod,
    Seen,
    Standing,
    StatefulSet,
    Undrain,
    VolumeIsFree,
    decide,
    free_claims,
    has_cause,
    ordinal_of,
    ordinal_of_claim,
    why_leaves,
)
from actorgrid.host.manager import KUBERNETES

NOW = 1_000_000
SET = StatefulSet(name="grid", replicas=3, current_revision="r1", update_revision="r1")
UPDATE = msgspec.structs.replace(SET, update_revision="r2")


def pod(ordinal: int, **more: Any) -> Pod:
    usual = {
        "name": f"grid-{ordinal}",
        "ordinal": ordinal,
        "uid": f"u{ordinal}",
        "machine": f"m{ordinal}",
        "is_ready": True,
        "revision": "r1",
    }
    return Pod(**usual | more)


def machines(**more: Any) -> list[Machine]:
    return [more.get(f"m{number}", Machine(name=f"m{number}")) for number in range(5)]


CORDONED = machines(m1=Machine(name="m1", is_cordoned=True))
ALL = [pod(0), pod(1), pod(2)]


def seen(
    statefulset: StatefulSet | None = SET, pods: list[Pod] = ALL, at: list[Machine] | None = None, claims: tuple[Claim, ...] = ()
) -> Seen:
    return Seen(statefulset=statefulset, pods=pods, machines=machines() if at is None else at, claims=claims)


def with_pod(ordinal: int, **more: Any) -> list[Pod]:
    return [each for each in ALL if each.ordinal != ordinal] + [pod(ordinal, **more)]


def stands(count: int = 3, **nodes: Standing) -> dict[str, Standing]:
    """`n1` stands for the node of ordinal 1."""
    return {f"grid-{number}": nodes.get(f"n{number}", Standing()) for number in range(count)}


def ours(intent: str, **more: Any) -> Standing:
    return Standing(intent=intent, by=BY, **more)


def short(actions: tuple[Action, ...]) -> list[str]:
    """`restart 1 +30` asks for it with 30 s left, `take back 1`, `free data-grid-3`."""
    lines = []
    for action in actions:
        match action:
            case Drain(node, intent, deadline_ms):
                lines.append(f"{intent} {node[5:]}" + (f" +{(deadline_ms - NOW) / 1000:g}" if deadline_ms else ""))
            case Undrain(node):
                lines.append(f"take back {node[5:]}")
            case VolumeIsFree(claim):
                lines.append(f"free {claim.name}")
    return lines


SCALED_UP = msgspec.structs.replace(SET, replicas=4)
TWO = msgspec.structs.replace(SET, replicas=2)
NOBODY = msgspec.structs.replace(SET, replicas=0)
DELETED = with_pod(1, deleted_ms=NOW + 30_000)
NOT_READY = with_pod(1, is_ready=False)
NEW_POD = with_pod(1, uid="new", is_ready=False)
GONE_POD = [pod(0), pod(2)]
OVER = with_pod(1, deleted_ms=NOW - 60_000)

CASES: dict[str, tuple[Seen, dict[str, Standing], list[str]]] = {
    "nothing happens": (seen(), stands(), []),
    # -- a pod that is being deleted
    "a deleted pod is restarted, with the time it has": (seen(pods=DELETED), stands(), ["restart 1 +30"]),
    "a deleted pod whose intent stands with its deadline": (seen(pods=DELETED), stands(n1=ours("restart", deadline_ms=NOW + 29_000)), []),
    "a cordoned pod is deleted: now there is a deadline": (seen(pods=DELETED, at=CORDONED), stands(n1=ours("restart")), ["restart 1 +30"]),
    "the deadline came nearer": (seen(pods=DELETED), stands(n1=ours("restart", deadline_ms=NOW + 90_000)), ["restart 1 +30"]),
    "a pod whose time was up long ago": (seen(pods=OVER), stands(), ["restart 1 +1"]),
    "a pod whose time is up, and so is the intent's": (seen(pods=OVER), stands(n1=ours("restart", deadline_ms=NOW - 30_000)), []),
    "a paused pod is deleted": (
        seen(UPDATE, pods=DELETED),
        stands(n0=ours("pause"), n1=ours("pause"), n2=ours("pause")),
        ["restart 1 +30"],
    ),
    "the deleted pod is gone, and no other is there yet": (seen(pods=GONE_POD), stands(n1=ours("restart")), []),
    "the new pod is not ready yet": (seen(pods=NEW_POD), stands(n1=ours("restart")), []),
    "the new pod is ready": (seen(pods=with_pod(1, uid="new")), stands(n1=ours("restart")), ["take back 1"]),
    "the new pod is on a machine not seen yet": (seen(pods=with_pod(1, machine="m9")), stands(n1=ours("restart")), []),
    "a pod that is not ready is none of ours": (seen(pods=NOT_READY), stands(), []),
    "a node that the manager does not know": (seen(SCALED_UP, [*ALL, pod(3, deleted_ms=NOW + 9_000)]), stands(3), []),
    # -- machines
    "a cordoned machine": (seen(at=CORDONED), stands(), ["restart 1"]),
    "a cordoned machine, known": (seen(at=CORDONED), stands(n1=ours("restart")), []),
    "uncordoned": (seen(), stands(n1=ours("restart")), ["take back 1"]),
    "uncordoned while the pod is not ready": (seen(pods=NOT_READY), stands(n1=ours("restart")), []),
    "two pods on a tainted machine": (
        seen(
            pods=with_pod(2, machine="m1"), at=machines(m1=Machine(name="m1", taints=(("ToBeDeletedByClusterAutoscaler", "NoSchedule"),)))
        ),
        stands(),
        ["restart 1", "restart 2"],
    ),
    "a cordoned machine without a pod": (seen(at=machines(m4=Machine(name="m4", is_cordoned=True))), stands(), []),
    "a pod that is not scheduled": (seen(pods=with_pod(1, machine="", is_ready=False), at=CORDONED), stands(), []),
    "machines may not be read": (Seen(statefulset=SET, pods=ALL, machines=None), stands(n1=ours("restart")), ["take back 1"]),
    # -- scaled down
    "scaled down": (seen(TWO), stands(), ["remove_node 2"]),
    "scaled down, its pod is being deleted": (seen(TWO, with_pod(2, deleted_ms=NOW + 60_000)), stands(), ["remove_node 2 +60"]),
    "scaled down, known, and now its pod is deleted": (
        seen(TWO, with_pod(2, deleted_ms=NOW + 60_000)),
        stands(n2=ours("remove_node")),
        ["remove_node 2 +60"],
    ),
    "scaled down, the pod is gone, the manager still has the node": (seen(TWO, ALL[:2]), stands(n2=ours("restart")), ["remove_node 2"]),
    "scaled down, the manager has forgotten it": (seen(TWO, ALL[:2]), stands(2), []),
    "scaled up again before the pod was deleted": (seen(), stands(n2=ours("remove_node")), ["take back 2"]),
    "scaled up again while the pod goes": (
        seen(pods=with_pod(2, deleted_ms=NOW + 20_000)),
        stands(n2=ours("remove_node", deadline_ms=NOW + 20_000)),
        ["take back 2", "restart 2 +20"],
    ),
    "scaled up again while there is no pod": (seen(pods=ALL[:2]), stands(n2=ours("remove_node")), ["take back 2", "restart 2"]),
    "scaled up again, the new pod is not ready": (
        seen(pods=with_pod(2, is_ready=False)),
        stands(n2=ours("remove_node")),
        ["take back 2", "restart 2"],
    ),
    "scaled down by two, one of them on a cordoned machine": (
        seen(msgspec.structs.replace(SET, replicas=1), at=CORDONED),
        stands(),
        ["remove_node 1", "remove_node 2"],
    ),
    "scaled to nothing is stopped, not removed": (seen(NOBODY, DELETED), stands(n2=ours("remove_node")), []),
    "ordinals begin at 1": (
        seen(msgspec.structs.replace(SET, replicas=2, first_ordinal=1)),
        stands(),
        ["remove_node 0"],
    ),
    # -- a rolling update
    "an update begins": (seen(UPDATE), stands(), ["pause 0", "pause 1", "pause 2"]),
    "an update goes on: the most urgent first": (
        seen(UPDATE, [pod(0), pod(1), pod(2, deleted_ms=NOW + 5_000)]),
        stands(),
        ["restart 2 +5", "pause 0", "pause 1"],
    ),
    "a pod has the new revision": (seen(UPDATE, with_pod(2, revision="r2")), stands(n0=ours("pause"), n1=ours("pause")), []),
    "a pod has the new revision and is not ready yet": (
        seen(UPDATE, with_pod(2, revision="r2", is_ready=False)),
        stands(n0=ours("pause"), n1=ours("pause"), n2=ours("pause")),
        [],
    ),
    "a pod has the new revision and is ready": (
        seen(UPDATE, with_pod(2, revision="r2")),
        stands(n0=ours("pause"), n1=ours("pause"), n2=ours("restart")),
        ["take back 2"],
    ),
    "the update was taken back": (seen(), stands(n0=ours("pause"), n1=ours("pause")), ["take back 0", "take back 1"]),
    "uncordoned while an update waits": (
        seen(UPDATE),
        stands(n0=ours("pause"), n1=ours("restart"), n2=ours("pause")),
        ["take back 1", "pause 1"],
    ),
    "pods below the partition are not updated": (seen(msgspec.structs.replace(UPDATE, updates_from=2)), stands(), ["pause 2"]),
    "an update on delete replaces nothing by itself": (seen(msgspec.structs.replace(UPDATE, updates_from=None)), stands(), []),
    # -- others' intents
    "an operator wants as much": (seen(pods=DELETED), stands(n1=Standing(intent="restart")), []),
    "an operator wants more": (seen(pods=DELETED), stands(n1=Standing(intent="remove_data")), []),
    "an operator wants less": (seen(pods=DELETED), stands(n1=Standing(intent="pause")), ["restart 1 +30"]),
    "an operator wants less than a removal": (seen(TWO), stands(n2=Standing(intent="remove_data")), ["remove_node 2"]),
    "an operator's intent without a cause": (seen(), stands(n1=Standing(intent="remove_node")), []),
    "a host's own intent for the same": (seen(pods=DELETED), stands(n1=Standing(intent="restart", by="grid-1")), []),
    "a host's own intent, and it is to be removed": (seen(TWO), stands(n2=Standing(intent="restart", by="grid-2")), ["remove_node 2"]),
    "a host's own intent without a cause": (seen(), stands(n1=Standing(intent="restart", by="grid-1")), []),
    "a node that is no pod of ours": (seen(), stands() | {"other-1": ours("restart"), "grid-x": ours("restart")}, []),
    # -- nothing is believed
    "there is no StatefulSet": (seen(None), stands(n1=ours("restart")), []),
    "there is no pod at all": (seen(TWO, []), stands(n1=ours("restart")), []),
    "the manager lists nothing": (seen(TWO, claims=(Claim(name="data-grid-2", ordinal=2),)), {}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_seen_becomes_what_is_asked_for(case: str) -> None:
    what, standing, wanted = CASES[case]
    assert short(decide(what, standing, (), NOW)) == wanted


def test_what_needs_another_look_soon_is_told_from_what_does_not() -> None:
    assert not has_cause(seen(), stands(n1=Standing(intent="restart", by="grid-1")))
    assert not has_cause(seen(None), stands())
    for what in (seen(pods=DELETED), seen(at=CORDONED), seen(TWO), seen(UPDATE)):
        assert has_cause(what, stands())
    assert has_cause(seen(), stands(n1=ours("pause")))


@pytest.mark.parametrize(
    ("key", "effect", "counts"),
    [
        ("node.kubernetes.io/unschedulable", "NoSchedule", True),
        ("node.kubernetes.io/out-of-service", "NoExecute", True),
        ("ToBeDeletedByClusterAutoscaler", "NoSchedule", True),
        ("DeletionCandidateOfClusterAutoscaler", "PreferNoSchedule", False),
        ("karpenter.sh/disrupted", "NoSchedule", True),
        ("karpenter.sh/disruption", "NoSchedule", True),
        ("karpenter.sh/disrupted", "PreferNoSchedule", False),
        ("cloud.google.com/impending-node-termination", "NoSchedule", True),
        ("aws-node-termination-handler/spot-itn", "NoExecute", True),
        ("aws-node-termination-handler", "NoExecute", False),
        ("kubernetes.azure.com/scalesetpriority", "NoSchedule", False),
        ("node.kubernetes.io/not-ready", "NoExecute", False),
        ("node.kubernetes.io/unreachable", "NoExecute", False),
        ("example.com/maintenance", "NoSchedule", False),
    ],
)
def test_only_taints_that_take_a_machine_away_count(key: str, effect: str, counts: bool) -> None:
    machine = Machine(name="m1", taints=((key, effect),))
    assert bool(why_leaves(machine)) == counts
    assert why_leaves(machine, [*TAINTS, key])[:3] == ("m1 " if effect != "PreferNoSchedule" else "")


def test_ordinals_are_those_of_this_statefulset() -> None:
    assert [ordinal_of("grid", name) for name in ("grid-0", "grid-12", "grid-01", "grid-", "other-grid-1", "grid-head-0", "gridx-1")] == [
        0, 12, None, None, None, None, None,
    ]  # fmt: skip
    names = ("data-grid-3", "my-data-grid-0", "grid-3", "data-grid-head-0", "data-other-3", "data-grid-x")
    assert [ordinal_of_claim("grid", name) for name in names] == [3, 0, None, None, None, None]
    assert ordinal_of_claim("a.b", "data-axb-1") is None


CLAIMS = tuple(Claim(name=f"data-grid-{ordinal}", ordinal=ordinal) for ordinal in (3, 2, 1))
EMPTY = ours("remove_node", is_done=True, is_down=True)


def test_a_volume_is_free_once_its_pod_is_gone_and_nothing_of_it_is_left() -> None:
    def free(statefulset: StatefulSet, pods: list[Pod], standing: dict[str, Standing], told: tuple[str, ...] = ()) -> list[str]:
        actions = decide(seen(statefulset, pods, claims=CLAIMS), standing, told, NOW)
        return [action.claim.name for action in actions if isinstance(action, VolumeIsFree)]

    assert free(TWO, ALL[:2], stands(2)) == ["data-grid-2", "data-grid-3"]  # forgotten by the manager
    assert free(TWO, ALL[:2], stands(2), ("data-grid-2",)) == ["data-grid-3"]
    assert free(TWO, ALL[:2], stands(3, n2=EMPTY)) == ["data-grid-2", "data-grid-3"]
    assert free(TWO, ALL, stands(3, n2=EMPTY)) == ["data-grid-3"]  # its pod is there yet
    for kept in (
        ours("remove_node"),
        ours("remove_node", is_done=True),
        ours("remove_node", is_down=True),
        Standing(is_done=True, is_down=True),
    ):
        assert free(TWO, ALL[:2], stands(3, n2=kept)) == ["data-grid-3"]
    assert free(SET, ALL[:2], stands(2)) == ["data-grid-3"]  # a pod that is not there yet
    assert free(NOBODY, ALL[:1], stands(1)) == []  # a grid that is stopped has its data there
    assert free(TWO, [], stands(2)) == []
    assert free(TWO, ALL[:2], {}) == []


def test_the_manager_and_the_watcher_mean_the_same_name() -> None:
    assert BY == KUBERNETES


# -- whatever is seen

ORDINALS = range(4)
pods_of_any_kind = st.lists(
    st.builds(
        pod,
        st.sampled_from(ORDINALS),
        machine=st.sampled_from(["", "m0", "m1", "m9"]),
        is_ready=st.booleans(),
        deleted_ms=st.none() | st.integers(NOW - 100_000, NOW + 100_000),
        revision=st.sampled_from(["r1", "r2"]),
    ),
    max_size=4,
    unique_by=lambda each: each.ordinal,
)
sets_of_any_kind = st.builds(
    StatefulSet,
    name=st.just("grid"),
    replicas=st.integers(0, 4),
    first_ordinal=st.sampled_from([0, 0, 1]),
    current_revision=st.sampled_from(["", "r1"]),
    update_revision=st.sampled_from(["", "r1", "r2"]),
    updates_from=st.sampled_from([0, 0, 2, None]),
)
machines_of_any_kind = st.none() | st.lists(
    st.builds(
        Machine,
        name=st.sampled_from(["m0", "m1"]),
        is_cordoned=st.booleans(),
        taints=st.sampled_from([(), (("karpenter.sh/disrupted", "NoSchedule"),), (("x", "NoExecute"),)]),
    ),
    unique_by=lambda each: each.name,
)
seen_of_any_kind = st.builds(
    Seen,
    statefulset=st.none() | sets_of_any_kind,
    pods=pods_of_any_kind,
    machines=machines_of_any_kind,
    claims=st.lists(st.builds(lambda number: Claim(name=f"data-grid-{number}", ordinal=number), st.sampled_from(ORDINALS)), max_size=4),
)


class Records:
    """What the placement manager remembers of one node: what stands, and the operator's lower intent that counts again."""

    def __init__(self, standing: Standing, kept: str) -> None:
        self.standing = standing
        self.kept = kept if standing.by and RANKS[kept] < RANKS[standing.intent] else "none"

    def drain(self, action: Drain) -> None:
        before = self.standing
        if RANKS[action.intent] < RANKS[before.intent]:
            return  # refused: intents only rise
        if before.intent != "none" and before.by != BY and RANKS[before.intent] >= RANKS[action.intent]:
            return
        if not before.by:
            self.kept = before.intent
        self.standing = Standing(intent=action.intent, by=BY, deadline_ms=action.deadline_ms)

    def undrain(self) -> None:
        assert self.standing.by == BY
        self.standing, self.kept = Standing(intent=self.kept), "none"


standing_of_any_kind = st.builds(
    lambda intent, by, deadline_ms: Standing() if intent == "none" else Standing(intent=intent, by=by, deadline_ms=deadline_ms),
    st.sampled_from(list(RANKS)),
    st.sampled_from(["", BY, BY, "grid-1"]),
    st.sampled_from([0, NOW - 50_000, NOW + 500, NOW + 50_000]),
)
records_of_any_kind = st.dictionaries(
    st.sampled_from([f"grid-{number}" for number in ORDINALS]),
    st.builds(Records, standing_of_any_kind, st.sampled_from(["none", "pause", "restart"])),
)


@given(seen_of_any_kind, records_of_any_kind)
def test_nothing_of_others_is_touched_nothing_is_lowered_but_ours_and_once_is_enough(what: Seen, records: dict[str, Records]) -> None:
    before = {name: each.standing for name, each in records.items()}
    actions = decide(what, before, (), NOW)
    taken = {action.node for action in actions if isinstance(action, Undrain)}
    for action in actions:
        match action:
            case Drain(node, intent, deadline_ms):
                if node not in taken:
                    assert RANKS[intent] > RANKS[before[node].intent] or (before[node].by == BY and intent == before[node].intent)
                assert deadline_ms == 0 or deadline_ms > NOW
                records[node].drain(action)
            case Undrain(node):
                assert before[node].by == BY
                records[node].undrain()
    for name, each in records.items():
        if before[name].by != BY:
            assert RANKS[each.standing.intent] >= RANKS[before[name].intent]
    told = [action.claim.name for action in actions if isinstance(action, VolumeIsFree)]
    after = {name: each.standing for name, each in records.items()}
    assert set(told) == {claim.name for claim in free_claims(what, before)}
    assert decide(what, after, told, NOW) == ()


@given(seen_of_any_kind, records_of_any_kind)
def test_no_replica_is_moved_away_of_a_pod_that_the_statefulset_is_to_have(what: Seen, records: dict[str, Records]) -> None:
    for action in decide(what, {name: each.standing for name, each in records.items()}, (), NOW):
        if isinstance(action, Drain) and RANKS[action.intent] > RANKS["restart"]:
            assert what.statefulset is not None
            assert not what.statefulset.has(int(action.node[5:]))
            assert what.statefulset.replicas > 0
