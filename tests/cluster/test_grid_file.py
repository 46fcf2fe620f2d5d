"""What a data directory accepts and refuses, without starting anything."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from actorgrid.cluster import grid_file, ports, processes
from actorgrid.cluster.grid_file import DirectoryRefusedError, RunningFile, Wish
from actorgrid.cluster.processes import ProcessMark
from actorgrid.errors import SettingsError

NEW = Wish(nodes=3, partitions=16, port=0, app=("bank",), app_path=("/somewhere",))


def create(data: Path, wish: Wish = NEW) -> grid_file.GridFile:
    grid_file.make_directory(data)
    grid, is_new = grid_file.open_grid(data, wish, version="1.2.3")
    assert is_new
    grid_file.write_grid(data, grid)
    return grid


def test_a_new_grid_has_one_host_a_node_on_consecutive_ports(tmp_path):
    grid = create(tmp_path / "new" / "data")
    assert [(host.name, host.node, host.data_dir) for host in grid.hosts] == [(f"host-{i}", f"node-{i}", f"host-{i}") for i in (1, 2, 3)]
    first = grid.hosts[0].port
    assert [host.port for host in grid.hosts] == [first, first + 1, first + 2]
    assert grid.address == f"127.0.0.1:{first},127.0.0.1:{first + 1},127.0.0.1:{first + 2}"
    assert (grid.partition_count, grid.replica_set_size, grid.app, grid.app_path) == (16, 3, ("bank",), ("/somewhere",))
    assert not grid.begun


def test_two_new_grids_have_different_cluster_ids(tmp_path):
    assert create(tmp_path / "a").cluster_id != create(tmp_path / "b").cluster_id


def test_what_was_written_is_read_back_and_no_temporary_file_stays(tmp_path):
    grid = create(tmp_path)
    assert grid_file.read_grid(tmp_path) == grid
    assert os.listdir(tmp_path) == [grid_file.GRID_FILE]


def test_up_again_keeps_ids_ports_and_app_of_the_grid(tmp_path):
    grid = create(tmp_path)
    assert grid_file.open_grid(tmp_path, Wish(), version="1.2.3") == (grid, False)


def test_up_again_takes_the_new_app_and_the_new_port(tmp_path):
    grid = create(tmp_path)
    first = ports.find_free(3)
    again, _ = grid_file.open_grid(tmp_path, Wish(app=("shop",), app_path=("/else",), port=first), version="1.2.4")
    assert (again.app, again.app_path, again.actorgrid_version) == (("shop",), ("/else",), "1.2.4")
    assert [host.port for host in again.hosts] == [first, first + 1, first + 2]
    assert again.cluster_id == grid.cluster_id


def test_every_number_that_differs_from_the_grid_is_named_in_one_error(tmp_path):
    create(tmp_path)
    with pytest.raises(DirectoryRefusedError) as refused:
        grid_file.open_grid(tmp_path, Wish(nodes=4, partitions=32, replicas=1), version="1")
    assert len(refused.value.problems) == 3
    for expected in ("16 partitions, not 32", "3 nodes, not 4", "3 replicas of each partition, not 1", str(tmp_path)):
        assert expected in str(refused.value)


def test_numbers_out_of_range_and_a_missing_app_are_all_named(tmp_path):
    with pytest.raises(SettingsError) as refused:
        grid_file.open_grid(tmp_path, Wish(nodes=0, partitions=70_000, replicas=8), version="1")
    text = str(refused.value)
    assert len(refused.value.problems) == 4
    assert "nodes: 0" in text
    assert "partitions: 70000" in text
    assert "replicas: 8 is outside the allowed range 1..7" in text
    assert "--app" in text


def test_a_grid_with_fewer_nodes_than_replicas_says_so(tmp_path):
    assert create(tmp_path / "a").shortage == ""
    assert create(tmp_path / "b", Wish(nodes=1, port=0, app=("bank",))).shortage == "3 replicas wanted, grid has 1 node"
    assert create(tmp_path / "c", Wish(nodes=2, port=0, app=("bank",), replicas=2)).shortage == ""


def test_hosts_and_the_command_line_agree_on_how_many_replicas_there_may_be():
    from actorgrid.host.config import REPLICA_SET_SIZE_MAX

    assert grid_file.REPLICAS_MAX == REPLICA_SET_SIZE_MAX


def test_a_grid_file_from_before_replication_is_a_grid_that_was_not_begun(tmp_path):
    grid = create(tmp_path)
    content = (tmp_path / grid_file.GRID_FILE).read_text().replace('  "begun": false,\n', "")
    assert "begun" not in content
    (tmp_path / grid_file.GRID_FILE).write_text(content)
    assert grid_file.read_grid(tmp_path) == grid


def test_failures_of_hosts_are_counted_while_they_follow_each_other(tmp_path):
    assert grid_file.read_host_failures(tmp_path) == 0
    grid_file.write_host_failure(tmp_path, 0)
    assert grid_file.read_host_failures(tmp_path) == 1
    grid_file.write_host_failure(tmp_path, 1)
    assert grid_file.read_host_failures(tmp_path) == 2
    own = ProcessMark.of(os.getpid())
    assert own is not None
    for other in (
        msgspec.structs.replace(own, boot="before"),
        msgspec.structs.replace(own, start=str(float(own.start) - 1e6)),
        msgspec.structs.replace(own, start="?"),
    ):
        (tmp_path / grid_file.HOST_FAILURE_FILE).write_bytes(msgspec.json.encode(grid_file.HostFailure(mark=other, in_a_row=5)))
        assert grid_file.read_host_failures(tmp_path) == 0
    (tmp_path / grid_file.HOST_FAILURE_FILE).write_bytes(b"{")
    assert grid_file.read_host_failures(tmp_path) == 0
    grid_file.write_host_failure(tmp_path / "gone", 0)  # nothing is raised


def test_a_busy_port_is_refused_by_its_number_and_nothing_is_written(tmp_path):
    first = ports.find_free(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        with pytest.raises(SettingsError, match=rf"port {first + 1} .*host-2.* in use"):
            grid_file.open_grid(tmp_path, Wish(nodes=3, port=first, app=("bank",)), version="1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("first", "expected"), [(12_000, "Ray's workers"), (10_001, "Ray's workers"), (65_535, "1..65535")])
def test_ports_that_cannot_work_are_refused(tmp_path, first, expected):
    with pytest.raises(SettingsError, match=expected):
        grid_file.open_grid(tmp_path, Wish(nodes=3, port=first, app=("bank",)), version="1")


def test_free_ports_are_outside_the_ranges_others_pick_from():
    first = ports.find_free(5)
    assert first >= 20_000
    assert first + 4 < 32_768


def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DirectoryRefusedError, match=r"not empty and holds no grid.*thesis\.tex"):
        grid_file.make_directory(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "data").write_text("x")
    with pytest.raises(DirectoryRefusedError, match="is a file"):
        grid_file.make_directory(tmp_path / "data")


def test_what_a_refused_first_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / grid_file.LOCK_FILE).touch()
    (tmp_path / grid_file.KEEPER_DIRECTORY).mkdir()
    create(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 1}', b'{"format_version": "x"}', b"\xff\xfe"])
def test_a_damaged_grid_file_is_refused_and_not_taken_for_a_new_grid(tmp_path, content):
    (tmp_path / grid_file.GRID_FILE).write_bytes(content)
    with pytest.raises(DirectoryRefusedError, match="damaged"):
        grid_file.open_grid(tmp_path, NEW, version="1")


def test_a_grid_file_of_a_newer_release_is_refused(tmp_path):
    grid = msgspec.structs.replace(create(tmp_path), format_version=grid_file.FORMAT_VERSION + 1)
    grid_file.write_grid(tmp_path, grid)
    with pytest.raises(DirectoryRefusedError, match="newer actorgrid"):
        grid_file.read_grid(tmp_path)


def test_a_directory_in_use_is_refused_with_address_and_pid(tmp_path):
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    with grid_file.lock(tmp_path):
        with pytest.raises(DirectoryRefusedError, match="in use: a grid is being started"), grid_file.lock(tmp_path):
            pass
        running = RunningFile(keeper=mark, address="127.0.0.1:7400", ray_address="", ray_dir="", namespace="", started_at="")
        grid_file.write_running(tmp_path, running)
        with pytest.raises(DirectoryRefusedError, match=rf"127\.0\.0\.1:7400 \(pid {os.getpid()}\)"), grid_file.lock(tmp_path):
            pass
        assert grid_file.is_locked(tmp_path)
    assert not grid_file.is_locked(tmp_path)


def test_the_lock_lives_on_in_a_child_that_inherited_it_and_ends_with_it(tmp_path):
    with grid_file.lock(tmp_path) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,))
    assert grid_file.is_locked(tmp_path)
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    assert not grid_file.is_locked(tmp_path)


def test_an_unreadable_running_file_is_as_good_as_none(tmp_path):
    (tmp_path / grid_file.RUNNING_FILE).write_text("{")
    assert grid_file.read_running(tmp_path) is None


def test_a_mark_tells_a_process_from_another_with_its_pid():
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    assert mark.is_alive()
    assert not msgspec.structs.replace(mark, start="1").is_alive()
    assert not msgspec.structs.replace(mark, boot="before").is_alive()


def test_a_process_whose_first_thread_has_ended_is_alive_while_another_runs():
    # So looks a process that is just being ended: it still holds its locks.
    script = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).pthread_exit(None)"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 20
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ProcessMark.of(process.pid) is not None
        process.kill()
        while ProcessMark.of(process.pid) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_ending_a_session_ends_its_orphans_and_nothing_else():
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); sys.stdin.read()"
    bystander = subprocess.Popen(["sleep", "60"])
    leader = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert leader.stdout is not None
        assert leader.stdin is not None
        orphan = ProcessMark.of(int(leader.stdout.readline()))
        mark = ProcessMark.of(leader.pid)
        assert mark is not None
        assert orphan is not None
        recycled = msgspec.structs.replace(mark, start="1")
        assert processes.end_session(recycled) == []
        assert orphan.is_alive()
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        assert processes.end_session(mark) == []
        assert not orphan.is_alive()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        leader.stdin.close()
        leader.stdout.close()
