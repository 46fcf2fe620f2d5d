"""Pods of a real Ray on one machine: they start, leave, die and come back while callers call."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pod_harness import APPS, Machine, until  # type: ignore[import-not-found]
from steady_load import Load  # type: ignore[import-not-found]
from typer.testing import CliRunner

from actorgrid import grid
from actorgrid.cli.commands import app


@pytest.fixture(name="machine")
def _machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(request.param)
    try:
        yield machine
    finally:
        print(machine.logs())
        machine.close()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", [4], indirect=True)
def test_pods_start_leave_die_and_come_back_under_load(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    from ledger import Ledger  # type: ignore[import-not-found]

    zero, one, two, three = machine.pods
    times: dict[str, float] = {}

    def timed(name: str, story: Callable[[], object]) -> None:
        began = time.monotonic()
        story()
        times[name] = round(time.monotonic() - began, 1)

    def all_ready() -> None:
        until(
            lambda: all(pod.is_ready() for pod in (zero, one, two)),
            within_s=40,
            saying=f"not ready: {[pod.probe('readyz') for pod in (zero, one, two)]}",
        )

    def balanced() -> bool:
        rows = machine.nodes()
        return all(
            rows[pod.name]["state"] == "up" and rows[pod.name]["intent"] == "none" and rows[pod.name]["primaries"]
            for pod in (zero, one, two)
        )

    def pods_wait_for_the_head() -> None:
        for pod in (zero, one, two):
            pod.start()
        until(lambda: all(pod.probe("livez")[0] == 200 for pod in (zero, one, two)), within_s=15)
        time.sleep(1)
        assert [pod.probe("readyz")[0] for pod in (zero, one, two)] == [503] * 3
        assert [pod.probe("startupz")[0] for pod in (zero, one, two)] == [200] * 3

    def the_head_comes_and_the_grid_is_begun() -> None:
        machine.head.start()
        until(lambda: all("host of this pod answers" in pod.log.read_text() for pod in (zero, one, two)), within_s=60)
        assert not zero.is_ready(), "the map is empty before the grid is begun"
        zero.ask("init")
        all_ready()

    def a_pod_leaves_as_kubernetes_has_it_and_comes_back() -> None:
        before = machine.nodes()[one.name]
        assert before["primaries"]
        outcome = one.leave()
        times["leave"] = outcome["waited_s"]
        assert (outcome["state"], outcome["intent"]) == ("done", "restart"), outcome
        assert one.probe("readyz")[0] == 503
        assert one.probe("livez")[0] == 200
        assert one.ask("status")["host"]["state"] == "leaving"
        assert one.leave()["state"] == "done", "a second one joins in"
        code, seconds = one.end()
        times["sigterm after leave"] = seconds
        assert code == 0
        one.start()
        timed("restart to ready", lambda: until(one.is_ready, within_s=40))
        until(balanced, within_s=20)

    def a_pod_is_ended_without_prestop() -> None:
        code, times["sigterm alone"] = two.end()
        assert code == 0
        assert '"state":"done"' in two.log.read_text()
        two.start()
        until(two.is_ready, within_s=40)
        until(balanced, within_s=20)

    def a_host_is_killed() -> None:
        before = zero.ask("status")["host"]
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: not zero.is_ready(), within_s=5)
        assert zero.probe("livez")[0] == 200
        until(zero.is_ready, within_s=20)
        after = zero.ask("status")["host"]
        assert after["pid"] != before["pid"]
        assert after["incarnation"] > before["incarnation"]

    def the_head_is_killed_and_a_pod_leaves_without_it() -> None:
        machine.head.kill()
        until(lambda: "ray's head cannot be reached" in zero.log.read_text().rpartition("host has started")[2], within_s=10)
        assert [pod.probe(path)[0] for pod in (zero, one, two) for path in ("readyz", "livez", "startupz")] == [200] * 9
        code, times["sigterm without head"] = one.end()
        assert code == 0
        assert one.log.read_text().count('"state":"done"') == 2
        one.start()
        until(lambda: one.probe("livez")[0] == 200, within_s=15)
        time.sleep(1)
        assert one.probe("readyz")[0] == 503
        machine.head.start()
        timed("head back to ready", lambda: until(one.is_ready, within_s=60))
        until(balanced, within_s=20)

    def a_raylet_is_killed() -> None:
        before = two.ask("status")["host"]["pid"]
        os.kill(two.child("raylet"), signal.SIGKILL)
        until(lambda: not two.is_ready(), within_s=5)
        until(two.is_ready, within_s=40)
        assert two.ask("status")["host"]["pid"] != before
        assert two.probe("livez")[0] == 200

    def the_control_store_dies_alone() -> None:
        os.kill(machine.head.child("gcs_server"), signal.SIGKILL)
        until(lambda: "ray's control store died, it is started again" in machine.head.log.read_text(), within_s=10)
        time.sleep(2)
        assert machine.head.process.poll() is None
        assert [pod.probe(path)[0] for pod in (zero, one, two) for path in ("readyz", "livez")] == [200] * 6

    def a_pod_is_added_and_removed() -> None:
        three.start()
        until(lambda: three.is_ready() and machine.nodes()[three.name]["replicas"], within_s=60)
        outcome = three.leave("--intent", "remove_node")
        times["remove"] = outcome["waited_s"]
        assert (outcome["state"], outcome["intent"]) == ("done", "remove_node"), outcome
        assert not machine.nodes()[three.name]["replicas"]
        assert three.end()[0] == 0
        until(lambda: three.name not in machine.nodes(), within_s=20)

    async def campaign() -> Load:
        async with grid.connect(machine.address) as client:
            load = Load(client, Ledger)
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(load.caller(number))
                for story in (
                    a_pod_leaves_as_kubernetes_has_it_and_comes_back,
                    a_pod_is_ended_without_prestop,
                    a_host_is_killed,
                    the_head_is_killed_and_a_pod_leaves_without_it,
                    a_raylet_is_killed,
                    the_control_store_dies_alone,
                    a_pod_is_added_and_removed,
                ):
                    before, load.slowest_s = sum(load.versions.values()), 0.0
                    await asyncio.to_thread(timed, story.__name__, story)
                    await asyncio.sleep(0.3)
                    assert sum(load.versions.values()) > before, f"no traffic: {story.__name__}"
                    times[f"{story.__name__}: slowest call"] = round(load.slowest_s, 2)
                load.stopping = True
            return load

    timed("wait for head", pods_wait_for_the_head)
    timed("head to ready", the_head_comes_and_the_grid_is_begun)
    load = asyncio.run(campaign())
    print(f"calls={sum(load.versions.values())} {times}")
    assert sum(load.versions.values()) > 500, "too little traffic to mean anything"
    began = time.monotonic()
    zero.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    zero.process.send_signal(signal.SIGTERM)
    assert zero.process.wait(10) == 0, "a second signal ends it at once"
    assert time.monotonic() - began < 8


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("machine", [1], indirect=True)
def test_a_pod_of_two_hosts_has_certificates_and_comes_back_after_its_container_was_killed(machine: Machine, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["certs", "make", str(tmp_path), "--cluster", "pods"]).exit_code == 0
    [pod] = machine.pods
    pod.secure(tmp_path / "host")
    names = [f"{pod.name}.1", f"{pod.name}.2"]
    first = ",".join(f"{name}@localhost:{pod.port + number}" for number, name in enumerate(names))
    pod.environment |= {"ACTORGRID_HOSTS_PER_POD": "2", "ACTORGRID_FIRST_HOSTS": first, "ACTORGRID_REPLICAS": "1"}

    def all_answer() -> bool:
        return all(f"host of this pod answers: host={name}" in pod.log.read_text() for name in names)

    machine.head.start()
    pod.start()
    until(all_answer, within_s=40)
    pod.ask("init")
    until(pod.is_ready, within_s=10)
    assert [row["hosts"] for row in pod.ask("nodes")["nodes"]] == [names]
    pids = pod.ask("status")["host"]["pid"]
    pod.kill()
    pod.start()
    until(pod.is_ready, within_s=40)
    assert pod.ask("status")["host"]["pid"] != pids
    assert pod.process is not None
    pod.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert pod.end(10)[0] == 0, "a second signal ends it at once, though one replica each is nothing to leave with"
