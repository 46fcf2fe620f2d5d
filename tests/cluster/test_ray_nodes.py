"""A grid on the nodes of a Ray cluster that somebody else runs: what Ray says of its nodes, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steady_load import Load  # type: ignore[import-not-found]
from typer.testing import CliRunner

from actorgrid import grid
from actorgrid.ambient import new_client_id
from actorgrid.cli.commands import app
from actorgrid.client import admin
from actorgrid.cluster import grid_file
from actorgrid.cluster.local import LocalGrid, StartFailedError
from actorgrid.cluster.ray_notices import (
    Asked,
    Drain,
    ForgetDrain,
    Memory,
    NodeHost,
    RayNode,
    RemoveHost,
    Standing,
    StartHost,
    StopHost,
    Undrain,
    decide,
    doubles,
    lost,
    needs_standing,
)
from actorgrid.errors import ActorGridError, SettingsError
from actorgrid.settings import WireSettings

APPS = Path(__file__).parent.parent / "apps"


# -- what is decided


def node(name: str, **more: Any) -> RayNode:
    return RayNode(**{"id": f"id-{name}", "name": name, "address": "127.0.0.1"} | more)


def host(name: str, ray_id: str | None = None) -> NodeHost:
    return NodeHost(name=name, node=name, ray_id=f"id-{name}" if ray_id is None else ray_id)


A, B = node("a"), node("b")
DRAINED = node("a", drain_deadline_ms=5_000)
ASKED = Memory(asked={"a": Asked(ray_id="id-a", deadline_ms=5_000)})
NOTHING = {"a": Standing()}
REMOVED = {"a": Standing(intent="remove_node")}
EMPTY = {"a": Standing(intent="remove_node", is_empty=True)}


def test_every_alive_node_gets_a_host_and_then_nothing_is_to_be_done() -> None:
    assert decide([B, A], [], None, Memory()) == (StartHost(A), StartHost(B))
    assert decide([B, A], [host("a")], None, Memory()) == (StartHost(B),)
    assert decide([B, A], [host("a"), host("b")], None, Memory()) == ()


def test_a_node_that_is_dead_drains_or_is_labelled_so_gets_no_host() -> None:
    for other in (node("b", is_alive=False), node("b", drain_deadline_ms=0), node("b", wants_host=False)):
        assert decide([A, other], [host("a")], {}, Memory()) == ()


def test_a_dead_nodes_host_is_lost_and_started_only_where_its_name_comes_back() -> None:
    dead = node("a", is_alive=False)
    assert lost([dead, B], [host("a"), host("b")]) == [host("a")]
    assert lost([B], [host("a"), host("b")]) == []
    assert decide([dead, B], [host("a"), host("b")], None, Memory()) == ()
    back = node("a", id="id-a2")
    assert decide([dead, back, B], [host("a"), host("b")], None, Memory()) == (StartHost(back),)
    assert decide([back, B], [host("a", "id-a2"), host("b")], None, Memory()) == ()


def test_a_drain_becomes_an_intent_once_and_again_when_its_deadline_changes() -> None:
    assert needs_standing([DRAINED], [host("a")], Memory())
    assert not needs_standing([A], [host("a")], Memory())
    assert decide([DRAINED], [host("a")], NOTHING, Memory()) == (Drain("a", Asked(ray_id="id-a", deadline_ms=5_000)),)
    assert decide([DRAINED], [host("a")], REMOVED, ASKED) == ()
    sooner = node("a", drain_deadline_ms=4_000)
    assert decide([sooner], [host("a")], REMOVED, ASKED) == (Drain("a", Asked(ray_id="id-a", deadline_ms=4_000)),)


def test_a_weaker_intent_of_an_operator_is_raised_and_an_equal_one_stays_theirs() -> None:
    assert decide([DRAINED], [host("a")], {"a": Standing(intent="restart")}, Memory())
    assert decide([DRAINED], [host("a")], REMOVED, Memory()) == ()
    assert decide([A], [host("a")], REMOVED, Memory()) == ()


def test_an_operator_who_takes_the_intent_back_has_the_last_word() -> None:
    assert decide([DRAINED], [host("a")], NOTHING, ASKED) == ()
    assert decide([node("a", drain_deadline_ms=4_000)], [host("a")], NOTHING, ASKED) == ()


def test_nothing_is_asked_while_the_placement_manager_does_not_answer() -> None:
    assert decide([DRAINED, B], [host("a")], None, Memory()) == (StartHost(B),)
    assert decide([A], [host("a")], None, ASKED) == ()


def test_a_drain_that_ray_takes_back_is_taken_back_if_it_was_ours() -> None:
    assert decide([A], [host("a")], REMOVED, ASKED) == (Undrain("a"),)
    assert decide([A], [host("a")], {"a": Standing(intent="pause")}, ASKED) == (ForgetDrain("a"),)
    back = node("a", id="id-a2")
    assert decide([back], [host("a")], REMOVED, ASKED) == (Undrain("a"), StartHost(back))


def test_the_host_of_a_node_that_we_drained_stops_once_it_is_empty() -> None:
    assert decide([DRAINED], [host("a")], EMPTY, ASKED) == (StopHost("a"),)
    assert decide([DRAINED], [host("a")], EMPTY, Memory()) == ()
    assert decide([DRAINED], [], {}, ASKED) == ()


def test_what_was_asked_for_is_forgotten_with_its_node() -> None:
    dead = node("a", is_alive=False)
    assert decide([dead], [host("a")], REMOVED, ASKED) == ()
    assert decide([dead], [host("a", "")], {}, ASKED) == (RemoveHost("a"), ForgetDrain("a"))
    assert decide([dead], [], {}, ASKED) == (ForgetDrain("a"),)
    assert decide([], [], {}, ASKED) == (ForgetDrain("a"),)


def test_a_host_that_was_stopped_stays_so_until_its_node_is_another() -> None:
    stopped = Memory(dismissed={"a": "id-a"})
    assert decide([A], [host("a", "")], None, stopped) == ()
    back = node("a", id="id-a2")
    assert decide([back], [host("a", "")], None, stopped) == (StartHost(back),)


def test_a_host_leaves_the_grid_when_its_node_is_gone_and_placement_has_forgotten_it() -> None:
    assert needs_standing([B], [host("a", ""), host("b")], Memory())
    assert decide([B], [host("a", ""), host("b")], NOTHING, Memory()) == ()
    assert decide([B], [host("a", ""), host("b")], None, Memory()) == ()
    assert decide([B], [host("a", ""), host("b")], {}, Memory()) == (RemoveHost("a"),)
    assert decide([B], [host("a"), host("b")], {}, Memory()) == (), "Ray has not said that it is dead"


def test_of_two_nodes_of_one_name_one_gets_a_host_and_keeps_it() -> None:
    twin = node("a", id="id-z")
    for seen in ([A, twin], [twin, A]):
        assert decide(seen, [], None, Memory()) == (StartHost(A),)
        assert doubles(seen, []) == [twin]
        assert decide(seen, [host("a", "id-z")], None, Memory()) == ()
        assert doubles(seen, [host("a", "id-z")]) == [A]
    assert doubles([A, node("a", id="id-z", is_alive=False)], []) == []


# -- what `up` refuses


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:0"])
def test_a_ray_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected HOST:PORT"):
        grid_file.open_grid(tmp_path, grid_file.Wish(app=("ledger",), ray_address=address), version="1")


def test_a_ray_off_this_machine_is_refused_before_anything_is_sent_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="hosts there need credentials"):
        grid_file.open_grid(tmp_path, grid_file.Wish(app=("ledger",), ray_address="10.1.2.3:6379"), version="1")


def test_a_grid_keeps_its_ray(tmp_path: Path) -> None:
    new, is_new = grid_file.open_grid(tmp_path, grid_file.Wish(app=("ledger",), ray_address="127.0.0.1:6379"), version="1")
    assert is_new
    assert new.hosts == ()
    grid_file.write_grid(tmp_path, new)
    again, _ = grid_file.open_grid(tmp_path, grid_file.Wish(nodes=5), version="1")
    assert again.ray_address == "127.0.0.1:6379"
    other = tmp_path / "other"
    other.mkdir()
    local, _ = grid_file.open_grid(other, grid_file.Wish(app=("ledger",), port=0), version="1")
    grid_file.write_grid(other, local)
    with pytest.raises(grid_file.DirectoryRefusedError, match="a Ray of its own"):
        grid_file.open_grid(other, grid_file.Wish(ray_address="127.0.0.1:6379"), version="1")


# -- a real cluster


class RayCluster:
    """Several raylets on this machine; see `ray_cluster_process`."""

    def __init__(self, directory: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).parent / "ray_cluster_process.py"), directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.address = str(self._answer())

    def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 40)
        line = self._process.stdout.readline() if ready else ""
        assert line, "the Ray cluster does not answer"
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel ends Ray's servers with it
            self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(name="cluster")
def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    directory = tempfile.mkdtemp(prefix="ag-", dir="/tmp")  # short: the paths of Ray's sockets
    cluster = RayCluster(directory)
    try:
        for name in ("one", "two"):
            cluster.ask("add", name)
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(directory, ignore_errors=True)


def nodes(data: Path) -> dict[str, dict[str, Any]]:
    """What the placement manager says of each node, asked of any host that answers."""
    found = grid_file.read_grid(data)
    assert found is not None
    deadline = time.monotonic() + 10  # while the manager moves, nobody can answer for a moment
    while True:
        for each in found.hosts:
            with contextlib.suppress(ActorGridError):
                answer = asyncio.run(
                    admin.ask(
                        each.address,
                        each.port,
                        "nodes",
                        {},
                        client_id=new_client_id(),
                        cluster_id=found.cluster_id,
                        wire=WireSettings(),
                        timeout_s=2,
                    )
                )
                return {row["name"]: row for row in answer["nodes"]}
        assert time.monotonic() < deadline, "no host could say what the nodes are"
        time.sleep(0.1)


def until(what: Callable[[], object], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_hosts_follow_the_nodes_of_a_ray_cluster(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(APPS))
    monkeypatch.setenv("ACTORGRID_PLACEMENT_QUIET_S", "1")
    from ledger import Ledger  # type: ignore[import-not-found]

    data = tmp_path / "grid"
    times: dict[str, float] = {}
    local = LocalGrid(nodes=3, app=["ledger"], app_path=[str(APPS)], data=data, partitions=6, ray_address=cluster.address)

    def timed(name: str, story: Callable[[], None]) -> None:
        began = time.monotonic()
        story()
        times[name] = round(time.monotonic() - began, 1)

    def keeper_log() -> str:
        return (data / "keeper" / "keeper.log").read_text()

    def a_node_is_added() -> None:
        cluster.ask("add", "three")
        until(lambda: nodes(data).get("three", {}).get("replicas"), within_s=40)

    def a_node_is_drained() -> None:
        assert nodes(data)["one"]["replicas"]
        assert cluster.ask("drain", "one", 60)[0]
        until(lambda: nodes(data).get("one", {"intent": "remove_node"})["intent"] == "remove_node", within_s=10)
        until(lambda: "one" not in nodes(data), within_s=40)
        until(lambda: "one" not in cluster.ask("nodes"), within_s=10)  # Ray's drain ends with the host
        found = re.search(r"ray drains a node, its replicas go: node=one .* deadline_s=(\d+)", keeper_log())
        assert found is not None
        assert 50 <= int(found[1]) <= 60

    def a_keeper_is_killed_and_the_next_one_takes_over() -> None:
        before = local.host_pids()
        keeper = local.started.keeper
        os.kill(keeper.pid, signal.SIGKILL)
        until(lambda: not keeper.is_alive(), within_s=5)
        with pytest.raises(StartFailedError, match="`actorgrid up` takes them over"):
            local.stop()
        local.start()
        after = local.host_pids()
        assert set(before) == {"head", "two"}
        assert before == {name: after[name] for name in before}

    def the_control_store_is_away() -> None:
        cluster.ask("control", "stop")
        until(lambda: "ray's control store does not answer, hosts serve on" in keeper_log(), within_s=10)
        time.sleep(3)
        cluster.ask("control", "start")
        until(lambda: "over: ray's control store" in keeper_log(), within_s=20)
        assert keeper_log().count("ray's control store does not answer") == 2, "said once, and that it is over"

    def a_raylet_is_killed() -> None:
        assert nodes(data)["two"]["replicas"]
        cluster.ask("kill", "two")
        until(lambda: "two" not in cluster.ask("nodes"), within_s=15)
        until(lambda: "ray node is dead, its host is not started elsewhere: host=two" in keeper_log(), within_s=10)
        until(lambda: nodes(data).get("two", {}).get("state") == "down", within_s=10)

    def both_nodes_come_back() -> None:
        cluster.ask("add", "two")  # with another id, and the data of its host
        cluster.ask("add", "one")  # a stranger to the grid by now, with old data
        until(lambda: (found := nodes(data)) and all(found.get(each, {}).get("state") == "up" for each in ("one", "two")), within_s=20)
        until(lambda: nodes(data).get("one", {}).get("replicas"), within_s=40)

    def a_host_is_stopped_and_started_by_an_operator() -> None:
        assert CliRunner().invoke(app, ["node", "stop", "three", "--data", str(data)]).exit_code == 0
        time.sleep(2.5)  # two looks of the keeper, which leaves it so
        assert nodes(data)["three"]["state"] == "down"
        assert CliRunner().invoke(app, ["node", "add", "three", "--data", str(data)]).exit_code == 0
        until(lambda: nodes(data).get("three", {}).get("state") == "up", within_s=15)

    async def campaign() -> Load:
        async with grid.connect(local.address) as client:
            load = Load(client, Ledger)
            async with asyncio.TaskGroup() as group:
                for number in range(3):
                    group.create_task(load.caller(number))
                for story in (
                    a_node_is_added,
                    a_node_is_drained,
                    a_keeper_is_killed_and_the_next_one_takes_over,
                    the_control_store_is_away,
                    a_raylet_is_killed,
                    both_nodes_come_back,
                    a_host_is_stopped_and_started_by_an_operator,
                ):
                    before = sum(load.versions.values())
                    await asyncio.to_thread(timed, story.__name__, story)
                    await asyncio.sleep(0.5)
                    assert sum(load.versions.values()) > before, f"no traffic: {story.__name__}"
                load.stopping = True
            return load

    timed("start", local.start)
    try:
        assert [(each.name, each.node, each.data_dir) for each in local.hosts] == [
            (name, name, f"host-of-{name}") for name in ("head", "one", "two")
        ]
        load = asyncio.run(campaign())
        kept = grid_file.read_grid(data)
        assert kept is not None
        assert [each.name for each in kept.hosts] == ["head", "two", "three", "one"]
        again = CliRunner().invoke(app, ["node", "add", "four", "--data", str(data)])
        assert "by themselves" in again.output
        pids = local.host_pids()
    finally:
        timed("stop", local.stop)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert cluster.ask("nodes") == ["head", "one", "three", "two"], "the end of the grid is none of Ray's"
    print(f"calls={sum(load.versions.values())} slowest_s={load.slowest_s:.2f} {times}")
    assert sum(load.versions.values()) > 500, "too little traffic to mean anything"
