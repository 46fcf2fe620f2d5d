"""The kernel's word on processes of this machine: proof or nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from actorgrid.host.supervision import PID_MAX, LocalSupervisor, ProcessName

if sys.platform != "linux":
    pytest.skip("SKIPPED: the kernel's word on other processes is asked for on Linux only", allow_module_level=True)

DEADLINE_S = 20.0
SLEEPER = """
import sys, time
from actorgrid.host.supervision import LocalSupervisor
print(LocalSupervisor().process_id, flush=True)
time.sleep(600)
"""
# Ends its first thread while a second one lives on: the process's state is shown as Z then.
HEADLESS = """
import ctypes, threading, time
from actorgrid.host.supervision import LocalSupervisor
print(LocalSupervisor().process_id, flush=True)
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture(name="start")
def _start() -> Iterator[Start]:
    """Starts a process that tells its process id, and ends it after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str = SLEEPER, *before: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen([*before, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_dead(process_id: str, supervisor: LocalSupervisor | None = None) -> bool:
    return asyncio.run((supervisor or LocalSupervisor()).is_dead("host-1", process_id))


def wait_until_dead(process_id: str) -> float:
    supervisor, began = LocalSupervisor(), time.monotonic()
    while not is_dead(process_id, supervisor):
        assert time.monotonic() - began < DEADLINE_S, f"{process_id} is not known to be dead after {DEADLINE_S} s"
        time.sleep(0.001)
    return time.monotonic() - began


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_live_process_is_not_dead_and_neither_is_the_asking_one(start: Start) -> None:
    _, process_id = start()
    supervisor = LocalSupervisor()
    assert not any(is_dead(process_id, supervisor) for _ in range(100))
    assert not is_dead(supervisor.process_id, supervisor)


def test_a_killed_process_is_dead_as_a_zombie_already_and_stays_dead_when_reaped(start: Start) -> None:
    process, process_id = start()
    process.kill()
    latency_s = wait_until_dead(process_id)
    print(f"SIGKILL to proof by the kernel: {latency_s * 1e3:.1f} ms")
    assert state_of(process.pid) == "Z"
    process.wait()
    assert is_dead(process_id)


def test_a_stopped_process_is_not_dead(start: Start) -> None:
    process, process_id = start()
    process.send_signal(signal.SIGSTOP)
    while state_of(process.pid) != "T":
        time.sleep(0.001)
    assert not any(is_dead(process_id) for _ in range(20))


def test_a_process_whose_first_thread_ended_is_not_dead_while_another_runs(start: Start) -> None:
    process, process_id = start(HEADLESS)
    began = time.monotonic()
    while state_of(process.pid) != "Z":
        assert time.monotonic() - began < DEADLINE_S
        time.sleep(0.001)
    assert not any(is_dead(process_id) for _ in range(20))
    process.kill()
    wait_until_dead(process_id)


def test_a_process_is_dead_when_its_number_belongs_to_a_later_one(start: Start) -> None:
    _, process_id = start()
    name = ProcessName.parse(process_id)
    assert name is not None
    assert str(name) == process_id
    assert is_dead(str(dataclasses.replace(name, start=name.start - 1)))


def test_a_process_of_another_user_that_runs_is_not_dead() -> None:
    own = ProcessName.parse(LocalSupervisor().process_id)
    assert own is not None
    with open("/proc/1/stat") as file:
        start = int(file.read().rpartition(")")[2].split()[19])
    assert not is_dead(str(dataclasses.replace(own, pid=1, start=start)))


@pytest.mark.parametrize("refused", ["kill", "pidfd_open"])
def test_a_kernel_that_forbids_to_look_proves_nothing(start: Start, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    _, live = start()
    process, killed = start()
    process.kill()
    process.wait()
    supervisor = LocalSupervisor()
    monkeypatch.setattr(os, refused, forbidden)
    assert not is_dead(live, supervisor)
    monkeypatch.setattr("actorgrid.host.supervision._start_and_state", forbidden)  # as with hidepid
    assert not is_dead(live, supervisor)
    assert is_dead(killed, supervisor)  # either of the two is enough
    monkeypatch.setattr(os, "kill", forbidden)
    monkeypatch.setattr(os, "pidfd_open", forbidden)
    assert not is_dead(killed, supervisor)


def test_of_a_process_on_another_machine_nothing_is_known(start: Start) -> None:
    process, process_id = start()
    process.kill()
    wait_until_dead(process_id)
    name = ProcessName.parse(process_id)
    assert name is not None
    assert not is_dead(str(dataclasses.replace(name, machine="0" * 32)))
    assert not is_dead(str(dataclasses.replace(name, machine="-")))
    assert not is_dead(process_id, LocalSupervisor(realm="another node"))


def test_a_process_without_a_usable_proc_knows_nothing_and_nothing_is_known_of_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process, process_id = start()
    process.kill()
    wait_until_dead(process_id)
    name = ProcessName.parse(process_id)
    assert name is not None
    monkeypatch.setattr("actorgrid.host.supervision.Path", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    blind = LocalSupervisor()
    assert ".-." in blind.process_id
    assert blind.process_id != LocalSupervisor().process_id
    assert not is_dead(process_id, blind)
    assert not is_dead(str(dataclasses.replace(name, machine="-")), blind)


@pytest.mark.parametrize("options", [["--mount-proc"], []], ids=["with its own proc", "with the outer proc"])
def test_a_pid_namespace_is_a_machine_of_its_own(start: Start, options: list[str]) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0:
        pytest.skip("SKIPPED: no right to make a pid namespace")
    _, process_id = start(SLEEPER, "unshare", "--pid", "--fork", "--kill-child", *options)
    name, own = ProcessName.parse(process_id), ProcessName.parse(LocalSupervisor().process_id)
    assert name is not None
    assert own is not None
    assert name.machine != own.machine
    assert (name.machine == "-") == (options == [])
    # In this namespace its number is that of another process, or of none: neither is proof.
    assert not is_dead(str(dataclasses.replace(name, start=1)))
    assert not is_dead(str(dataclasses.replace(name, pid=PID_MAX - 1)))


@pytest.mark.parametrize(
    "process_id",
    ["", "1", "0.0.-.0000000000000000", "x" * 10_000, "-1.1.-.0000000000000000", "9999999.1.-.0000000000000000", "１.1.-.0000000000000000"],
)
def test_a_string_that_is_no_process_id_is_not_dead(process_id: str) -> None:
    assert ProcessName.parse(process_id) is None
    assert not is_dead(process_id)


def test_a_closed_supervisor_knows_nothing(start: Start) -> None:
    process, process_id = start()
    process.kill()
    wait_until_dead(process_id)
    supervisor = LocalSupervisor()
    assert is_dead(process_id, supervisor)
    supervisor.close()
    assert not is_dead(process_id, supervisor)


def test_two_supervisors_of_one_process_name_it_differently_and_neither_is_dead() -> None:
    first, second = LocalSupervisor(), LocalSupervisor()
    assert first.process_id != second.process_id
    assert not is_dead(first.process_id, second)


def test_no_descriptor_is_left_open(start: Start) -> None:
    process, killed = start()
    _, live = start()
    process.kill()
    wait_until_dead(killed)
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        is_dead(killed), is_dead(live)
    assert len(os.listdir("/proc/self/fd")) == open_before
