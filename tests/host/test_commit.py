"""Nothing is told before it is durable (I2, I8), everything is bounded (I16), and a failed disk ends the duty (I12)."""

import asyncio
import contextlib
import threading

import pytest
from host_actors import SEEN, Box, Hooked, gate
from host_harness import QUICK, expect, free_port, one_grid, raw_client, run, serving, soon, until

from actorgrid import grid
from actorgrid.errors import (
    ActorError,
    DiskFullError,
    HostUnavailableError,
    OutcomeUnknownError,
    OverloadedError,
    StorageError,
    WriteInDoubtError,
)
from actorgrid.host.residents import Residents
from actorgrid.settings import HostSettings


class SlowSync:
    """Holds every sync of a store back until `release`."""

    def __init__(self, store):
        self.held = threading.Event()
        self.waiting = 0
        self.original = store.sync_now
        store.sync_now = self.sync_now
        store._db._sync_ns = 10**10  # a disk that is known to be slow is waited for in a thread

    def sync_now(self):
        self.waiting += 1
        self.held.wait(10)
        self.original()

    def release(self):
        self.held.set()


def test_a_change_is_answered_only_after_its_sync_and_a_read_that_saw_it_too(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert (await client.call(1, "look"))[0] == 0
            slow = SlowSync(host._store)
            client.send(2, "add", 5)
            client.send(3, "look")
            client.send(4, "look", to="Box\0b")
            await until(lambda: SEEN["look"] == 3)
            assert (await client.answer(4))[0] == 0  # it saw nothing that is uncommitted
            await asyncio.sleep(0.1)
            assert 2 not in client.answers
            assert 3 not in client.answers
            assert slow.waiting == 1
            slow.release()
            assert await client.answer(2) == 5
            assert (await client.answer(3))[0] == 5

    run(main)


def test_a_call_to_another_actor_leaves_only_after_what_its_actor_changed_before_is_committed(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            await client.call(1, "bump", to="Caller\0a")
            slow = SlowSync(host._store)
            client.send(2, "bump", to="Caller\0a")
            client.send(3, "relay", "b", to="Caller\0a")
            await until(lambda: SEEN["relay"] == 1)
            await asyncio.sleep(0.1)
            assert SEEN["caller bump"] == 2  # not yet that of b
            slow.release()
            assert await client.answer(3) == 1
            assert SEEN["caller bump"] == 3

    run(main)


def test_a_next_turn_starts_before_the_commit_of_the_one_before(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            slow = SlowSync(host._store)
            for number in range(1, 20):
                client.send(number, "add", 1)
            await until(lambda: SEEN["add"] == 19)
            assert not client.answers
            slow.release()
            assert [await client.answer(number) for number in range(1, 20)] == list(range(1, 20))

    run(main)


# -- bounds


def test_a_full_queue_of_an_actor_is_refused_at_once(tmp_path):
    async def main():
        async with serving(tmp_path, settings=HostSettings(actor_queue_max=5)) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 1)
            for number in range(2, 10):
                client.send(number, "add", 1)
            for number in range(7, 10):
                refused = await client.answer(number)
                expect(refused, OverloadedError, "Box/a")
                assert refused.retry_after_s > 0
            assert await client.call(50, "add", 1, to="Box\0b") == 1
            gate("g").set()
            assert [await client.answer(n) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
            assert await client.call(7, "add", 1) == 7  # refused means that nothing happened

    run(main)


def test_a_host_takes_only_so_many_calls_also_when_they_only_wait_for_the_disk(tmp_path):
    async def main():
        async with serving(tmp_path, settings=HostSettings(host_queue_max=16)) as (host,), raw_client(host) as client:
            for number in range(1, 21):
                client.send(number, "wait_then_add", "g", 1, to=f"Box\0x{number}")
            for number in range(17, 21):
                expect(await client.answer(number), OverloadedError, "this host")
            gate("g").set()
            assert [await client.answer(n) for n in range(1, 17)] == [1] * 16
            slow = SlowSync(host._store)
            for number in range(101, 140):
                client.send(number, "add", 1)
            await until(lambda: sum(isinstance(a[0], OverloadedError) for a in client.answers.values()) >= 4 + 23 - 2)
            assert SEEN["add"] <= 17
            slow.release()
            assert not isinstance(await client.answer(101), Exception)
            await asyncio.sleep(0.05)
            assert isinstance(await client.call(200, "add", 1), int)
            assert (host.runner.admitted, host.runner.uncommitted) == (0, 0)

    run(main)


def test_the_bytes_of_waiting_arguments_are_bounded(tmp_path):
    async def main():
        async with serving(tmp_path, settings=HostSettings(host_queue_bytes_max=1 << 20)) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 1)
            for number in range(2, 6):
                client.send(number, "tag", [f"{number}" * 400_000])
            expect(await client.answer(5), OverloadedError)
            gate("g").set()
            assert await client.answer(2) == 1
            await until(lambda: host.runner.admitted_bytes == 0)

    run(main)


# -- activations


def test_idle_actors_leave_memory_and_come_back_with_their_state(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=HostSettings(activation_idle_s=0.01)) as ((host,), client):
            for round_number in range(1, 3):
                assert await client.map(Box.add, [(f"b{i}", i) for i in range(20)]) == [i * round_number for i in range(20)]
                await until(lambda: host.residents.count == 0)
            assert await client.get(Box, "b3").look() == (6, [3, 3], {"3": 6})
            assert host.status()["counters"]["activations_dropped_total"] >= 40

    run(main)


def test_the_memory_of_activations_is_capped_and_nothing_is_lost(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=HostSettings(activation_bytes_max=1 << 20)) as ((host,), client):
            for start in range(0, 4000, 500):
                await client.map(Box.add, [(f"b{i}", 1) for i in range(start, start + 500)])
            await until(lambda: host.residents.bytes <= 1 << 20, 3)
            assert host.residents.count < 1500
            assert await client.map(Box.add, [(f"b{i}", 1) for i in range(0, 4000, 100)]) == [2] * 40

    run(main)


def test_hooks_run_around_the_life_of_an_activation_and_may_change_state(tmp_path):
    async def main():
        settings = HostSettings(activation_idle_s=0.01)
        async with one_grid(tmp_path, settings=settings) as ((host,), client):
            for name in ("a", "slow"):
                assert await client.get(Hooked, name).bump() == 1
                assert await client.get(Hooked, name).tell() in ((1, 0, 1), (2, 1, 1))
                await until(lambda: host.residents.count == 0)
                activations, goodbyes, count = await client.get(Hooked, name).tell()
                assert count == 1
                assert activations == goodbyes + 1 >= 2
        async with one_grid(tmp_path) as (_, client):
            for name in ("a", "slow"):
                activations, goodbyes, count = await client.get(Hooked, name).tell()
                assert (activations, count) == (goodbyes + 1, 1), name

    run(main)


def test_calls_that_come_while_an_actor_says_goodbye_see_what_it_changed(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=HostSettings(activation_idle_s=0.01)) as ((host,), client):
            for name in ("slow", "quick"):
                hooked = client.get(Hooked, name)
                for number in range(1, 8):
                    assert await hooked.bump() == number
                    goodbyes = SEEN["on_deactivate"]
                    await until(lambda goodbyes=goodbyes: SEEN["on_deactivate"] > goodbyes)
                    activations, goodbyes, count = await hooked.tell()
                    assert count == number
                    assert activations == goodbyes + 1
            assert host.runner.admitted == 0

    run(main)


def test_a_hook_that_raises_is_told_to_the_callers_and_tried_again(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=HostSettings(activation_idle_s=0.01)) as ((host,), client):
            for name in ("bad", "bad too"):
                SEEN["mended"] = 0
                SEEN["hooked bump"] = 0
                with pytest.raises(ActorError, match="cannot wake"):
                    await client.get(Hooked, name).bump()
                with pytest.raises(ActorError, match="cannot wake"):
                    await client.get(Hooked, name).tell()
                assert SEEN["hooked bump"] == 0
                SEEN["mended"] = 1
                assert await client.get(Hooked, name).bump() == 1
            assert await client.get(Hooked, "rude").bump() == 1
            await until(lambda: host.residents.count == 0)
            assert (await client.get(Hooked, "rude").tell())[1:] == (0, 1)

    run(main)


# -- the end


def test_a_failing_sync_ends_the_duty_leaves_writes_in_doubt_and_a_restart_is_consistent(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert await client.call(1, "add", 1) == 1

            def failing():
                raise host._store._fail("sync", OSError("No space left on device"))

            host._store.sync_now = failing
            client.send(2, "add", 2)
            client.send(3, "look")
            client.send(4, "wait_then_add", "never", 1, to="Box\0b")
            error = await asyncio.wait_for(host.run_until_failed(), 5)
            assert isinstance(error, DiskFullError)
            expect(await client.answer(2), WriteInDoubtError)
            expect(await client.answer(3), HostUnavailableError)
            expect(await client.answer(4), HostUnavailableError)
            expect(await client.call(5, "look"), HostUnavailableError)
            assert host.state == "failed"
            client_id = client.client_id
        async with serving(tmp_path) as (host,), raw_client(host, client_id) as client:
            before = (await client.call(100, "look"))[0]
            assert before in (1, 3)  # the failed write's outcome is unknown, until its retry tells
            assert await client.call(2, "add", 2) == 3
            assert await client.call(101, "look") == [3, [1, 2], {"1": 1, "2": 3}]

    run(main)


def test_a_store_that_cannot_be_read_ends_the_duty(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            await client.call(1, "add", 1)
            original, host._store._db = host._store._db, Unreadable()
            expect(await client.call(2, "add", 1, to="Box\0other"), HostUnavailableError)
            assert isinstance(await asyncio.wait_for(host.run_until_failed(), 5), StorageError)
            host._store._db = original

    run(main)


class Unreadable:
    def get(self, *_):
        raise OSError("Corruption: block checksum mismatch")

    def write(self, *_):
        raise OSError("IO error")

    def close(self):
        return None


def test_a_client_finds_the_restarted_host_after_a_storage_failure_and_nothing_is_counted_twice(tmp_path):
    async def main():
        port = free_port()
        client = grid.connect(f"127.0.0.1:{port}", settings=QUICK)
        async with contextlib.AsyncExitStack() as stack:
            async with serving(tmp_path, ports=[port]) as (host,):
                await stack.enter_async_context(client)
                assert await client.get(Box, "a").add(1) == 1
                failed = threading.Event()

                def failing():
                    failed.set()
                    raise host._store._fail("sync", OSError("I/O error"))

                host._store.sync_now = failing
                second = soon(client.get(Box, "a").add(2))
                await asyncio.wait_for(host.run_until_failed(), 5)
            async with serving(tmp_path, ports=[port]):
                assert await second == 3
                assert await client.get(Box, "a").look() == (3, [1, 2], {"1": 1, "2": 3})

    run(main)


def test_a_graceful_stop_answers_what_runs_and_what_waits_for_the_disk(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "sleep", 0.1, to="Juggler\0j")
            client.send(2, "wait_then_add", "g", 5)
            await until(lambda: SEEN["wait_then_add"] == 1)
            asyncio.get_running_loop().call_later(0.1, gate("g").set)
            await host.stop()
            assert await client.answer(1) == 1
            assert await client.answer(2) == 5
            assert host.state == "stopped"
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert (await client.call(3, "look"))[0] == 5
            assert await client.call(4, "sleep", 0.0, to="Juggler\0j") == 2

    run(main)


def test_a_stop_does_not_wait_for_a_turn_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("actorgrid.host.host.STOP_GRACE_S", 0.2)

    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "never", 5)
            await until(lambda: SEEN["wait_then_add"] == 1)
            begin = asyncio.get_running_loop().time()
            await host.stop()
            assert asyncio.get_running_loop().time() - begin < 2
            expect(await client.answer(1), HostUnavailableError)
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert (await client.call(3, "look"))[0] == 0

    run(main)


def test_in_doubt_is_never_told_as_refused():
    assert issubclass(WriteInDoubtError, OutcomeUnknownError)
    assert not issubclass(WriteInDoubtError, HostUnavailableError)


class _Grown:
    """As much of an activation as a sweep looks at."""

    def __init__(self):
        self.dead, self.used, self.running, self.queue = False, True, (), None
        self.bytes, self.size, self.last_used_s = 1024, 1024, 0.0

    def settle(self):
        """Nothing to settle."""

    def size_bytes(self):
        return self.size


@pytest.mark.pure  # a stand-in is no activation to compiled code
def test_what_a_turn_changes_after_a_sweep_is_measured_by_the_next_one():
    residents = Residents(HostSettings())
    grown = _Grown()
    residents.added(grown)
    grown.running = (object(),)
    residents.sweep(1.0)
    grown.running, grown.size = (), 900_000
    residents.sweep(2.0)
    assert residents.bytes == grown.bytes == 900_000
    assert not grown.used


def test_what_is_submitted_without_anybody_waiting_is_written_all_the_same(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,):
            await asyncio.sleep(0.2)
            host._commit.submit(lambda batch: batch.put(b"\xffnobody-waits", b"1"))
            await until(lambda: host._store.get(b"\xffnobody-waits") == b"1", 1)

    run(main)
