"""Exactly once in effect (I9, I10): retries, duplicates, restarts, and what the host remembers of them."""

import asyncio
import itertools
import os
import subprocess
import sys
from pathlib import Path

import host_actors
import pytest
from host_actors import SEEN, Box, Caller, gate
from host_harness import (
    PARTITIONS,
    QUICK,
    HostProcess,
    actor_on,
    awaited,
    expect,
    free_port,
    one_grid,
    raw_client,
    run,
    seeds,
    serving,
    until,
)

from actorgrid import grid
from actorgrid.errors import (
    ActorError,
    InvalidArgumentError,
    NonDeterministicTurnError,
    OverloadedError,
    RequestError,
    SessionExpiredError,
)
from actorgrid.ids import partition_of
from actorgrid.settings import HostSettings
from actorgrid.wire.messages import ROLE_HOST, CallExtra

CLIENT = bytes(range(16))


def host_partition(address):
    return partition_of(address, PARTITIONS)


FEW_RECORDS = HostSettings(session_checkpoint_entries=16, log_retention_bytes=64 * 1024)


def test_the_same_request_id_sent_twice_is_executed_once_and_answered_twice(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 5)
            client.send(1, "wait_then_add", "g", 5)
            async with raw_client(host, client.client_id) as second:
                second.send(1, "wait_then_add", "g", 5)
                await until(lambda: SEEN["wait_then_add"] == 1)
                await asyncio.sleep(0.05)
                gate("g").set()
                assert await client.answer(1, 1) == 5
                assert await second.answer(1) == 5
            assert client.answers[1] == [5, 5]
            assert await client.call(1, "wait_then_add", "g", 5) == 5
            assert SEEN["wait_then_add"] == 1
            assert (await client.call(2, "look"))[0] == 5

    run(main)


def test_a_running_request_of_a_new_client_is_found_after_another_of_its_requests_is_committed(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 5, to="Box\0a")
            await until(lambda: SEEN["wait_then_add"] == 1)
            neighbour = actor_on(host_partition("Box\0a"), "Box", "n")
            assert await client.call(2, "add", 1, to=f"Box\0{neighbour}") == 1
            client.send(1, "wait_then_add", "g", 5, to="Box\0a")
            await asyncio.sleep(0.02)
            gate("g").set()
            assert [await client.answer(1), await client.answer(1, 1)] == [5, 5]
            assert SEEN["wait_then_add"] == 1

    run(main)


def test_a_raising_turn_is_recorded_and_repeated_word_for_word(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host, CLIENT) as client:
            first = await client.call(1, "add_then_raise", 5)
            again = await client.call(1, "add_then_raise", 5)
            expect(first, ActorError, "no 5", "ValueError")
            assert (str(first), first.remote_traceback) == (str(again), again.remote_traceback)
            assert SEEN["add_then_raise"] == 1
            assert await client.call(2, "look") == [0, [], {}]
        async with serving(tmp_path) as (host,), raw_client(host, CLIENT) as client:
            assert str(await client.call(1, "add_then_raise", 5)) == str(first)
            assert await client.call(2, "look") == [0, [], {}]
        assert SEEN["add_then_raise"] == 1

    run(main)


def test_the_same_request_id_with_another_body_is_refused_while_it_runs_and_after(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 5)
            expect(await client.call(1, "wait_then_add", "g", 6), RequestError, "request 1", "another call")
            gate("g").set()
            assert await client.answer(1, 1) == 5
            expect(await client.call(1, "wait_then_add", "g", 6), RequestError, "already used")
            expect(await client.call(1, "add", 5), RequestError, "already used")
            assert (await client.call(2, "look"))[0] == 5

    run(main)


def test_what_the_client_has_said_to_be_answered_is_never_executed_again(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host, CLIENT) as client:
            assert await client.call(1, "add", 1) == 1
            assert await client.call(2, "add", 2, lowest=2) == 3
            expect(await client.call(1, "add", 1, lowest=2), SessionExpiredError)
            expect(await client.call(1, "add", 1, lowest=0), SessionExpiredError)
        async with serving(tmp_path) as (host,), raw_client(host, CLIENT) as client:
            expect(await client.call(1, "add", 1, lowest=0), SessionExpiredError)
            assert await client.call(2, "add", 2, lowest=2) == 3
            assert (await client.call(3, "look"))[0] == 3

    run(main)


@pytest.mark.parametrize("settings", [HostSettings(), FEW_RECORDS], ids=["by replay of the log", "by a checkpoint of the sessions"])
def test_a_duplicate_is_answered_from_the_record_after_a_restart(tmp_path, settings):
    async def main():
        async with serving(tmp_path, settings=settings) as (host,), raw_client(host, CLIENT) as client:
            answers = [await client.call(number, "add", number) for number in range(1, 60)]
        for _ in range(2):
            async with serving(tmp_path, settings=settings) as (host,), raw_client(host, CLIENT) as client:
                SEEN.clear()
                assert [await client.call(number, "add", number) for number in range(1, 60)] == answers
                expect(await client.call(7, "add", 8), RequestError, "already used")
                assert SEEN["add"] == 0
                assert (await client.call(100, "look"))[0] == answers[-1]
                if settings is FEW_RECORDS:
                    partition = host.partitions[host_partition("Box\0a")]
                    assert partition._durable._checkpoint_lsn > 40

    run(main)


def test_a_duplicate_is_answered_from_the_record_after_sigkill(tmp_path):
    async def main():
        with HostProcess(tmp_path, session_checkpoint_entries=16) as process:
            port = process.port
            async with raw_client(port, CLIENT) as client:
                answers = {n: await client.call(n, "add", n) for n in range(1, 40)}
                # Those that are under way when it dies may or may not have happened.
                for number in range(40, 200):
                    client.send(number, "add", number)
                await client.answer(60)
                process.kill()
                await until(lambda: client.lost)
                answers |= {n: client.answers[n][0] for n in range(40, 200) if n in client.answers}
        with HostProcess(tmp_path, port):
            async with raw_client(port, CLIENT) as client:
                for number, answer in answers.items():
                    assert await client.call(number, "add", number) == answer
                count, items, entries = await client.call(1000, "look")
                for number in range(1, 200):
                    await client.call(number, "add", number)
                count, items, entries = await client.call(1001, "look")
                assert sorted(items) == list(range(1, 200))
                assert count == sum(range(1, 200))
                assert set(entries) == {str(n) for n in range(1, 200)}

    run(main)


def test_a_client_whose_session_was_evicted_does_not_execute_an_old_request_again(tmp_path):
    """Evicted, then known again by a newer call: the older, doubtful request must not look new (found by review)."""

    async def main():
        settings = HostSettings(sessions_max=8)
        async with serving(tmp_path, settings=settings) as (host,), raw_client(host, CLIENT) as client:
            assert await client.call(1, "add", 1) == 1
            for i in range(9):
                async with raw_client(host, bytes([i + 1]) * 16) as other:
                    await other.call(1, "add", 0)
            refused = await client.call(2, "add", 2)
            expect(refused, SessionExpiredError)
            assert await client.call(2, "add", 2, since=refused.current_lsn) == 3
            expect(await client.call(1, "add", 1), SessionExpiredError)
            expect(await client.call(1, "add", 1, since=0), SessionExpiredError)
            assert (await client.call(9, "look"))[0] == 3
        async with serving(tmp_path, settings=settings) as (host,), raw_client(host, CLIENT) as client:
            expect(await client.call(1, "add", 1), SessionExpiredError)
            assert await client.call(2, "add", 2, since=refused.current_lsn) == 3
            assert (await client.call(9, "look"))[0] == 3

    run(main)


def test_a_running_request_is_still_found_when_its_session_is_evicted_meanwhile(tmp_path):
    async def main():
        async with serving(tmp_path, settings=HostSettings(sessions_max=8)) as (host,), raw_client(host, CLIENT) as client:
            assert await client.call(1, "add", 1) == 1
            client.send(2, "wait_then_add", "g", 5)
            await until(lambda: SEEN["wait_then_add"] == 1)
            same = actor_on(host_partition("Box\0a"), "Box", "other")
            for i in range(12):
                async with raw_client(host, bytes([i + 1]) * 16) as other:
                    await other.call(1, "add", 0, to=f"Box\0{same}")
            client.send(2, "wait_then_add", "g", 5, since=host.partitions[host_partition("Box\0a")].replica.committed_lsn)
            await asyncio.sleep(0.05)
            gate("g").set()
            assert await client.answer(2) == 6
            assert await client.answer(2, 1) == 6
            assert SEEN["wait_then_add"] == 1

    run(main)


def test_a_client_can_have_only_so_many_unacknowledged_records(tmp_path):
    async def main():
        async with serving(tmp_path, settings=HostSettings(session_records_max=64)) as (host,), raw_client(host) as client:
            for number in range(1, 65):
                assert not isinstance(await client.call(number, "add", 1), Exception)
            expect(await client.call(65, "add", 1), OverloadedError)
            assert SEEN["add"] == 64
            assert (await client.call(66, "look"))[0] == 64

    run(main)


def test_retries_attached_to_one_request_are_bounded(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            for _ in range(2000):
                client.send(1, "wait_then_add", "g", 5)
            await until(lambda: any(isinstance(a, OverloadedError) for a in client.answers.get(1, ())))
            gate("g").set()
            await until(lambda: 5 in client.answers[1])
            assert SEEN["wait_then_add"] == 1

    run(main)


# -- idempotency keys


def test_an_idempotency_key_is_executed_once_across_clients_and_restarts(tmp_path):
    async def main():
        for _ in range(2):
            async with one_grid(tmp_path) as (_, client):
                keyed = client.with_options(idempotency_key="order-77")
                assert await keyed.get(Box, "a").add(5) == 5
                with pytest.raises(RequestError, match="order-77"):
                    await keyed.get(Box, "a").add(6)
                assert await keyed.get(Box, "b").add(6) == 6  # another actor's key
                assert (await client.get(Box, "a").look())[0] == 5
        assert SEEN["add"] == 2

    run(main)


def test_an_idempotency_key_in_use_attaches_and_a_failed_one_is_remembered(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            keyed = client.with_options(idempotency_key="k")
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(awaited(keyed.get(Box, "a").wait_then_add("g", 1))) for _ in range(5)]
                await until(lambda: SEEN["wait_then_add"] == 1)
                gate("g").set()
            assert [call.result() for call in calls] == [1] * 5
            failing = client.with_options(idempotency_key="bad")
            for _ in range(2):
                with pytest.raises(ActorError, match="no 3"):
                    await failing.get(Box, "a").add_then_raise(3)
            assert (SEEN["wait_then_add"], SEEN["add_then_raise"]) == (1, 1)

    run(main)


def test_an_idempotency_key_is_forgotten_after_its_retention_and_not_before(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=HostSettings(idempotency_retention_s=4)) as (hosts, client):

            async def add(key, amount):
                value = await client.with_options(idempotency_key=key).get(Box, "a").add(amount)
                await until(lambda: not any(partition.shell.has_unapplied for partition in hosts[0].partitions.values()))
                return value

            assert await add("first", 1) == 1
            await asyncio.sleep(2.0)
            assert await add("second", 1) == 2
            assert await add("first", 1) == 1
            await asyncio.sleep(2.5)
            assert await add("third", 1) == 3  # expired ones leave with what comes after them
            assert await add("second", 1) == 2
            assert await add("first", 1) == 4

    run(main)


# -- nested calls


def test_a_nested_call_is_answered_from_the_record_when_its_turn_is_executed_again(tmp_path):
    async def main():
        with HostProcess(tmp_path) as process:
            port = process.port
            async with raw_client(port, CLIENT) as client:
                client.send(1, "relay", "b", "never", to="Caller\0a")
                await until_async(lambda: told(client, "Caller\0b", 1))
                process.kill()
        with HostProcess(tmp_path, port):
            async with raw_client(port, CLIENT) as client:
                client.send(1, "relay", "b", "never", to="Caller\0a", timeout_ms=300, extra=CallExtra(again=True))
                await client.answer(1)
                count, *_ = await client.call(50, "tell", to="Caller\0b")
                assert count == 1

    run(main)


async def told(client, address, count, numbers=itertools.count(1000)):  # noqa: B008 - numbers are never used twice
    return (await client.call(next(numbers), "tell", to=address))[0] == count


async def until_async(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.01)


def test_a_turn_executed_again_that_makes_another_call_is_told_so(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "changeable_relay", "b", to="Caller\0a", timeout_ms=200)
            await until(lambda: SEEN["add"] == 1)
            await client.answer(1)
            answer = await client.call(1, "changeable_relay", "b", to="Caller\0a", extra=CallExtra(again=True))
            expect(answer, NonDeterministicTurnError, "another call")
            assert (await client.call(3, "look", to="Box\0b"))[0] == 10
            assert SEEN["add"] == 1

    run(main)


def test_nested_calls_go_between_two_hosts_and_happen_once(tmp_path):
    async def main():
        async with one_grid(tmp_path, hosts=2) as (hosts, client):
            here, there = actor_on(1, "Caller", "h"), actor_on(2, "Caller", "t")
            assert set(hosts[0].partitions) == {1, 3}
            assert await client.get(Caller, here).relay(there) == 1
            assert await client.get(Caller, there).relay(here) == 2
            assert (await client.get(Caller, here).tell())[0] == 2
            # the same nested id again is answered from the record
            async with raw_client(hosts[1], role=ROLE_HOST) as peer:
                extra = CallExtra(number=7, path=(0,))
                for _ in range(2):
                    assert await peer.call(1, "bump", to=f"Caller\0{there}", extra=extra, client_id=CLIENT) == 3
                assert await peer.call(2, "bump", to=f"Caller\0{there}", extra=CallExtra(number=7, path=(1,)), client_id=CLIENT) == 4
                # the root client's own word frees it, and then it is refused
                await peer.call(3, "bump", to=f"Caller\0{there}", extra=CallExtra(number=9, path=(0,)), client_id=CLIENT, anywhere=8)
                again = await peer.call(4, "bump", to=f"Caller\0{there}", extra=extra, client_id=CLIENT)
                expect(again, SessionExpiredError)

    run(main)


def test_a_client_may_not_call_in_the_name_of_another(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "add", 1, client_id=CLIENT)
            await until(lambda: client.lost)
            assert SEEN["add"] == 0

    run(main)


def test_arguments_with_sets_have_one_encoding_whatever_the_hash_seed():
    """A turn that is executed again on a restarted host passes equal sets in another order: it is still the same call."""
    script = (
        "import host_actors; from actorgrid.actor.definition import method_of; m = method_of(host_actors.Box.tag)[1]; "
        "print(m.encode_args(({f'tag{i}' for i in range(50)},), {}).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(host_actors.__file__).parent)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


# -- SIGKILL


def test_every_acknowledged_change_survives_sigkill_and_none_happens_twice(tmp_path):
    async def main():
        port = free_port()
        acknowledged = {}
        stop = asyncio.Event()

        async def caller(client, name):
            number = 0
            while not stop.is_set():
                number += 1
                acknowledged[name, number] = await client.get(Box, name).add(number)

        process = HostProcess(tmp_path, port, session_checkpoint_entries=32)
        try:
            async with grid.connect(f"127.0.0.1:{port}", settings=QUICK) as client:
                async with asyncio.TaskGroup() as tasks:
                    for i in range(16):
                        tasks.create_task(caller(client, f"box{i}"))
                    for _ in range(3):
                        before = len(acknowledged)
                        await until(lambda before=before: len(acknowledged) > before + 300, 10)
                        process.kill()
                        process = await asyncio.to_thread(HostProcess, tmp_path, port, session_checkpoint_entries=32)
                    stop.set()
                for i in range(16):
                    count, items, entries = await client.get(Box, f"box{i}").look()
                    mine = {number: value for (name, number), value in acknowledged.items() if name == f"box{i}"}
                    assert items == sorted(mine), f"box{i}"
                    assert count == sum(mine)
                    assert all(value == sum(range(number + 1)) for number, value in mine.items())
                    assert entries == {str(number): sum(range(number + 1)) for number in mine}
        finally:
            process.kill()
        assert len(acknowledged) > 900

    run(main, 60)


def test_a_seed_list_reaches_the_hosts(tmp_path):
    async def main():
        async with serving(tmp_path, hosts=2) as hosts, grid.connect("127.0.0.1:1," + seeds(hosts), settings=QUICK) as client:
            assert await client.map(Box.add, [(f"x{i}", i) for i in range(20)]) == list(range(20))
            with pytest.raises(InvalidArgumentError, match="amount"):
                await client.get(Box, "a").add("five")
            assert SEEN["add"] == 20

    run(main)
