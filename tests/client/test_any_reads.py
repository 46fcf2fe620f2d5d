"""Reads that any replica may answer: spread, taken elsewhere when one fails, and nobody else's calls know of them."""

import asyncio
import time

import pytest
from samples import QUICK, Account
from stand_in import SILENCE, Applied, StandInHost, begin_anew, make_map, run

from actorgrid import grid
from actorgrid.errors import (
    AccessDeniedError,
    ActorError,
    DeadlineExceededError,
    HostUnavailableError,
    NotPrimaryError,
    NoWriteQuorumError,
    OutcomeUnknownError,
    OverloadedError,
    PayloadTooLargeError,
)
from actorgrid.settings import ClientSettings

SLOW = ClientSettings(timeout_s=10, connect_timeout_s=0.5, retry_first_s=4, retry_max_s=4)


async def replicas(count=3, **changes):
    """Hosts that each have every partition; the first is the primary."""
    hosts = [await StandInHost(f"node-{i}", **changes).start() for i in range(count)]
    for i, host in enumerate(hosts):
        host.map = make_map(hosts, primary=0, epoch=5, secondaries=list(range(1, count)), partitions=hosts[0].partitions)
        host.answer = lambda received, i=i: Applied(i, 100 + i)
    return hosts


async def warm(client, hosts):
    """A client that is connected to all of them; what this took is forgotten."""
    await client.get(Account, "alice").read_about()
    await begin_anew(hosts)


def test_reads_are_spread_over_all_replicas_and_tell_what_they_reflect():
    async def main():
        hosts = await replicas()
        hosts[0].positions = dict.fromkeys(range(1, 9), 70)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            alice = client.get(Account, "alice")
            for make in (lambda: alice.read_about("x"), lambda: client.call(Account.read_about, "alice", "x")):
                reads = [make() for _ in range(30)]
                results = [await read for read in reads]
                assert [read.applied_lsn for read in reads] == [100 + result for result in results]
                assert sorted(results) == [0] * 10 + [1] * 10 + [2] * 10
            assert sorted(await client.map(Account.read_about, [("alice",)] * 30)) == [0] * 10 + [1] * 10 + [2] * 10
        for host in hosts:
            assert len(host.calls) == 30
            assert len(host.frames) == 3, "the reads of a tick travel in one frame to each host"
            for received in host.calls:
                assert received.any_replica
                assert not received.again
                # However far behind a replica is, this fits it, and it frees nothing.
                assert (received.group.lowest, received.group.since_lsn, received.group.client_id) == (0, 0, b"")

    run(main)


def test_every_other_call_goes_to_the_primary_and_has_no_position():
    async def main():
        hosts = await replicas()
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            alice = client.get(Account, "alice")
            hosts[0].answer = lambda received: 0
            calls = [alice.read_balance(), alice.deposit(1), client.call_by_name("Account", "alice", "read_about")]
            assert [await call for call in calls] == [0, 0, 0]
            assert [call.applied_lsn for call in calls] == [0, 0, 0]
        assert [len(host.calls) for host in hosts] == [3, 0, 0]
        assert [received.call.extra for received in hosts[0].calls] == [None] * 3

    run(main)


def test_options_and_errors_are_those_of_other_calls():
    async def main():
        hosts = await replicas(1)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            hosts[0].answer = lambda received: ActorError("no")
            with pytest.raises(ActorError, match="no"):
                await client.get(Account, "alice").read_about()
            assert await client.map(Account.read_about, [("a",), ("b", 7)], return_errors=True) != []
            hosts[0].answer = lambda received: SILENCE
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError, match=r"Account/alice\.read_about: outcome unknown, no answer within 0\.1 s"):
                await client.with_options(timeout_s=0.1, idempotency_key="k").get(Account, "alice").read_about()
            assert time.monotonic() - started < 0.5
            assert hosts[0].calls[-1].call.timeout_ms == 100
            with pytest.raises(PayloadTooLargeError, match="read_about"):
                client.get(Account, "alice").read_about("x" * (17 << 20))
            few = grid.connect(hosts[0].address, settings=ClientSettings(in_flight_max=2))
            async with few:
                reads = [few.get(Account, "alice").read_about() for _ in range(2)]
                with pytest.raises(OverloadedError, match="2 calls in flight"):
                    few.get(Account, "alice").read_about()
                reads[0].cancel()
                reads.append(few.get(Account, "alice").read_about())
                for read in reads:
                    read.cancel()
                assert few._caller._pending == {}
                assert few._caller._pending_bytes == 0

    run(main)


def test_a_replica_that_says_only_the_primary_can_answer_is_followed_by_the_primary():
    async def main():
        hosts = await replicas(5)
        for host in hosts[1:]:
            host.answer = lambda received: NotPrimaryError("its type has hooks", retry_after_s=4)
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            await warm(client, hosts)
            reads = [client.get(Account, "alice").read_about() for _ in range(20)]
            assert [await read for read in reads] == [0] * 20
            assert [read.applied_lsn for read in reads] == [100] * 20
        assert len(hosts[0].calls) == 20
        assert sum(len(host.calls) for host in hosts[1:]) == 16, "each read was refused at most once"
        assert not any(received.again for received in hosts[0].calls)

    run(main)


def test_a_replica_that_is_not_ready_is_followed_by_another():
    async def main():
        hosts = await replicas()
        hosts[0].answer = hosts[1].answer = lambda received: HostUnavailableError("starting", retry_after_s=4)
        async with grid.connect(hosts[2].address, settings=SLOW) as client:
            await warm(client, hosts)
            assert [await client.get(Account, "alice").read_about() for _ in range(9)] == [2] * 9
        assert len(hosts[2].calls) == 9
        # Each numbered call was with each host once at most.
        for host in hosts:
            assert len({received.number for received in host.calls}) == len(host.calls)

    run(main)


def test_when_all_replicas_refuse_the_read_waits_and_begins_anew():
    async def main():
        hosts = await replicas()
        for i, host in enumerate(hosts):
            host.answer = lambda received, i=i: i if sum(len(each.calls) for each in hosts) > 9 else HostUnavailableError("starting")
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            assert await client.get(Account, "alice").read_about() in (0, 1, 2)
        assert sum(len(host.calls) for host in hosts) == 10
        with_each = [len(host.calls) for host in hosts]
        assert max(with_each) - min(with_each) <= 2

    run(main)


def test_a_full_replica_is_left_alone_for_the_time_it_names():
    async def main():
        hosts = await replicas()
        for host in hosts:
            host.answer = lambda received: OverloadedError("full", retry_after_s=0.3) if sum(len(h.calls) for h in hosts) == 1 else 5
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            started = time.monotonic()
            assert await client.get(Account, "alice").read_about() == 5
            assert time.monotonic() - started >= 0.28

    run(main)


def test_a_lost_connection_costs_a_read_nothing():
    async def main():
        hosts = await replicas()
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            await warm(client, hosts)
            hosts[1].answer = hosts[2].answer = lambda received: SILENCE
            reads = [client.get(Account, "alice").read_about() for _ in range(9)]
            await hosts[2].until_calls(3)
            started = time.monotonic()
            await hosts[2].stop()
            await hosts[1].until_calls(4)
            await hosts[1].stop()
            assert [await read for read in reads] == [0] * 9
            assert time.monotonic() - started < 1
        assert sorted(received.number for received in hosts[0].calls) == [2, 3, 4, 5, 6, 7, 8, 9, 10]

    run(main)


def test_a_partition_whose_primary_is_gone_is_still_read():
    async def main():
        hosts = await replicas()
        async with grid.connect(hosts[1].address, settings=SLOW) as client:
            await warm(client, hosts)
            await hosts[0].stop()
            await asyncio.sleep(0.02)
            started = time.monotonic()
            assert sorted([await client.get(Account, "alice").read_about() for _ in range(10)]) == [1] * 5 + [2] * 5
            hosts[1].push(make_map(hosts, primary=-1, epoch=6, secondaries=[0, 1, 2]))
            await asyncio.sleep(0.02)
            assert {await client.get(Account, "alice").read_about() for _ in range(10)} == {1, 2}
            assert time.monotonic() - started < 1

    run(main)


def test_a_read_that_finds_nobody_goes_out_when_the_first_replica_is_there():
    async def main():
        hosts = await replicas()
        seed = await StandInHost("seed").start()
        seed.map = make_map([*hosts, seed], primary=0, epoch=5, secondaries=[1, 2])
        for host in hosts:
            await host.stop()
        async with grid.connect(seed.address, settings=SLOW, timeout_s=20) as client:
            read = client.get(Account, "alice").read_about()
            with pytest.raises(HostUnavailableError, match=r"no replica of partition \d can be asked: .*not connected|refused"):
                await client.with_options(timeout_s=0.2).get(Account, "bob").read_about()
            assert not read.done()
            await hosts[1].start()
            started = time.monotonic()
            while not hosts[1].is_connected:  # calls make the client look for its fellows
                client.get(Account, "carol").deposit(1).add_done_callback(lambda call: call.exception())
                await asyncio.sleep(0.03)
                assert time.monotonic() - started < 8
            assert await asyncio.wait_for(read, 1) == 1
            await client.close()

    run(main, 30)


def test_a_silent_replica_costs_a_second_and_its_late_answer_is_as_good():
    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            await warm(client, hosts)
            hosts[0].answer = hosts[1].answer = lambda received: SILENCE
            one, other = [client.get(Account, "alice").read_about() for _ in range(2)]
            started = time.monotonic()
            await hosts[0].until_calls(2)
            await hosts[1].until_calls(2)
            assert 0.9 < time.monotonic() - started < 2.5
            # Both hosts have both reads now: the first answer counts, from whom it comes.
            for number, read in ((2, one), (3, other)):
                first = next(received for host in hosts for received in host.calls if received.number == number and not received.again)
                second = next(received for host in hosts for received in host.calls if received.number == number and received.again)
                first.reply(ActorError("late, and not what was asked last"))
                first.reply(Applied(8, 33))
                assert (await read, read.applied_lsn) == (8, 33)
                second.reply(9)
            await asyncio.sleep(1.2)
            assert [len(host.calls) for host in hosts] == [2, 2]

    run(main)


def test_a_pending_read_holds_back_lowest_anywhere_and_no_partitions_own_lowest():
    async def main():
        (host,) = await replicas(1, partitions=1)
        host.answer = lambda received: SILENCE if received.any_replica else 1
        async with grid.connect(host.address, settings=ClientSettings(timeout_s=10, session_window=16)) as client:
            alice = client.get(Account, "alice")
            first = alice.read_about()
            own = client.with_options(timeout_s=9).get(Account, "alice").read_about()
            await host.until_calls(2)
            for _ in range(40):  # a window that reads had a part in would be full
                await alice.deposit(1)
            host.calls[0].reply(1)
            await first
            await alice.deposit(1)
            host.calls[1].reply(1)
            await own
            await alice.deposit(1)
        headers = [(received.number, received.group.lowest, received.group.lowest_anywhere) for received in host.calls[2:]]
        assert headers == [(number, number, 1) for number in range(3, 43)] + [(43, 43, 2), (44, 44, 44)]

    run(main)


def test_a_read_overtakes_nothing_of_the_lane_and_is_overtaken_by_nothing():
    """Writes of one partition go out in the order in which they were made, reads or not."""

    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            alice = client.get(Account, "alice")
            calls = []
            for i in range(20):
                calls += [alice.deposit(i), alice.read_about()]
            for call in calls:
                await call
        writes = [received for received in hosts[0].calls if received.call.method == "deposit"]
        assert [received.args[0] for received in writes] == list(range(20))
        assert len({received.frame_number for received in writes}) == 1
        assert all(received.group.lowest == writes[0].number for received in writes)

    run(main)


def test_reads_follow_the_replicas_that_the_map_names():
    async def main():
        hosts = await replicas(4)
        for host in hosts:
            host.map = make_map(hosts, primary=0, epoch=5, secondaries=[1])
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            assert {await client.get(Account, "alice").read_about() for _ in range(8)} == {0, 1}
            hosts[0].push(make_map(hosts, primary=0, epoch=5, secondaries=[2, 3]))
            await asyncio.sleep(0.02)
            assert {await client.get(Account, "alice").read_about() for _ in range(9)} == {0, 2, 3}
            hosts[0].push(make_map(hosts, primary=2, epoch=6, secondaries=[1]))
            await asyncio.sleep(0.02)
            assert {await client.get(Account, "alice").read_about() for _ in range(8)} == {1, 2}

    run(main)


def test_a_hint_met_by_a_read_serves_the_other_calls_too():
    async def main():
        hosts = await replicas()
        refusal = NotPrimaryError("moved", primary=f"node-2@{hosts[2].address}", epoch=9)
        hosts[0].answer = hosts[1].answer = lambda received: refusal
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            assert await client.get(Account, "alice").read_about() == 2
            assert await client.get(Account, "alice").deposit(1) == 2
            assert 9 in client.partition_map.epochs
        assert all(received.any_replica for host in hosts[:2] for received in host.calls)

    run(main)


def test_a_new_primary_does_not_take_reads_from_the_replica_that_has_them():
    async def main():
        hosts = await replicas()
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            await warm(client, hosts)
            for host in hosts:
                host.answer = lambda received: SILENCE
            reads = [client.get(Account, "alice").read_about() for _ in range(6)]
            for host in hosts:
                await host.until_calls(2)
            hosts[0].push(make_map(hosts, primary=1, epoch=6, secondaries=[0, 2]))
            await asyncio.sleep(0.05)
            assert [len(host.calls) for host in hosts] == [2, 2, 2]
            for host in hosts:
                for received in host.calls:
                    received.reply(4)
            assert [await read for read in reads] == [4] * 6

    run(main)


def test_many_large_reads_are_split_into_frames():
    async def main():
        hosts = await replicas(2, partitions=3)
        for host in hosts:
            host.frame_bytes_max = 64 * 1024
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            for host in hosts:
                host.answer = lambda received: len(received.args[0])
            results = await client.map(Account.read_about, [(f"a{i}", "x" * (10_000 + i)) for i in range(100)])
            assert results == [10_000 + i for i in range(100)]
            largest = await client.get(Account, "alice").read_about("x" * 65_000)
            assert largest == 65_000
            with pytest.raises(PayloadTooLargeError):
                await client.get(Account, "alice").read_about("x" * 65_500)
        assert all(len(host.frames) > 5 for host in hosts)

    run(main)


def test_a_read_too_large_for_the_next_replica_fails_alone():
    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            for host in hosts:
                host.answer = lambda received: SILENCE
            reads = [client.get(Account, "alice").read_about("x" * 100_000) for _ in range(2)]
            for host in hosts:
                await host.until_calls(1)
                host.frame_bytes_max = 64 * 1024
            for host in hosts:
                for connection in host.connections:
                    connection.drop()
            for read in reads:
                with pytest.raises(OutcomeUnknownError, match="bytes are more than one call may have"):
                    await read

    run(main)


def test_a_replica_that_does_not_read_is_offered_no_more_than_it_takes():
    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=ClientSettings(timeout_s=10)) as client:
            await warm(client, hosts)
            for host in hosts:
                host.answer = lambda received: len(received.args[0])
            for connection in hosts[1].connections:
                connection.transport.pause_reading()
            reads = [client.get(Account, "alice").read_about("x" * 100_000) for _ in range(600)]
            await hosts[0].until_calls(350)  # more than its half: what the other does not take goes there
            link = next(link for link in client._caller._router.links if link.name == hosts[1].address)
            assert link.connection._transport.get_write_buffer_size() < 20 << 20
            for connection in hosts[1].connections:
                connection.transport.resume_reading()
            assert [await read for read in reads] == [100_000] * 600

    run(main)


def test_closing_ends_pending_reads():
    async def main():
        hosts = await replicas(2)
        hosts[0].answer = hosts[1].answer = lambda received: SILENCE
        away = await StandInHost("away").start()
        client = grid.connect(hosts[0].address, settings=QUICK)
        async with client:
            sent = [client.get(Account, "alice").read_about() for _ in range(2)]
            await hosts[0].until_calls(1)
            hosts[0].push(make_map([*hosts, away], version=2, primary=-1, epoch=7, secondaries=[]))
            unsent = client.get(Account, "alice").read_about()
        for read in sent:
            with pytest.raises((OutcomeUnknownError, HostUnavailableError), match="client was closed"):
                await read
        with pytest.raises(HostUnavailableError, match="client was closed"):
            await unsent

    run(main)


def test_a_read_is_refused_in_another_loop():
    async def main():
        hosts = await replicas(1)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            with pytest.raises(Exception, match="belongs to another event loop"):
                await asyncio.to_thread(client.get(Account, "alice").read_about)
            assert client._caller._pending == {}
            assert await client.get(Account, "alice").read_about() == 0

    run(main)


def test_reads_need_no_write_quorum():
    async def main():
        hosts = await replicas()
        quorum_is_gone = NoWriteQuorumError("two of three are away")
        for host in hosts:
            host.answer = lambda received: Applied(5, 12) if received.any_replica else quorum_is_gone
        async with grid.connect(hosts[0].address, settings=QUICK, timeout_s=0.3) as client:
            assert await client.get(Account, "alice").read_about() == 5
            with pytest.raises(NoWriteQuorumError):
                await client.get(Account, "alice").deposit(1)

    run(main)


def test_replicas_that_all_refuse_this_client_are_not_asked_for_ever():
    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            refusal = AccessDeniedError("who are you?")
            hosts[1].refuse = refusal
            for connection in hosts[1].connections:
                connection.drop()
            await asyncio.sleep(0.02)
            assert await client.get(Account, "alice").read_about() == 0
            hosts[0].refuse = refusal
            hosts[0].answer = lambda received: SILENCE
            doubtful = client.get(Account, "alice").read_about()
            await hosts[0].until_calls(2)
            for connection in hosts[0].connections:
                connection.drop()
            started = time.monotonic()
            with pytest.raises(OutcomeUnknownError, match=r"a send was lost, and .* refuses this client: who are you"):
                await doubtful
            with pytest.raises(AccessDeniedError, match="who are you"):
                await client.get(Account, "alice").read_about()
            assert time.monotonic() - started < QUICK.timeout_s  # refused, and not given up at the deadline
            hosts[1].refuse = None
            assert await client.get(Account, "alice").read_about() == 1

    run(main)


def test_one_replica_that_refuses_this_client_does_not_fail_a_read_that_another_may_answer():
    async def main():
        hosts = await replicas(2)
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            await warm(client, hosts)
            hosts[1].refuse = AccessDeniedError("who are you?")
            for connection in hosts[1].connections:
                connection.drop()
            await hosts[0].stop()
            await asyncio.sleep(0.02)
            read = client.get(Account, "alice").read_about()
            await asyncio.sleep(0.2)
            assert not read.done()
            await hosts[0].start()
            assert await read == 0
        assert len(hosts[1].connections) > 1, "it was asked, and refused"

    run(main)
