"""The watcher against a real API server: what happens to machines, pods and the StatefulSet, what is asked for then, and when."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stage import ROLE, Daemon, FakeManager, Stage, until, wait_ready

from actorgrid.cluster import kubernetes_mirror
from actorgrid.cluster.kubernetes_api import wanted_replicas, zone_of_node
from actorgrid.cluster.kubernetes_watch import KubernetesWatch
from actorgrid.errors import SettingsError

NOTICE_S = 1.0
WATCH_LOG = "actorgrid.cluster.kubernetes_mirror"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def stage(control_plane: Path, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(control_plane, tmp_path)
    try:
        made.add_machines(4)
        yield made
    finally:
        made.close()


@pytest.fixture
def api_server(control_plane: Path) -> Iterator[Daemon]:
    """The process of the API server, which may be killed and suspended."""
    server, controllers = Daemon(control_plane, "kube-apiserver"), Daemon(control_plane, "kube-controller-manager")
    if not (server.is_here and controllers.is_here):
        pytest.skip(f"the API server is no process of this machine with a pid file next to {control_plane}: it cannot be killed")
    yield server
    controllers.kill()  # they would ask an API server that was away only after half a minute
    controllers.start()


Body = Callable[[KubernetesWatch, FakeManager], Awaitable[None]]


def watching(stage: Stage, monkeypatch: pytest.MonkeyPatch, body: Body, *, nodes: int = 3, account: Path | None = None) -> KubernetesWatch:
    """Run `body` beside a watcher that has no more rights than the documented ones; afterwards nothing of it is left."""
    monkeypatch.setenv("KUBECONFIG", str(account or stage.account()))
    manager = FakeManager(*(f"{stage.name}-{number}" for number in range(nodes)))

    async def main() -> KubernetesWatch:
        watch = KubernetesWatch(stage.namespace, stage.name, manager.ask)
        await watch.start()
        try:
            await until(lambda: watch.counters["watches"] >= 3, what="no watch")
            await body(watch, manager)
        finally:
            began_s = time.monotonic()
            assert await watch.stop()
            assert time.monotonic() - began_s < 6
        assert not [thread for thread in threading.enumerate() if thread.name == "kubernetes watch"]
        return watch

    return asyncio.run(main())


class Watchmaker:
    """Makes changes, and takes the time until the manager was asked for what follows."""

    def __init__(self, manager: FakeManager, record: Callable[[str, object], None]) -> None:
        self._manager = manager
        self._record = record

    async def expect(self, intents: dict[str, str], change: Callable[..., Any], *arguments: Any, within_s: float = NOTICE_S) -> float:
        """Change something; each node gets its intent in time. From the moment that the API server has answered, or earlier."""
        began_s = time.monotonic()
        await asyncio.to_thread(change, *arguments)
        changed_s = time.monotonic()
        slowest_s = 0.0
        for node, intent in intents.items():
            at_s = await until(lambda: self._manager.first(began_s, node, intent), 15, f"{node} {intent}: {self._manager.asked}")  # noqa: B023
            slowest_s = max(slowest_s, at_s - changed_s)
        self._record(f"{change.__name__}{arguments}", round(slowest_s * 1000))
        print(f"NOTICE {change.__name__}{arguments} -> {intents}: {slowest_s * 1000:.0f} ms")
        assert slowest_s < within_s
        return slowest_s


@pytest.fixture
def timed(record_property: Callable[[str, object], None]) -> Callable[[FakeManager], Watchmaker]:
    return lambda manager: Watchmaker(manager, record_property)


def test_a_cordoned_or_tainted_machine_and_its_return(stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        expect = timed(manager).expect
        await expect({"grid-1": "restart"}, stage.cordon, 1)
        await expect({"grid-1": "none"}, stage.cordon, 1, False)
        for key in ("ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn"):
            await expect({"grid-0": "restart"}, stage.taint, 0, (key, "NoSchedule"))
            await expect({"grid-0": "none"}, stage.taint, 0)
        await asyncio.to_thread(stage.taint, 2, ("example.com/slow", "NoSchedule"), ("karpenter.sh/disrupted", "PreferNoSchedule"))
        await asyncio.to_thread(stage.cordon, 3)  # no pod of ours is there
        await asyncio.sleep(1.5)
        assert manager.intent("grid-2") == ("none", "")
        assert watch.counters["errors"] == 0
        assert watch.counters["intents"] == 8

    watching(stage, monkeypatch, body)


def test_a_pod_that_is_deleted_is_restarted_in_the_time_it_has(stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        expect = timed(manager).expect
        before = await asyncio.to_thread(stage.pod, 1)
        await expect({"grid-1": "restart"}, stage.delete_pod, 1, 45)
        (_, _, asked) = manager.asked[-1]
        assert 42 < asked["deadline_s"] < 46
        await asyncio.to_thread(stage.end_pod, "grid-1")
        await asyncio.to_thread(stage.wait_for_pod, 1, other_than=before.metadata.uid)
        await asyncio.sleep(1.5)
        assert manager.intent("grid-1") == ("restart", "kubernetes")  # the new one is there and not ready
        await asyncio.to_thread(stage.bind, 1)
        await asyncio.sleep(0.5)
        assert manager.intent("grid-1") == ("restart", "kubernetes")
        await expect({"grid-1": "none"}, stage.make_ready, 1)
        assert len(manager.asked) == 2

    watching(stage, monkeypatch, body)


def test_scaled_down_and_up_again_and_down_until_the_volume_is_free(stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    stage.create(4)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        expect = timed(manager).expect
        await expect({"grid-3": "remove_node"}, stage.scale, 3)
        await until(lambda: manager.asked[-1][2].get("deadline_s"))  # once its pod is being deleted
        assert 25 < manager.asked[-1][2]["deadline_s"] < 31
        await expect({"grid-3": "restart"}, stage.scale, 4)  # while the pod goes: its data is to stay after all
        assert manager.intent("grid-3") == ("restart", "kubernetes")
        before = await asyncio.to_thread(stage.pod, 3)
        await asyncio.to_thread(stage.end_pod, "grid-3")
        await expect({"grid-3": "none"}, lambda: stage.settle(3, other_than=before.metadata.uid))

        await expect({"grid-3": "remove_node"}, stage.scale, 3)
        await asyncio.sleep(1.5)
        assert await asyncio.to_thread(stage.events) == []
        manager.standing["grid-3"] |= {"drain": "done"}
        await asyncio.to_thread(stage.end_pod, "grid-3")
        await asyncio.sleep(1.5)
        assert await asyncio.to_thread(stage.events) == []  # its host may still be up
        manager.standing["grid-3"] |= {"state": "down"}
        deadline = time.monotonic() + 5
        while not (events := await asyncio.to_thread(stage.events)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        del manager.standing["grid-3"]  # the manager forgets it
        await asyncio.sleep(2)
        [event] = await asyncio.to_thread(stage.events)
        assert event.metadata.uid == events[0].metadata.uid
        assert (event.involved_object.kind, event.involved_object.name) == ("StatefulSet", "grid")
        assert "data-grid-3 may be deleted" in event.message

    watch = watching(stage, monkeypatch, body, nodes=4)
    assert watch.counters["errors"] == 0

    async def again(watch: KubernetesWatch, manager: FakeManager) -> None:
        await until(lambda: watch._told == {"data-grid-3"}, 5)
        assert len(await asyncio.to_thread(stage.events)) == 1  # a new watcher says it again, and the Event is there already

    watching(stage, monkeypatch, again)


def test_a_rolling_update_pauses_what_it_will_replace(stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        expect = timed(manager).expect
        await expect({"grid-2": "restart", "grid-1": "pause", "grid-0": "pause"}, stage.update, "2")
        for ordinal in (2, 1, 0):
            await until(lambda: manager.intent(f"grid-{ordinal}")[0] == "restart", 5)  # noqa: B023
            before = await asyncio.to_thread(stage.pod, ordinal)
            await asyncio.to_thread(stage.end_pod, f"grid-{ordinal}")
            await expect({f"grid-{ordinal}": "none"}, lambda: stage.settle(ordinal, other_than=before.metadata.uid))  # noqa: B023
        assert [manager.intent(f"grid-{ordinal}") for ordinal in range(3)] == [("none", "")] * 3

    watching(stage, monkeypatch, body)


def test_of_a_burst_every_pod_gets_its_intent_in_time(stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        def everything() -> None:
            stage.cordon(0)
            stage.delete_pod(1)
            stage.scale(2)

        await timed(manager).expect({"grid-0": "restart", "grid-1": "restart", "grid-2": "remove_node"}, everything)

    watching(stage, monkeypatch, body)


def test_others_intents_stay_and_a_manager_that_is_away_is_asked_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        manager.standing["grid-0"] |= {"intent": "restart"}
        manager.standing["grid-1"] |= {"intent": "restart", "by": "grid-1"}
        await asyncio.to_thread(stage.cordon, 0)
        await asyncio.to_thread(stage.delete_pod, 1)
        await asyncio.sleep(1.2)
        assert manager.asked == []
        manager.is_away = True
        await asyncio.to_thread(stage.cordon, 2)
        await asyncio.sleep(1.5)
        manager.is_away = False
        await until(lambda: manager.intent("grid-2") == ("restart", "kubernetes"), 1)
        assert [
            record.message for record in caplog.records if "placement manager does not answer" in record.message and record.levelno > 20
        ] == ["the placement manager does not answer, asked again: HostUnavailableError: the manager is moving"]

    with caplog.at_level(logging.INFO):
        watching(stage, monkeypatch, body)


def test_what_was_missed_is_had_with_the_first_look(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.create(3)
    stage.cordon(1)
    stage.delete_pod(2)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        await until(lambda: manager.intent("grid-1")[0] == manager.intent("grid-2")[0] == "restart", 3)

    watching(stage, monkeypatch, body)


def test_without_the_right_to_read_nodes_the_rest_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stage.create(3)
    monkeypatch.setattr(kubernetes_mirror, "FORBIDDEN_AGAIN_S", 0.3)
    monkeypatch.setattr(kubernetes_mirror, "FORBIDDEN_FIRST_S", 1.0)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        await until(lambda: watch._mirrors.seen() is not None, 5)
        await asyncio.to_thread(stage.cordon, 0)
        await timed(manager).expect({"grid-1": "restart"}, stage.delete_pod, 1)
        await asyncio.sleep(1.5)
        assert manager.intent("grid-0") == ("none", "")
        assert watch.counters["errors"] > 2

    with caplog.at_level(logging.INFO):
        watching(stage, monkeypatch, body, account=stage.account(may_read_nodes=False))
    said = [record.message for record in caplog.records if record.name == WATCH_LOG]
    assert [line for line in said if "we do without" in line] == [
        "kubernetes does not let us read some objects, and we do without what=nodes error=403 Forbidden"
    ]


def test_without_the_right_to_read_claims_or_write_events_the_rest_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, timed: Any
) -> None:
    stage.create(3)
    role = [ROLE[0], ROLE[1] | {"resources": ["pods"]}]
    monkeypatch.setattr(kubernetes_mirror, "FORBIDDEN_FIRST_S", 0.5)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        await until(lambda: watch._mirrors.seen() is not None, 5)
        await timed(manager).expect({"grid-1": "restart"}, stage.cordon, 1)

    watching(stage, monkeypatch, body, account=stage.account(role=role))


def test_a_right_that_is_missing_for_a_moment_changes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.create(3)
    account = stage.account()
    monkeypatch.setattr(kubernetes_mirror, "WATCH_S", 1)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        await asyncio.to_thread(stage.cordon, 1)
        await until(lambda: manager.intent("grid-1") == ("restart", "kubernetes"))
        await asyncio.to_thread(stage.let_nodes_be_read, account.stem, False)
        await until(lambda: watch.counters["errors"] > 3, 15)
        assert manager.intent("grid-1") == ("restart", "kubernetes")
        await asyncio.to_thread(stage.let_nodes_be_read, account.stem)
        await until(lambda: not watch._mirrors._is_lost, 10)
        await asyncio.to_thread(stage.cordon, 1, False)
        await until(lambda: manager.intent("grid-1") == ("none", ""))
        assert [verb for _, verb, _ in manager.asked] == ["drain", "undrain"]

    with caplog.at_level(logging.INFO, WATCH_LOG):
        watching(stage, monkeypatch, body, account=account)
    said = [record.message for record in caplog.records if record.name == WATCH_LOG]
    assert [line.split(",")[0] for line in said] == ["kubernetes api server is away", "kubernetes api server is back"]


def test_a_watcher_without_any_right_waits_for_it(stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stage.create(3)
    stage.cordon(1)
    monkeypatch.setenv("KUBECONFIG", str(stage.account(role=[], may_read_nodes=False)))
    manager = FakeManager("grid-0", "grid-1", "grid-2")

    async def main() -> None:
        watch = KubernetesWatch(stage.namespace, stage.name, manager.ask)
        await watch.start()
        await until(lambda: watch.counters["errors"] > 4, 10)
        assert manager.asked == []
        assert await watch.stop()

    with caplog.at_level(logging.INFO, WATCH_LOG):
        asyncio.run(main())
    assert sum("api server is away" in record.message for record in caplog.records) == 1


def test_the_api_server_is_killed_and_comes_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, api_server: Daemon, caplog: pytest.LogCaptureFixture, timed: Any
) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        expect = timed(manager).expect
        await expect({"grid-1": "restart"}, stage.cordon, 1)
        await asyncio.to_thread(api_server.kill)
        await until(lambda: watch.counters["errors"] > 3, 15)
        manager.forget("grid-1")  # what was said last goes on to be asked for
        await until(lambda: manager.intent("grid-1") == ("restart", "kubernetes"), 3)
        manager.standing["grid-2"] |= {"intent": "restart", "by": "kubernetes"}  # as a pod's own preStop may have
        await asyncio.sleep(3)
        assert manager.intent("grid-2") == ("restart", "kubernetes")  # nothing is taken back on a last word
        await asyncio.to_thread(api_server.start)
        await asyncio.to_thread(wait_ready, stage.core)
        began_s = time.monotonic()
        await until(lambda: manager.intent("grid-2") == ("none", ""), 15)
        print(f"NOTICE api server back -> first taken back: {time.monotonic() - began_s:.1f} s")
        await until(lambda: not watch._mirrors._is_lost, 15)
        # An API server that has just started sends its first events late.
        await expect({"grid-1": "none"}, stage.cordon, 1, False, within_s=10.0)
        await expect({"grid-0": "restart"}, stage.delete_pod, 0)
        assert watch.counters["errors"] > 3
        print(f"COUNTERS {watch.counters}")

    with caplog.at_level(logging.INFO, WATCH_LOG):
        watching(stage, monkeypatch, body)
    said = [record.message for record in caplog.records if record.name == WATCH_LOG]
    assert [line.split(",")[0] for line in said] == ["kubernetes api server is away", "kubernetes api server is back"]


def test_an_api_server_that_hangs_is_left_and_found_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, api_server: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    stage.create(3)
    monkeypatch.setattr(kubernetes_mirror, "WATCH_S", 2)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        await asyncio.sleep(5)
        assert watch.counters["watches"] >= 8  # each ends by itself after two seconds, and the next one begins
        assert watch.counters["lists"] <= 8
        assert watch.counters["errors"] == 0
        api_server.suspend()
        try:
            await until(lambda: watch.counters["errors"] >= 4, 30)
            assert manager.asked == []
        finally:
            api_server.resume()
        await asyncio.to_thread(wait_ready, stage.core)
        await asyncio.to_thread(stage.cordon, 1)
        began_s = time.monotonic()
        await until(lambda: manager.intent("grid-1") == ("restart", "kubernetes"), 20)
        print(f"NOTICE api server goes on -> cordon: {time.monotonic() - began_s:.1f} s")

    with caplog.at_level(logging.INFO, WATCH_LOG):
        watching(stage, monkeypatch, body)
    assert sum("api server is away" in record.message for record in caplog.records) == 1


def test_a_watcher_is_stopped_while_the_api_server_hangs(stage: Stage, monkeypatch: pytest.MonkeyPatch, api_server: Daemon) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        api_server.suspend()

    try:
        watching(stage, monkeypatch, body)
    finally:
        api_server.resume()
        wait_ready(stage.core)


def test_a_version_that_is_no_longer_remembered_is_listed_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, api_server: Daemon, timed: Any
) -> None:
    stage.create(3)

    async def body(watch: KubernetesWatch, manager: FakeManager) -> None:
        # A server that begins anew remembers no version before its own first list; until it has made that, it asks etcd, which does.
        await asyncio.to_thread(api_server.kill)
        await asyncio.to_thread(api_server.start)
        await asyncio.to_thread(wait_ready, stage.core)
        lists = watch.counters["lists"]
        for _ in range(40):
            for mirror in watch._mirrors._all:
                mirror._version = "1"
                mirror.interrupt()
            await asyncio.sleep(0.5)
            if watch.counters["gone"]:
                break
        assert watch.counters["gone"] > 0
        assert watch.counters["lists"] > lists
        await until(lambda: not watch._mirrors._is_lost, 15)
        await asyncio.sleep(1)
        await timed(manager).expect({"grid-1": "restart"}, stage.cordon, 1)
        print(f"COUNTERS {watch.counters}")

    watching(stage, monkeypatch, body)


def test_single_questions_have_an_end(stage: Stage, monkeypatch: pytest.MonkeyPatch, api_server: Daemon) -> None:
    stage.create(2)
    monkeypatch.setenv("KUBECONFIG", str(stage.account()))
    assert wanted_replicas(stage.namespace, "grid", 2.0) == 2
    assert wanted_replicas(stage.namespace, "no-grid", 2.0) is None  # and it may not read another one
    assert wanted_replicas("default", "grid", 2.0) is None
    assert zone_of_node(stage.machines[1], 2.0) == "zone-1"
    assert zone_of_node("no-machine", 2.0) == ""
    began_s = time.monotonic()
    api_server.suspend()
    try:
        assert wanted_replicas(stage.namespace, "grid", 1.0) is None
        assert zone_of_node(stage.machines[1], 1.0) == ""
    finally:
        api_server.resume()
    assert time.monotonic() - began_s < 3
    wait_ready(stage.core)


def test_no_way_to_an_api_server_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match="no way to the Kubernetes API"):
        asyncio.run(KubernetesWatch("default", "grid", FakeManager().ask).start())
    assert wanted_replicas("default", "grid", 1.0) is None
    assert zone_of_node("m", 1.0) == ""
