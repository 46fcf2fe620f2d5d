"""What a pod is told by its environment, what follows from it, and what its probes say."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from actorgrid.cli.commands import app
from actorgrid.cluster import pod_leaving, pod_probes
from actorgrid.cluster.pod_hosts import OwnHosts
from actorgrid.cluster.pod_leaving import END_ALL, REMOVE_NODE, RESTART, Leaving, decide_intent
from actorgrid.cluster.pod_probes import Probes
from actorgrid.cluster.pod_ray_link import RayLink
from actorgrid.cluster.pod_settings import HeadSettings, PodSettings, make_directory
from actorgrid.cluster.ray_api import POD_PORTS, POD_WORKER_PORTS
from actorgrid.cluster.ray_host import HostOrder
from actorgrid.errors import SettingsError

ENVIRONMENT = {
    "ACTORGRID_CLUSTER_ID": "shop",
    "ACTORGRID_APP": "orders, stock",
    "ACTORGRID_APP_PATH": "/app:/more",
    "ACTORGRID_RAY_ADDRESS": "grid-head-0.grid-head.shop.svc.cluster.local:6379",
    "ACTORGRID_STATEFULSET": "grid",
    "ACTORGRID_SERVICE": "grid-nodes.shop.svc.cluster.local",
    "ACTORGRID_NODES_FIRST": "3",
    "ACTORGRID_GRACE_S": "600",
    "ACTORGRID_POD_NAME": "grid-4",
    "ACTORGRID_NAMESPACE": "shop",
    "ACTORGRID_POD_IP": "10.1.2.3",
    "ACTORGRID_KUBERNETES_NODE": "machine-7",
    "ACTORGRID_PLACEMENT_QUIET_S": "4",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/credentials/ray/token",
}


def settings(**more: str) -> PodSettings:
    return PodSettings.from_environment(ENVIRONMENT | more)


def test_the_first_hosts_are_those_of_the_first_pods_and_a_later_pod_adds_its_own() -> None:
    found = settings()
    assert [(host.name, host.address, host.port) for host in found.hosts] == [
        (f"grid-{number}", f"grid-{number}.grid-nodes.shop.svc.cluster.local", 7400) for number in (0, 1, 2, 4)
    ]
    assert found.ordinal == 4
    assert [host.name for host in settings(ACTORGRID_POD_NAME="grid-1").hosts] == ["grid-0", "grid-1", "grid-2"]


def test_several_hosts_of_a_pod_have_names_ports_and_directories_of_their_own() -> None:
    found = settings(ACTORGRID_HOSTS_PER_POD="2", ACTORGRID_NODES_FIRST="2")
    assert [(host.name, host.port) for host in found.own] == [("grid-4.1", 7400), ("grid-4.2", 7401)]
    assert [host.name for host in found.first] == ["grid-0.1", "grid-0.2", "grid-1.1", "grid-1.2"]
    assert found.directory_of("grid-4.2") == Path("/data/grid-4.2")


def test_everything_that_is_wrong_is_named_at_once() -> None:
    wrong = {
        "ACTORGRID_CLUSTER_ID": "",
        "ACTORGRID_APP": " ",
        "ACTORGRID_RAY_ADDRESS": "head",
        "ACTORGRID_GRACE_S": "3",
        "ACTORGRID_POD_NAME": "other-1",
        "ACTORGRID_PORT": "12000",
        "ACTORGRID_REPLICAS": "many",
        "ACTORGRID_PLACEMENT_QUIET_S": "-1",
        "ACTORGRID_RUN": "relative",
        "ACTORGRID_RAY_PORT": "9800",
        "RAY_AUTH_MODE": "disabled",
    }
    with pytest.raises(SettingsError) as caught:
        settings(**wrong)
    said = "\n".join(caught.value.problems)
    for name in wrong:
        assert (
            (name.removeprefix("ACTORGRID_").lower() in said)
            if name == "ACTORGRID_PLACEMENT_QUIET_S"
            else (name in said or "12000" in said)
        ), name


def test_a_pod_that_is_reached_from_elsewhere_needs_a_token_for_ray() -> None:
    for missing in ({"RAY_AUTH_MODE": ""}, {"RAY_AUTH_TOKEN_PATH": ""}):
        with pytest.raises(SettingsError, match="RAY_AUTH"):
            settings(**missing)
        with pytest.raises(SettingsError, match="RAY_AUTH"):
            HeadSettings.from_environment(ENVIRONMENT | missing)


def test_an_order_names_files_and_holds_no_secret(tmp_path: Path) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key", "tokens.json"):
        (tmp_path / name).write_text("")
    found = settings(
        ACTORGRID_CA=f"{tmp_path}/ca.crt",
        ACTORGRID_CERTIFICATE=f"{tmp_path}/tls.crt",
        ACTORGRID_KEY=f"{tmp_path}/tls.key",
        ACTORGRID_TOKENS=f"{tmp_path}/tokens.json",
        ACTORGRID_TOKEN="very secret",
    )
    order = found.order_for(found.own[0], zone="west")
    assert b"very secret" not in order
    decoded = msgspec.json.decode(order, type=HostOrder)
    assert decoded.credentials["key"] == f"{tmp_path}/tls.key"
    assert (decoded.listen, decoded.zone, decoded.address) == ("0.0.0.0", "west", "grid-4.grid-nodes.shop.svc.cluster.local")
    config = decoded.config()
    assert config.settings.placement_quiet_s == 4
    assert config.settings.stop_grace_s == 590
    assert config.credentials is not None


def test_a_volume_that_cannot_be_written_to_is_said_with_who_would_write(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="must be writable for user"):
        make_directory(tmp_path / "file" / "b")


def test_rays_ports_are_outside_of_those_of_hosts_and_probes() -> None:
    last = 6380 + POD_WORKER_PORTS.stop - 1
    assert len(set(POD_PORTS.values())) == len(POD_PORTS)
    assert max(POD_PORTS.values()) < POD_WORKER_PORTS.start
    assert last < 7400


@pytest.mark.parametrize(("wanted", "intent"), [(None, RESTART), (5, RESTART), (4, REMOVE_NODE), (3, REMOVE_NODE), (0, END_ALL)])
def test_a_pod_beyond_the_wanted_number_is_removed_and_any_other_one_restarts(wanted: int | None, intent: str) -> None:
    assert decide_intent(4, wanted) == intent


def test_leave_ends_well_whatever_is_wrong(tmp_path: Path) -> None:
    for environment, why in (({}, "ACTORGRID_POD_NAME"), (ENVIRONMENT | {"ACTORGRID_RUN": "/tmp/no-agent-here"}, "does not answer")):
        found = CliRunner().invoke(app, ["pod", "leave"], env={**dict.fromkeys(ENVIRONMENT, ""), **environment})
        assert found.exit_code == 0
        answer = json.loads(found.output)
        assert answer["state"] == "none"
        assert why in answer["why"]


class Grid:
    """Stands in for the grid that a pod's hosts ask."""

    def __init__(self, *states: str) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.states = list(states)

    async def ask(self, verb: str, arguments: dict[str, Any], *, timeout_s: float = 5.0) -> Any:
        self.asked.append((verb, arguments))
        state = self.states.pop(0) if verb == "drain_status" and len(self.states) > 1 else self.states[0]
        return {"state": state, "replicas_left": 3, "primaries_left": 1, "intent": "remove_node"}


def leaving_of(found: PodSettings, grid: Grid, wanted: int | None) -> Leaving:
    hosts = OwnHosts(found)
    hosts.ask = grid.ask  # type: ignore[method-assign]
    hosts.views[0].answer = {"host": {"state": "serving"}, "grid": {"has_begun": True}}

    async def wanted_replicas() -> int | None:
        return wanted

    return Leaving(found, hosts, RayLink(found), wanted_replicas)


def test_a_leaving_waits_until_the_grid_does_without_the_pod() -> None:
    async def story() -> None:
        grid = Grid("draining", "draining", "done")
        leaving = leaving_of(settings(), grid, 3)
        first, second = leaving.begin(), leaving.begin()
        assert first is second
        outcome = await first
        assert (outcome.state, outcome.intent) == ("done", "remove_node")
        [(_, drain)] = [each for each in grid.asked if each[0] == "drain"]
        assert drain["by"] == "kubernetes"
        assert 580 < drain["deadline_s"] <= 590

    asyncio.run(story())


def test_a_leaving_ends_before_the_grace_period_does() -> None:
    async def story() -> None:
        grid = Grid("blocked")
        began = time.monotonic()
        outcome = await leaving_of(settings(ACTORGRID_GRACE_S="15"), grid, 3).begin()
        assert outcome.state == "late"
        assert outcome.replicas_left == 3
        assert 4.5 < time.monotonic() - began < 7

    asyncio.run(story())


def test_a_host_that_cannot_be_told_to_leave_is_drained_in_its_place_and_an_end_of_all_waits_for_nobody() -> None:
    async def story() -> None:
        grid = Grid("draining", "done")
        outcome = await leaving_of(settings(), grid, None).begin()
        assert outcome.state == "done"
        assert [each[1]["intent"] for each in grid.asked if each[0] == "drain"] == ["restart"]
        quiet = Grid("draining")
        assert (await leaving_of(settings(), quiet, 0).begin()).state == "none"
        assert not quiet.asked

    asyncio.run(story())


def test_a_pod_that_waits_ends_when_no_pod_is_to_run_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_leaving, "END_OF_ALL_LOOK_S", 0.2)

    async def story() -> None:
        leaving = leaving_of(settings(), Grid("blocked"), 5)
        waiting = leaving.begin()
        await asyncio.sleep(0.5)
        assert not waiting.done()

        async def nobody() -> int | None:
            return 0

        leaving._wanted_replicas = nobody
        async with asyncio.timeout(2):
            outcome = await waiting
        assert (outcome.intent, outcome.state) == ("end_all", "none")

    asyncio.run(story())


def test_liveness_counts_only_what_could_have_been_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_probes, "GONE_MAX_S", 0.3)
    monkeypatch.setattr(pod_probes, "LOOK_EVERY_S", 0.05)

    async def story() -> None:
        found = settings()
        hosts, link = OwnHosts(found), RayLink(found)
        leaving = leaving_of(found, Grid("none"), None)
        probes = Probes(found, hosts, link, leaving)
        watching = asyncio.create_task(probes.watch())
        await asyncio.sleep(0.6)
        assert probes.not_alive() == []
        assert probes.not_started() == []
        link.head_reachable = True
        await asyncio.sleep(0.6)
        assert len(probes.not_alive()) == 2, "the raylet, and the process of the host"
        assert probes.not_started()
        link.is_up = hosts.views[0].has_process = True
        await asyncio.sleep(0.2)
        assert probes.not_alive() == []
        assert probes.not_ready()
        watching.cancel()
        await asyncio.wait([watching])

    asyncio.run(story())
