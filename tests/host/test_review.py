"""What a review found and what was mended since, each as the smallest case that shows it."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host_actors import SEEN, gate
from host_harness import PARTITIONS, QUICK, actor_on, begin, expect, free_port, make_config, raw_client, run, seeds, soon, until
from review_actors import Home, Payer, Purse, Sleeper

from actorgrid import grid
from actorgrid.errors import (
    ActorError,
    ActorGridError,
    DeadlineExceededError,
    HostUnavailableError,
    NotPrimaryError,
    OutcomeUnknownError,
    OverloadedError,
)
from actorgrid.host import partition as partition_module
from actorgrid.host.host import Host
from actorgrid.ids import make_address, partition_of
from actorgrid.replication.entry import ClientMark, Entry, LogRecord
from actorgrid.replication.sessions import SessionTable
from actorgrid.settings import HostSettings

MIB = 1 << 20
KIB = 1 << 10


@contextlib.asynccontextmanager
async def serving(path, *, hosts=1, settings=None):
    """Hosts with the actors of the review."""
    ports = [free_port() for _ in range(hosts)]
    started = [Host(make_config(path, ports=ports, index=i, settings=settings, app="review_actors")) for i in range(hosts)]
    for host in started:
        await host.start()
    await begin(started)
    try:
        yield started
    finally:
        for host in started:
            await host.stop()


@contextlib.asynccontextmanager
async def one_grid(path, *, hosts=1, settings=None):
    async with serving(path, hosts=hosts, settings=settings) as started, grid.connect(seeds(started), settings=QUICK) as client:
        yield started, client


def home_of(hosts, address):
    """The partition in which an actor lives."""
    number = partition_of(address, PARTITIONS)
    return next(host.partitions[number] for host in hosts if number in host.partitions)


# -- calls behind a turn that is thrown away


@pytest.mark.parametrize("method", ["add_and_hang", "add_and_be_cancelled", "add_and_be_cancelled_later"])
def test_calls_behind_a_cancelled_turn_run_on_a_fresh_activation(tmp_path, method):
    """The activation goes while its last commit is not in the store yet; what waited for it must not run on its spoilt object."""
    actors = [f"Purse\0{number}" for number in range(20)]

    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            for index, actor in enumerate(actors):
                client.send(10 * index + 1, "add", 1, to=actor)
                client.send(10 * index + 2, method, 1000, to=actor, timeout_ms=10)
                client.send(10 * index + 3, "add", 1, to=actor)
                client.send(10 * index + 4, "look", to=actor)
            for index, actor in enumerate(actors):
                assert await client.answer(10 * index + 1) == 1
                assert isinstance(await client.answer(10 * index + 2), ActorGridError)
                assert await client.answer(10 * index + 3) == 2
                assert await client.answer(10 * index + 4) == 2
                assert await client.call(10 * index + 5, "look", to=actor) == 2
            assert host.runner.admitted == 0
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert [await client.call(1, "look", to=actor) for actor in actors] == [2] * len(actors)

    run(main)


def test_calls_behind_a_cancelled_turn_of_an_actor_with_hooks_are_answered(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "add", 1, to="Sleeper\0s")
            client.send(2, "add_and_hang", 1000, to="Sleeper\0s", timeout_ms=15)
            client.send(3, "add", 1, to="Sleeper\0s")
            assert [await client.answer(1), await client.answer(3)] == [1, 2]
            assert isinstance(await client.answer(2), DeadlineExceededError)
            assert await client.call(4, "look", to="Sleeper\0s") == 2
            assert SEEN["woken"] == 2

    run(main)


@pytest.mark.parametrize("name", ["quick", "slow"])
def test_a_call_that_comes_while_an_actor_is_leaving_runs_on_its_successor(tmp_path, name):
    async def main():
        async with serving(tmp_path) as hosts, grid.connect(seeds(hosts), settings=QUICK) as client:
            address = make_address("Sleeper", name)
            partition = home_of(hosts, address)
            for expected in range(1, 8, 2):
                assert await client.get(Sleeper, name).add(1) == expected
                await until(lambda: partition.activations[address].droppable)
                partition.deactivate(partition.activations[address])
                assert not partition.activations[address].ready, "it is leaving"
                second = soon(client.get(Sleeper, name).add(1))
                async with asyncio.timeout(2):
                    assert await second == expected + 1
            assert SEEN["woken"] > 1
            assert hosts[0].runner.admitted == 0

    run(main)


# -- idempotency keys and nested calls


async def first_try(client, payer, purse):
    with pytest.raises(DeadlineExceededError):
        await client.with_options(idempotency_key="order-1", timeout_s=0.25).get(Payer, payer).pay(purse, 5)
    assert await client.get(Purse, purse).look() == 5, "the nested call has committed"


@pytest.mark.parametrize("hosts", [1, 2], ids=["on one host", "across two hosts"])
@pytest.mark.parametrize("who", ["the same client", "another client", "another client after a restart"])
def test_a_keyed_call_that_is_tried_again_makes_its_nested_calls_once(tmp_path, hosts, who):
    async def main():
        payer, purse = actor_on(1, "Payer", "p"), actor_on(2, "Purse", "b")

        async def second_try(client):
            assert await client.with_options(idempotency_key="order-1").get(Payer, payer).pay(purse, 5) == 5
            assert SEEN["pay"] == 2
            assert SEEN["purse add"] == 1
            assert await client.get(Purse, purse).look() == 5
            assert await client.with_options(idempotency_key="order-2").get(Payer, payer).pay(purse, 5) == 10
            assert await client.get(Purse, purse).look() == 10

        async with one_grid(tmp_path, hosts=hosts) as (started, client):
            await first_try(client, payer, purse)
            if who == "the same client":
                await second_try(client)
            elif who == "another client":
                async with grid.connect(seeds(started), settings=QUICK) as other:
                    await second_try(other)
        if who == "another client after a restart":
            async with one_grid(tmp_path, hosts=hosts) as (_, other):
                await second_try(other)

    run(main)


def test_two_actors_use_the_same_key_for_nested_calls_to_one_third(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            SEEN["pay"] = 1
            keyed = client.with_options(idempotency_key="order-1")
            assert await keyed.get(Payer, "one").pay("purse", 5) == 5
            assert await keyed.get(Payer, "two").pay("purse", 5) == 5
            assert await client.get(Purse, "purse").look() == 10

    run(main)


# -- a turn that goes on while a reentrant one is open in it


def test_an_outer_turns_change_beside_an_open_reentrant_turn_is_undone_with_it(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError, match="after all"):
                await client.get(Home, "h").receive()
            assert await client.get(Home, "h").tell() == (0, 1, [], [1])
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Home, "h").tell() == (0, 1, [], [1])

    run(main)


@pytest.mark.parametrize("swallow", [False, True], ids=["it raises", "it goes on"])
def test_a_field_that_both_change_while_the_reentrant_turn_is_open_is_refused(tmp_path, swallow):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError) as caught:
                await client.get(Home, "h").receive(same_field=True, swallow=swallow)
            if swallow:
                assert "field inner" in str(caught.value)
            assert await client.get(Home, "h").tell() == (0, 0, [], [])
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Home, "h").tell() == (0, 0, [], [])

    run(main)


def test_an_actor_whose_field_was_contested_goes_on_working(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError):
                await client.get(Home, "h").receive(same_field=True)
            gate("inside").clear()
            gate("changed").clear()
            assert await client.get(Home, "h").receive(swallow=True) == 5
            assert await client.get(Home, "h").tell() == (5, 1, [5], [1])

    run(main)


# -- values that would come back different


def test_a_list_in_a_tuple_field_fails_the_turn_and_changes_nothing(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError, match="field pair"):
                await client.get(Purse, "p").put_pair(as_list=True)
            assert await client.get(Purse, "p").look() == 0
            await client.get(Purse, "p").put_pair(as_list=False)
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Purse, "p").look() == 1

    run(main)


# -- a host whose data is gone


def test_a_host_whose_store_was_emptied_serves_nothing_until_a_grid_is_begun(tmp_path):
    async def main():
        async with one_grid(tmp_path) as ((host,), client):
            await client.get(Purse, "p").add(1)
            data = host.config.data_dir
        shutil.rmtree(data / "store")
        emptied = Host(make_config(tmp_path, app="review_actors"))
        await emptied.start()
        try:
            async with raw_client(emptied) as client:
                expect(await client.call(1, "add", 1, to="Purse\0p"), NotPrimaryError, "unknown")
        finally:
            await emptied.stop()
        async with one_grid(tmp_path) as (_, client):  # begun anew, which is an operator's decision
            assert await client.get(Purse, "p").look() == 0

    run(main)


def test_a_client_that_knows_more_than_the_log_has_is_refused(tmp_path):
    async def main():
        async with serving(tmp_path) as hosts, raw_client(hosts[0]) as client:
            assert await client.call(1, "add", 1, to="Purse\0p") == 1
            known = home_of(hosts, "Purse\0p").replica.last_lsn
            expect(await client.call(2, "add", 1, to="Purse\0p", since=known + 1), HostUnavailableError, "lost history")
            expect(await client.call(3, "look", to="Purse\0p", since=1 << 40), HostUnavailableError, "lost history")
            assert await client.call(4, "add", 1, to="Purse\0p", since=known) == 2
            assert SEEN["purse add"] == 2

    run(main)


# -- what is remembered of clients that are gone


def record(lsn, *clients, lowest=0, anywhere=0, size=100, path=()):
    marks = [ClientMark(client, lowest, anywhere) for client in clients]
    entries = [Entry(index, lsn + index, path, 1, "A\0x", 0, b"r" * size, []) for index in range(len(clients))]
    return LogRecord(1, lsn, 0, marks, entries)


def kept_bytes(table):
    return sum(len(each.result) for _, session in table for each in [*session.records.values(), *session.nested.values()])


def copied(table):
    images, _ = table.take_checkpoint()
    other = SessionTable(table.sessions_max, table.bytes_max)
    for client, image in images:
        other.load_image(client, image)
    other.loaded(table.evicted_lsn)
    return other


def test_the_table_counts_the_bytes_of_the_results_it_keeps():
    one, two, three = (bytes([number]) * 16 for number in (1, 2, 3))
    table = SessionTable(2)
    table.apply(record(1, one))
    table.apply(record(2, one, two, size=50))
    table.apply(record(10, two, path=(0,), size=7))
    assert table.bytes == kept_bytes(table) == 207
    again = copied(table)
    assert again.bytes == kept_bytes(again) == 207
    for each in (table, again):
        each.apply(record(11, one, lowest=2, size=1))
        assert each.bytes == kept_bytes(each) == 108, "the first was freed"
        each.apply(record(12, two, anywhere=11, size=2))
        assert each.bytes == kept_bytes(each) == 103, "the nested one was freed"
        each.apply(record(13, three, size=3))
        assert each.bytes == kept_bytes(each) == 55, "the first client was forgotten"
        each.apply(record(14, one, two, three, size=10))
        assert each.bytes == kept_bytes(each), "one that is forgotten within its own record"
        assert {client: session.bytes for client, session in each} == {two: 10, three: 10}


def test_the_client_that_was_heard_last_is_remembered_however_large_its_result_is():
    table = SessionTable(8, 1000)
    for number in range(1, 6):
        table.apply(record(number, bytes([number]) * 16, size=400))
        assert table.bytes == kept_bytes(table) <= 1000
    assert table.evicted_lsn == 3
    table.apply(record(6, bytes([6]) * 16, size=5000))
    assert [client[0] for client, _ in table] == [6]
    assert table.bytes == kept_bytes(table) == 5000


def test_the_results_kept_for_clients_that_are_gone_are_bounded(tmp_path):
    async def main():
        settings = HostSettings(session_bytes_max=MIB)
        async with serving(tmp_path, settings=settings) as hosts:
            for _ in range(20):
                async with grid.connect(seeds(hosts), settings=QUICK) as client:
                    assert len(await client.get(Purse, "p").give(200 * KIB)) == 200 * KIB
            sessions = home_of(hosts, "Purse\0p").sessions
            assert kept_bytes(sessions) == sessions.bytes <= MIB
            assert 1 <= len(sessions) <= 5
        async with one_grid(tmp_path, settings=settings) as (hosts, client):
            sessions = home_of(hosts, "Purse\0p").sessions
            assert kept_bytes(sessions) == sessions.bytes <= MIB
            assert await client.get(Purse, "p").look() == 20

    run(main)


# -- bounds, hooks, reads


def test_the_arguments_of_waiting_reads_count_for_the_hosts_bound(tmp_path):
    async def main():
        settings = HostSettings(host_queue_bytes_max=MIB)
        async with serving(tmp_path, settings=settings) as (host,), raw_client(host) as client:
            client.send(1, "hold", "g", to="Purse\0p")
            await until(lambda: SEEN["held"] == 1)
            for number in range(2, 7):
                client.send(number, "weigh", b"z" * (400 * KIB), to="Purse\0p")
            for number in (4, 5, 6):
                expect(await client.answer(number), OverloadedError)
            assert 800 * KIB <= host.runner.admitted_bytes <= MIB
            gate("g").set()
            assert [await client.answer(2), await client.answer(3)] == [400 * KIB] * 2
            assert host.runner.admitted_bytes == 0
            assert await client.call(7, "weigh", b"z" * (400 * KIB), to="Purse\0p") == 400 * KIB

    run(main)


@pytest.mark.pure  # patches what is compiled
def test_a_hanging_on_activate_is_told_to_those_who_wait_and_not_tried_again_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(partition_module, "HOOK_TIMEOUT_NS", 300_000_000)

    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "add", 1, to="Sleeper\0hang")
            client.send(2, "look", to="Sleeper\0hang")
            expect(await client.answer(1, timeout_s=2), ActorError)
            expect(await client.answer(2, timeout_s=2), ActorError)
            await asyncio.sleep(0.5)
            assert SEEN["woken"] == 1
            assert host.runner.admitted == 0
            expect(await client.call(3, "add", 1, to="Sleeper\0hang"), ActorError)
            assert SEEN["woken"] == 2, "the next call tries again"

    run(main)


def test_what_a_read_changed_in_a_large_field_is_undone_before_the_next_write(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            purse = client.get(Purse, "p")
            await purse.fill(5000)
            with contextlib.suppress(ActorError):
                await purse.spoil()
            assert await purse.add(1) == 1
            assert await purse.count_large() == 5000
            with contextlib.suppress(ActorError):
                await purse.spoil()
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Purse, "p").count_large() == 5000

    run(main)


@pytest.mark.pure  # patches what is compiled
def test_an_unexpected_error_in_the_commit_ends_the_duty_and_answers_callers(tmp_path, monkeypatch):
    async def main():
        async with serving(tmp_path) as hosts, raw_client(hosts[0]) as client:
            host = hosts[0]
            assert await client.call(1, "add", 1, to="Purse\0p") == 1
            client.send(2, "hold", "never", to="Purse\0p")
            await until(lambda: SEEN["held"] == 1)
            partition = home_of(hosts, "Purse\0p")
            neighbour = f"Purse\0{actor_on(partition.id, 'Purse', 'n')}"
            write, broken = partition.shell.write, []

            def break_once(batch, now_ns):
                if not broken:
                    broken.append(1)
                    raise RuntimeError("a bug of ours")
                write(batch, now_ns)

            monkeypatch.setattr(partition.shell, "write", break_once)
            client.send(3, "add", 1, to=neighbour)
            async with asyncio.timeout(2):
                error = await host.run_until_failed()
            assert "a bug of ours" in str(error)
            assert isinstance(await client.answer(3, timeout_s=2), OutcomeUnknownError)
            expect(await client.answer(2, timeout_s=2), HostUnavailableError)
            assert host.state == "failed"
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            assert await client.call(1, "look", to="Purse\0p") == 1
            assert await client.call(2, "look", to=neighbour) == 0

    run(main)


def test_a_wall_clock_that_jumps_ahead_forgets_no_idempotency_key(tmp_path, monkeypatch):
    async def main():
        real = partition_module.wall_clock_ms
        async with one_grid(tmp_path) as (_, client):

            async def add(key):
                return await client.with_options(idempotency_key=key).get(Purse, "p").add(1)

            assert await add("order") == 1
            monkeypatch.setattr(partition_module, "wall_clock_ms", lambda: real() + 26 * 3_600_000)
            for number in range(3):
                await add(f"before {number}")
            await asyncio.sleep(0.05)  # longer than it takes until they are applied
            for number in range(3):
                await add(f"after {number}")
            monkeypatch.setattr(partition_module, "wall_clock_ms", real)
            await asyncio.sleep(0.05)
            assert await add("order") == 1
            assert await client.get(Purse, "p").look() == 7

    run(main)


# -- arguments, sizes

ENCODE = """
import sys
sys.path[:0] = sys.argv[1:]
from review_actors import Labels, Purse
from actorgrid.actor.definition import actor_type_of
tags = {f"tag {n}" for n in range(20)}
method = actor_type_of(Purse).methods["label"]
print(method.encode_args((Labels(tags),), {}).hex(), method.encode_args((Labels(tags, {2: tags, 1: tags}),), {}).hex())
"""


def test_a_set_inside_a_dataclass_argument_is_encoded_the_same_under_every_hash_seed():
    here = Path(__file__).parent
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ENCODE, str(here), str(here.parents[1])],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")
    ]
    outputs = [process.communicate(timeout=20)[0].split() for process in started]
    assert all(len(output) == 2 for output in outputs)
    assert len({output[0] for output in outputs}) == 1, "a set in a dataclass"
    assert len({output[1] for output in outputs}) == 1, "a set in a dictionary with int keys in a dataclass"


@pytest.mark.parametrize("method", ["swell", "swell_entries"])
def test_a_turn_that_changes_more_than_twelve_mib_is_refused_in_clear_words(tmp_path, method):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            purse = client.get(Purse, "p")
            with pytest.raises(ActorError, match=f"one turn changed .* allowed are {12 * MIB}"):
                await getattr(purse, method)(13)
            assert await purse.sizes() == (0, 0, 0)
            assert await purse.add(1) == 1
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Purse, "p").sizes() == (1, 0, 0)

    run(main)


def test_a_reentrant_turn_that_changes_more_than_twelve_mib_is_refused(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError, match=f"allowed are {12 * MIB}"):
                await client.get(Home, "h").receive_much()
            assert await client.get(Home, "h").size() == 0

    run(main)
