"""A grid on a real Ray: hosts are processes, a kill is a SIGKILL. Also the contract test of what `ray_api` uses of Ray."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actorgrid import grid
from actorgrid.cluster import grid_file, local, processes
from actorgrid.cluster.grid_file import DirectoryRefusedError, Wish
from actorgrid.cluster.local import LocalGrid
from actorgrid.errors import ActorError, SettingsError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

APP = """
import os
from actorgrid import grid


def crunch(n: int) -> list[int]:
    return [sum(range(n)), os.getpid()]


def fail(why: str) -> int:
    raise ValueError(why)


def die() -> int:
    os._exit(9)


@grid.actor
class Account:
    balance: int = 0

    async def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @grid.read
    async def read_balance(self) -> int:
        return self.balance

    async def crunch(self, n: int) -> list[int]:
        return await grid.offload(crunch, n)

    async def fail(self, why: str) -> int:
        return await grid.offload(fail, why)

    async def die(self) -> int:
        return await grid.offload(die)

    async def where(self) -> int:
        return os.getpid()
"""
ACCOUNTS = [f"account-{i}" for i in range(30)]


@pytest.fixture(scope="module")
def app_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("app")
    (path / "bank_of_cluster_tests.py").write_text(APP)
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory, app_path):
    data = tmp_path_factory.mktemp("grid") / "data"
    with LocalGrid(nodes=3, app=["bank_of_cluster_tests"], app_path=[app_path], data=data, partitions=12) as running_grid:
        yield running_grid


def cli(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "actorgrid", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if not key.startswith("ACTORGRID_")},
    )


def call_all(running, method: str, *args: object) -> dict[str, object]:
    async def calls():
        async with grid.connect(running.address) as client:
            return {name: await client.call_by_name("Account", name, method, args) for name in ACCOUNTS}

    return asyncio.run(calls())


def wait_for(condition, timeout_s: float = 20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def process_named(running, name: str) -> psutil.Process | None:
    return next((process for process in processes.session_members(running.started.keeper) if process.name() == name), None)


def test_an_app_that_does_not_load_is_reported_by_up_and_leaves_nothing(tmp_path):
    result = cli("up", "--app", "no_such_app", "--nodes", "2", "--port", "0", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "no_such_app" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    data = tmp_path / ".actorgrid"
    assert sorted(os.listdir(data)) == [grid_file.LOCK_FILE, grid_file.KEEPER_DIRECTORY], "other numbers may be chosen next time"
    assert not grid_file.is_locked(data)
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(data) in " ".join(process.info["cmdline"] or [])]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_up_leaves_nothing_running(tmp_path, app_path):
    data = tmp_path / "data"
    command = [sys.executable, "-m", "actorgrid", "up", "--app", "bank_of_cluster_tests", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, cwd=app_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: grid_file.read_running(data) is not None)
    started = grid_file.read_running(data)
    assert started is not None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert processes.session_members(started.keeper) == []
    assert not Path(started.ray_dir).exists()
    assert not grid_file.is_locked(data)
    assert grid_file.read_grid(data) is None, "no host was started: other numbers may be chosen next time"


def test_hosts_are_processes_with_their_own_port_and_data(running):
    pids = running.host_pids()
    assert sorted(pids) == ["host-1", "host-2", "host-3"]
    assert len(set(pids.values())) == 3
    assert len({host.port for host in running.hosts}) == 3
    for host in running.hosts:
        assert (running.data / host.data_dir / grid_file.HOST_LOG_FILE).read_text().count("host serves") >= 1


def test_every_host_serves_its_share(running):
    by_host = {name: set() for name in running.host_pids()}
    names = {pid: name for name, pid in running.host_pids().items()}
    for account, pid in call_all(running, "where").items():
        by_host[names[pid]].add(account)
    assert all(by_host.values())


def test_a_call_from_the_command_line_changes_state(running):
    address = ("--address", f"{running.hosts[1].address}:{running.hosts[1].port}")
    results = [cli("call", "Account", "from-the-shell", "deposit", amount, *address) for amount in (100, -30)]
    assert [(result.returncode, result.stdout) for result in results] == [(0, "100\n"), (0, "70\n")], results
    read = cli("call", "Account", "from-the-shell", "read_balance", "--data", running.data)
    assert (read.returncode, read.stdout) == (0, "70\n")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("Account", "a", "deposit", "much"), "expected int"),
        (("Account", "a", "deposit"), "amount"),
        (("Account", "a", "withdraw", "1"), "withdraw"),
        (("Acount", "a", "deposit", "1"), "Acount"),
    ],
)
def test_a_wrong_call_from_the_command_line_exits_2(running, args, expected):
    result = cli("call", *args, "--data", running.data)
    assert (result.returncode, result.stdout) == (2, "")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_status_shows_every_host_and_partition(running):
    result = cli("status", "--json", "--data", running.data)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["cluster"]["id"] == running.started.grid.cluster_id
    assert report["cluster"]["partitions"] == 12
    assert {host["name"]: host["pid"] for host in report["hosts"]} == running.host_pids()
    assert [(partition["id"], partition["health"]) for partition in report["partitions"]] == [(i, "ok") for i in range(1, 13)]
    assert {partition["primary"] for partition in report["partitions"]} == {"host-1", "host-2", "host-3"}
    assert "host-3" in cli("status", "--data", running.data).stdout


def test_offloaded_work_runs_in_another_process_and_its_errors_come_back(running):
    async def calls():
        async with grid.connect(running.address) as client:
            total, pid = await client.call_by_name("Account", "cruncher", "crunch", [1000])
            with pytest.raises(ActorError, match="cannot") as failed:
                await client.call_by_name("Account", "cruncher", "fail", ["cannot"])
            with pytest.raises(ActorError) as died:
                await client.call_by_name("Account", "cruncher", "die", [])
            return total, pid, failed.value, died.value

    total, pid, failed, died = asyncio.run(calls())
    assert total == sum(range(1000))
    assert pid not in running.host_pids().values()
    assert "ValueError" in str(failed)
    assert "did not finish" in str(died)


def test_a_killed_host_returns_with_its_data_and_the_others_stay(running):
    before = call_all(running, "deposit", 5)
    pids = running.host_pids()
    for _ in range(2):
        old = running.kill_host("host-2")
        assert call_all(running, "read_balance") == before, "callers see no error, and no change is lost"
        wait_for(lambda old=old: running.host_pids().get("host-2", old) != old)
    now = running.host_pids()
    assert now["host-2"] != pids["host-2"]
    assert (now["host-1"], now["host-3"]) == (pids["host-1"], pids["host-3"])
    assert call_all(running, "deposit", 1) == {name: balance + 1 for name, balance in before.items()}


def test_hosts_serve_on_while_the_control_store_is_away_and_are_supervised_again_after(running):
    before = call_all(running, "deposit", 1)
    pids = running.host_pids()
    control_store = process_named(running, "gcs_server")
    assert control_store is not None
    control_store.kill()
    assert call_all(running, "read_balance") == before
    wait_for(lambda: (found := process_named(running, "gcs_server")) is not None and found.pid != control_store.pid)
    assert running.host_pids() == pids
    old = running.kill_host("host-3")
    wait_for(lambda: running.host_pids().get("host-3", old) != old)
    running.wait_until_serving("host-3")
    assert call_all(running, "read_balance") == before


def test_up_on_a_directory_in_use_is_refused_with_address_and_pid(running, app_path):
    result = cli("up", "--app", "bank_of_cluster_tests", "--data", running.data, cwd=app_path)
    assert (result.returncode, result.stdout) == (4, "")
    assert running.address in result.stderr
    assert f"pid {running.started.keeper.pid}" in result.stderr


def test_ray_listens_on_loopback_only_and_not_where_another_ray_does(running):
    listening = [
        connection.laddr
        for process in [psutil.Process(running.started.keeper.pid), *processes.session_members(running.started.keeper)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert not [address for address in listening if 10_002 <= address.port <= 19_999]


def test_after_down_no_process_is_left_and_up_again_has_the_data(running):
    before = call_all(running, "deposit", 1)
    keeper, address, ray_dir = running.started.keeper, running.address, Path(grid_file.read_running(running.data).ray_dir)
    members = processes.session_members(keeper)
    assert len(members) >= 6, "keeper, control store, raylet and three hosts: else this test shows nothing"
    result = cli("down", "--data", running.data)
    assert result.returncode == 0, result.stderr
    assert processes.session_members(keeper) == []
    assert not [process for process in members if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not ray_dir.exists()
    assert cli("call", "Account", "a", "read_balance", "--data", running.data).returncode == 3
    for host in running.hosts:
        assert "host stopped" in (running.data / host.data_dir / grid_file.HOST_LOG_FILE).read_text()

    with pytest.raises(DirectoryRefusedError, match="12 partitions, not 64"):
        local.up(running.data, Wish(partitions=64))

    running.start()
    assert running.address == address
    assert call_all(running, "read_balance") == before


def test_after_the_keeper_was_killed_nothing_serves_twice_and_up_works_on_the_same_data(running):
    before = call_all(running, "deposit", 1)
    keeper = running.started.keeper
    os.kill(keeper.pid, signal.SIGKILL)
    wait_for(lambda: not running.host_pids())
    running.start()
    assert running.started.keeper != keeper
    assert processes.session_members(keeper) == []
    assert call_all(running, "read_balance") == before
    with pytest.raises(SettingsError, match="in use"):
        local.up(running.data, Wish())
