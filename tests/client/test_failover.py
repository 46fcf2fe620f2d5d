"""A host is gone: who is asked, how often, and over which connections the news comes."""

import asyncio
import itertools
import random
import time

import pytest
from samples import QUICK, Account
from stand_in import CLUSTER_ID, SILENCE, StandInHost, make_map, run

from actorgrid import grid
from actorgrid.ambient import new_client_id
from actorgrid.client.caller import Caller
from actorgrid.errors import AccessDeniedError, NotPrimaryError
from actorgrid.settings import ClientSettings, WireSettings

#: Doubling up to this, the pause between two questions would soon be what callers wait for.
PATIENT = ClientSettings(timeout_s=10, connect_timeout_s=0.5, retry_first_s=0.005, retry_max_s=5)


async def hosts_of_one_grid(count, primary=0):
    hosts = [await StandInHost(f"node-{i}").start() for i in range(count)]
    for host in hosts:
        host.map = make_map(hosts, primary=primary, epoch=5)
    return hosts


async def warm(client, hosts):
    """One call, and the connections that follow from it."""
    await client.get(Account, "alice").deposit(1)
    for host in hosts:
        await host.until(lambda host=host: host.is_connected, 2)
    await asyncio.sleep(0.02)  # until the welcomes are read


def test_others_are_asked_at_once_and_again_until_one_of_them_knows_the_new_primary():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid(3)
        asked = []
        loop = asyncio.get_running_loop()
        async with grid.connect(old.address, settings=PATIENT) as client:
            await warm(client, hosts)
            for host in (new, third):
                on_frame = host.on_frame
                host.on_frame = lambda connection, message, on_frame=on_frame: (asked.append(loop.time()), on_frame(connection, message))
            old.answer = lambda received: SILENCE
            call = client.get(Account, "alice").deposit(2)
            await old.until_calls(2)
            lost_at = loop.time()
            await old.stop()
            await asyncio.sleep(0.9)  # the election
            new.map = third.map = make_map(hosts, primary=1, epoch=6)
            knows_at = loop.time()
            assert await call == 1
            assert loop.time() - knows_at < 0.25
        assert asked[0] - lost_at < 0.03
        questions = [at for at in asked if at < knows_at]
        pauses = [later - earlier for earlier, later in itertools.pairwise(questions)]
        assert 7 <= len(questions) <= 30
        assert max(pauses) < 0.2
        assert max(pauses[:3]) < 0.08
        assert [(received.number, received.again) for received in new.calls] == [(2, True)]

    run(main)


def test_a_new_call_after_the_failover_makes_the_client_look_for_the_primary():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid(3)
        async with grid.connect(old.address, settings=PATIENT) as client:
            await warm(client, hosts)
            await old.stop()
            await asyncio.sleep(0.05)
            assert third.maps_asked == new.maps_asked == 0, "no call waits, so nobody is asked"
            new.map = third.map = make_map(hosts, primary=1, epoch=6)
            started = time.monotonic()
            assert await client.get(Account, "alice").deposit(2) == 1
            assert time.monotonic() - started < 0.3

    run(main)


def test_a_host_that_does_not_answer_the_question_is_not_waited_for():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid(3)
        async with grid.connect(old.address, settings=PATIENT) as client:
            await warm(client, hosts)
            new.is_silent = True
            third.is_silent = True
            old.answer = lambda received: SILENCE
            call = client.get(Account, "alice").deposit(2)
            await old.until_calls(2)
            await old.stop()
            await asyncio.sleep(0.05)
            asked_first = new if new.maps_asked else third
            asked_next = third if new.maps_asked else new
            asked_next.is_silent = False
            asked_next.map = make_map(hosts, primary=1 if asked_next is new else 2, epoch=6)
            started = time.monotonic()
            assert await call == 1
            assert time.monotonic() - started < 0.7
            assert asked_first.maps_asked == 1

    run(main)


def test_a_client_hears_from_hosts_that_it_never_called():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid(3)
        async with grid.connect(old.address, settings=PATIENT) as client:
            await asyncio.sleep(0.05)
            assert not new.is_connected, "nothing was called, so nothing needs to be heard"
            await warm(client, hosts)
            old.answer = lambda received: SILENCE
            call = client.get(Account, "alice").deposit(2)
            await old.until_calls(2)
            old.is_silent = True  # like SIGSTOP: the connection stands
            started = time.monotonic()
            third.push(make_map(hosts, primary=1, epoch=6))
            assert await call == 1
            assert time.monotonic() - started < 0.3
        assert [host.maps_asked for host in hosts] == [0, 0, 0]

    run(main)


def test_in_a_large_grid_a_client_is_connected_to_the_hosts_it_calls_and_two_more():
    async def main():
        hosts = await hosts_of_one_grid(20, primary=3)
        settings = ClientSettings(timeout_s=10)
        async with grid.connect(hosts[3].address, settings=settings) as client:
            await client.get(Account, "alice").deposit(1)
            await asyncio.sleep(0.1)
            connected = [host for host in hosts if host.is_connected]
            assert len(connected) == 3
            assert hosts[3] in connected
            spare = next(host for host in connected if host is not hosts[3])
            await spare.stop()
            deadline = time.monotonic() + 3
            while sum(host.is_connected for host in hosts) < 3:
                assert time.monotonic() < deadline
                await client.get(Account, "alice").deposit(1)
                await asyncio.sleep(0.03)
            assert not spare.is_connected

    run(main)


def test_a_fellow_that_was_away_is_connected_again_while_calls_are_made():
    async def main():
        one, other = hosts = await hosts_of_one_grid(2)
        async with grid.connect(one.address, settings=QUICK) as client:
            await warm(client, hosts)
            await other.stop()
            asked = one.maps_asked
            for _ in range(10):
                await client.get(Account, "alice").deposit(1)
                await asyncio.sleep(0.03)
            assert one.maps_asked == asked, "no call waits for it, so the map is as good as it was"
            await other.start()
            deadline = time.monotonic() + 4
            while not other.is_connected:
                assert time.monotonic() < deadline
                await client.get(Account, "alice").deposit(1)
                await asyncio.sleep(0.03)

    run(main)


def test_a_fellow_that_refuses_this_client_is_not_asked_again():
    async def main():
        one, other = await hosts_of_one_grid(2)
        other.refuse = AccessDeniedError("who are you?")
        async with grid.connect(one.address, settings=QUICK) as client:
            for _ in range(50):
                await client.get(Account, "alice").deposit(1)
                await asyncio.sleep(0.03)
        assert len(other.connections) == 1

    run(main)


def test_a_hosts_own_caller_keeps_no_connections_that_its_calls_do_not_need():
    async def main():
        hosts = await hosts_of_one_grid(3)
        caller = Caller(client_id=new_client_id(), settings=QUICK, wire=WireSettings(), rng=random.Random(1), role="host")
        caller.set_map(hosts[0].map)
        lane = caller.lane_of("Account\0alice")
        for _ in range(5):
            await caller.submit(lane, "Account\0alice", "deposit", b"\x91\x01", bytes)
            await asyncio.sleep(0.03)
        assert [host.is_connected for host in hosts] == [True, False, False]
        await caller.close()

    run(main)


def test_links_that_lead_nowhere_are_forgotten():
    async def main():
        host, _ = hosts = await hosts_of_one_grid(2)
        caller = Caller(
            client_id=new_client_id(), settings=QUICK, wire=WireSettings(), rng=random.Random(1), seeds=[("127.0.0.1", host.port)],
            cluster_id=CLUSTER_ID,
        )  # fmt: skip
        await caller.open(5)
        lane = caller.lane_of("Account\0alice")
        # A host that comes back on another port each time.
        for version in range(2, 30):
            told = make_map(hosts, primary=0, epoch=5, version=version)
            told.hosts[1] = type(told.hosts[1])("node-1", "127.0.0.1", 40_000 + version)
            host.push(told)
            await caller.submit(lane, "Account\0alice", "deposit", b"\x91\x01", bytes)
            await asyncio.sleep(0.03)
        host.push(make_map(hosts, primary=0, epoch=5, version=30))
        for _ in range(3):
            await caller.submit(lane, "Account\0alice", "deposit", b"\x91\x01", bytes)
            await asyncio.sleep(0.03)
        assert len(list(caller._router.links)) <= 3
        await caller.close()

    run(main)


@pytest.mark.parametrize("seed", range(3))
def test_primaries_that_move_all_the_time_cost_no_call(seed):
    """Each host serves what it is primary of; a deposed one says nothing, refuses, or points backwards. Some die and return."""

    async def main():
        rng = random.Random(seed)
        hosts = [await StandInHost(f"node-{i}").start() for i in range(3)]
        primaries, epochs = [i % 3 for i in range(8)], [1] * 8
        done = {}

        def told(stale=0.0):
            message = make_map(hosts, primary=0, epoch=1, secondaries=[])
            for i in range(8):
                if rng.random() >= stale:
                    message.primaries[i], message.epochs[i] = primaries[i], epochs[i]
            return message

        def serve(me):
            def answer(received):
                at = received.group.partition - 1
                if primaries[at] != me:
                    if rng.random() < 0.3:
                        return SILENCE
                    there = rng.choice([primaries[at], (me + 1) % 3])
                    epoch = epochs[at] if there == primaries[at] else max(0, epochs[at] - 2)
                    return NotPrimaryError("moved", primary=f"node-{there}@{hosts[there].address}", epoch=epoch)
                return done.setdefault((received.group.client_id, received.number), received.args[0])

            return answer

        for me, host in enumerate(hosts):
            host.answer = serve(me)
            host.map = told()
        moves = 0

        async def move():
            nonlocal moves
            while True:
                await asyncio.sleep(0.02)
                at = rng.randrange(8)
                primaries[at], epochs[at] = (primaries[at] + rng.randrange(1, 3)) % 3, epochs[at] + 1
                moves += 1
                for host in rng.sample(hosts, 2):
                    host.push(told(stale=0.3))
                if rng.random() < 0.1:
                    rng.choice(hosts).connections[-1].drop()

        async with grid.connect(",".join(host.address for host in hosts), settings=QUICK, timeout_s=15) as client:
            mover = asyncio.create_task(move())
            answered = 0

            async def caller(i):
                nonlocal answered
                for number in itertools.count():
                    if moves >= 100:
                        return
                    assert await client.get(Account, f"a{i}").deposit(number) == number
                    answered += 1

            async with asyncio.TaskGroup() as group:
                for i in range(10):
                    group.create_task(caller(i))
            mover.cancel()
        assert answered > 500

    run(main, 60)
