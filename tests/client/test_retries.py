"""What goes wrong on the way: lost connections, wrong hosts, refusals, deadlines, cancellation, hostile frames."""

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
from actorgrid.errors import (
    AccessDeniedError,
    ActorError,
    ActorGridError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    NotPrimaryError,
    NoWriteQuorumError,
    OutcomeUnknownError,
    OverloadedError,
    PayloadTooLargeError,
    ProtocolError,
    SessionExpiredError,
    WriteInDoubtError,
)
from actorgrid.settings import ClientSettings, WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import frame


def same_call(one, other):
    """Two sends of one call: all that identifies it is the same, byte for byte."""
    return (one.number, one.call.address, one.call.method, bytes(one.call.args)) == (
        other.number,
        other.call.address,
        other.call.method,
        bytes(other.call.args),
    )


def test_after_a_lost_connection_the_call_is_sent_again_with_the_same_number_and_again_set():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE if len(host.calls) == 1 else 42
        async with grid.connect(host.address, settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(5, "rent")
            await host.until_calls(1)
            host.connections[0].drop()
            assert await call == 42
        first, second = host.calls
        assert same_call(first, second)
        assert not first.again
        assert second.again
        assert second.connection is not first.connection
        assert second.call.timeout_ms < first.call.timeout_ms
        assert second.group.lowest == second.group.lowest_anywhere == 1

    run(main)


def test_a_host_that_dies_and_returns_on_its_port_costs_no_call():
    async def main():
        host = await StandInHost().start()
        kills = 0
        async with grid.connect(host.address, settings=QUICK) as client:
            done = 0

            async def caller(i):
                nonlocal done
                actor = client.get(Account, f"a{i}")
                while kills < 5:
                    assert await actor.deposit(1) == 1
                    done += 1

            async with asyncio.TaskGroup() as group:
                for i in range(20):
                    group.create_task(caller(i))
                while kills < 5:
                    before = done
                    await host.until(lambda before=before: done >= before + 50)
                    await host.stop()
                    await asyncio.sleep(0.03)
                    await host.start()
                    kills += 1
        assert any(received.again for received in host.calls)
        # Each number belongs to one call for ever, whatever happened to its connection.
        first_by_number = {}
        for received in host.calls:
            assert same_call(first_by_number.setdefault(received.number, received), received)
        assert len(first_by_number) == done

    run(main)


def test_retries_keep_the_order_of_numbers_and_their_place_below_lowest():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.answer = lambda received: SILENCE if len(host.connections) == 1 else 1
        async with grid.connect(host.address, settings=ClientSettings(retry_first_s=0.2)) as client:
            actor = client.get(Account, "alice")
            calls = [actor.deposit(i) for i in range(5)]
            await host.until_calls(5)
            host.connections[0].drop()
            await asyncio.sleep(0.02)
            calls.append(actor.deposit(5))
            for call in calls:
                await call
        again = host.calls[5:]
        assert [received.number for received in again] == [1, 2, 3, 4, 5, 6]
        assert [received.again for received in again] == [True] * 5 + [False]
        assert {received.group.lowest for received in again} == {1}

    run(main)


def test_a_wrong_primary_is_corrected_by_its_hint_at_once():
    async def main():
        old, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        old.map = new.map = make_map([old, new], primary=0)
        old.answer = lambda received: NotPrimaryError("moved", partition=received.group.partition, primary=f"node-1@{new.address}")
        new.answer = lambda received: 7
        slow = ClientSettings(timeout_s=5, retry_first_s=2, retry_max_s=2)  # a test that passes by backoff would take seconds
        async with grid.connect(old.address, settings=slow) as client:
            started = time.monotonic()
            assert await client.get(Account, "alice").deposit(1) == 7
            assert await client.get(Account, "alice").deposit(1) == 7
            assert time.monotonic() - started < 1
        assert [received.number for received in old.calls] == [1]
        assert [(received.number, received.again) for received in new.calls] == [(1, False), (2, False)]

    run(main)


def test_a_wrong_primary_without_a_hint_is_corrected_by_one_map_for_all_calls():
    async def main():
        old, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        old.map = make_map([old, new], primary=0)
        new.answer = lambda received: 7
        slow = ClientSettings(timeout_s=5, retry_first_s=2, retry_max_s=2)
        async with grid.connect(old.address, settings=slow) as client:
            old.map = new.map = make_map([old, new], primary=1, version=2)
            old.answer = lambda received: NotPrimaryError("moved", partition=received.group.partition)
            started = time.monotonic()
            assert await client.map(Account.deposit, [(f"a{i}", 1) for i in range(100)]) == [7] * 100
            assert time.monotonic() - started < 1
            assert client.partition_map.version == 2
        assert old.maps_asked == 1
        assert len(new.calls) == 100

    run(main)


def test_a_wrong_primary_that_nobody_corrects_is_asked_with_growing_pauses():
    async def main():
        host = await StandInHost().start()
        times = []
        loop = asyncio.get_running_loop()

        def answer(received):
            times.append(loop.time())
            return NotPrimaryError("not me") if len(times) < 7 else 1

        host.answer = answer
        async with grid.connect(host.address, settings=ClientSettings(timeout_s=5, retry_first_s=0.01, retry_max_s=0.5)) as client:
            assert await client.get(Account, "alice").deposit(1) == 1
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        for index, pause in enumerate(pauses):
            assert 0.9 * 0.005 * 2**index <= pause <= 0.01 * 2**index + 0.2
        assert 1 <= host.maps_asked <= 7

    run(main)


def test_a_map_that_the_host_pushes_moves_the_calls_that_wait():
    async def main():
        old, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        old.map = new.map = make_map([old, new], primary=0)
        old.answer = lambda received: SILENCE
        async with grid.connect(old.address, settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(1)
            await old.until_calls(1)
            old.connections[0].send(make_map([old, new], primary=1, version=2))
            old.calls[0].reply(NotPrimaryError("moved"))
            assert await call == 1
            old.connections[0].send(make_map([old, new], primary=0, version=1))  # an older map changes nothing
            await asyncio.sleep(0.02)
            assert await client.get(Account, "alice").deposit(1) == 1
        assert len(new.calls) == 2

    run(main)


def test_a_dead_primarys_calls_go_to_the_new_one_when_another_host_knows_it():
    async def main():
        old, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        old.map = new.map = make_map([old, new], primary=0)
        old.answer = lambda received: SILENCE
        async with grid.connect(f"{old.address},{new.address}", settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(1)
            await old.until_calls(1)
            new.map = make_map([old, new], primary=1, version=2)
            await old.stop()
            assert await call == 1
        assert [(received.number, received.again) for received in new.calls] == [(1, True)]

    run(main)


def test_calls_to_a_partition_without_primary_wait_until_the_map_names_one():
    async def main():
        host = await StandInHost().start()
        host.map = make_map([host], primary=-1)
        async with grid.connect(host.address, settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(1)
            await host.until(lambda: host.maps_asked >= 3)
            host.map = make_map([host], version=2)
            assert await call == 1
            assert not host.calls[0].again
            host.map = None
        host.map = make_map([host], primary=-1)
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.1) as client:
            with pytest.raises(
                HostUnavailableError,
                match=r"Account/alice\.deposit: nothing sent within 0\.1 s: partition \d has no primary; .*`actorgrid init`",
            ):
                await client.get(Account, "alice").deposit(1)

    run(main)


@pytest.mark.parametrize(
    "refusal", [NoWriteQuorumError("two of three are away"), OverloadedError("full"), HostUnavailableError("starting")]
)
def test_a_refusal_that_will_pass_is_retried(refusal):
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: refusal if len(host.calls) < 4 else 9
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 9
        assert [received.again for received in host.calls] == [False] * 4, "each was refused, so nothing can have been executed"
        assert all(same_call(host.calls[0], received) for received in host.calls)

    run(main)


def test_a_host_is_not_asked_before_the_time_it_named():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: OverloadedError("full", retry_after_s=0.3) if len(host.calls) == 1 else 9
        async with grid.connect(host.address, settings=QUICK) as client:
            started = time.monotonic()
            assert await client.get(Account, "alice").deposit(1) == 9
            assert 0.29 <= time.monotonic() - started < 2

    run(main)


def test_a_refusal_that_comes_twice_leads_to_one_retry():
    async def main():
        host = await StandInHost().start()

        def answer(received):
            if len(host.calls) > 1:
                return 9
            received.reply(OverloadedError("full"))
            return OverloadedError("full")

        host.answer = answer
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 9
            await asyncio.sleep(0.05)
        assert len(host.calls) == 2
        assert len(host.connections) == 1

    run(main)


def test_an_answer_in_doubt_is_asked_again_under_the_same_number():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: WriteInDoubtError("the disk did not say") if len(host.calls) == 1 else 9
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 9
            host.answer = lambda received: WriteInDoubtError("the disk did not say")
            with pytest.raises(DeadlineExceededError, match="the disk did not say"):
                await client.with_options(timeout_s=0.1).get(Account, "alice").deposit(1)
        assert same_call(host.calls[0], host.calls[1])
        assert host.calls[1].again

    run(main)


@pytest.mark.parametrize("error", [ActorError("no", remote_type="ValueError"), InvalidArgumentError("bad"), AccessDeniedError("no")])
def test_every_other_error_reaches_the_caller_at_once(error):
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: error
        async with grid.connect(host.address, settings=QUICK) as client:
            with pytest.raises(type(error)) as caught:
                await client.get(Account, "alice").deposit(1)
            assert caught.value.args == error.args
        assert len(host.calls) == 1

    run(main)


def test_a_forgotten_session_is_renewed_when_nothing_can_have_happened():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.answer = lambda received: 1 if received.group.since_lsn >= 90 else SessionExpiredError("who are you?", current_lsn=90)
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.map(Account.deposit, [(f"a{i}", 1) for i in range(10)]) == [1] * 10
            assert len(host.calls) == 20
            assert await client.call(Account.deposit, "alice", 1) == 1  # the position is remembered for new calls
        assert [received.group.since_lsn for received in host.calls] == [0] * 10 + [90] * 11
        assert [received.number for received in host.calls] == [*range(1, 11), *range(1, 11), 11]
        assert not host.calls[20].again

    run(main)


def test_a_forgotten_session_is_an_error_when_an_earlier_send_was_lost():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE if len(host.calls) == 1 else SessionExpiredError("who are you?", current_lsn=90)
        async with grid.connect(host.address, settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(1)
            await host.until_calls(1)
            host.connections[0].drop()
            with pytest.raises(SessionExpiredError):
                await call
        assert [received.group.since_lsn for received in host.calls] == [0, 0]

    run(main)


def test_a_grid_that_keeps_forgetting_is_not_asked_for_ever():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SessionExpiredError("who are you?", current_lsn=received.group.since_lsn + 10)
        async with grid.connect(host.address, settings=QUICK) as client:
            with pytest.raises(SessionExpiredError):
                await client.get(Account, "alice").deposit(1)
        assert len(host.calls) == 6

    run(main)


def test_the_deadline_says_unknown_when_a_send_was_never_answered():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.2) as client:
            started = time.monotonic()
            with pytest.raises(
                DeadlineExceededError, match=r"Account/alice\.deposit: outcome unknown, no answer within 0\.2 s and 1 attempt$"
            ):
                await client.get(Account, "alice").deposit(1)
            assert 0.19 <= time.monotonic() - started < 1.0
            call = client.with_options(timeout_s=0.3).get(Account, "alice").deposit(1)
            await host.until_calls(2)
            host.connections[0].drop()
            with pytest.raises(DeadlineExceededError, match=r"0\.3 s and 2 attempts; last error: 127.*connection lost"):
                await call

    run(main)


def test_the_deadline_gives_the_refusal_itself_when_nothing_can_have_happened():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: NoWriteQuorumError("two of three are away")
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.2) as client:
            with pytest.raises(NoWriteQuorumError, match="two of three are away"):
                await client.get(Account, "alice").deposit(1)
            await host.stop()
            await asyncio.sleep(0.01)
            with pytest.raises(HostUnavailableError, match=r"Account/alice\.deposit: nothing sent within 0\.2 s: 127.*"):
                await client.get(Account, "alice").deposit(1)

    run(main)


def test_calls_expire_each_at_its_own_deadline_and_late_answers_are_ignored():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.25) as client:
            ordinary = client.get(Account, "a").deposit(1)
            short = client.with_options(timeout_s=0.05).get(Account, "a").deposit(2)
            long = client.with_options(timeout_s=5).get(Account, "a").deposit(3)
            with pytest.raises(DeadlineExceededError):
                await short
            assert not ordinary.done()
            with pytest.raises(DeadlineExceededError):
                await ordinary
            assert not long.done()
            for received in host.calls:
                received.reply(received.number)
                received.reply(received.number)  # and once more: a late duplicate
            assert await long == 3
            assert client._caller._pending == {}
            assert client._caller._pending_bytes == 0

    run(main)


def test_a_cancelled_call_leaves_every_table_and_is_never_sent_again():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.answer = lambda received: SILENCE if len(host.connections) == 1 else 1
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            task = asyncio.create_task(_await(alice.deposit(1)))
            other = alice.deposit(2)
            await host.until_calls(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert list(client._caller._pending) == [2]
            never_sent = alice.deposit(3)
            never_sent.cancel()
            third = alice.deposit(4)
            await host.until_calls(3)
            assert host.calls[2].group.lowest == 2  # a cancelled call counts as answered
            host.calls[0].reply(1)  # late
            host.connections[0].drop()
            assert await other == 1
            assert await third == 1
        assert [received.number for received in host.calls] == [1, 2, 4, 2, 4]

    run(main)


async def _await(future):
    return await future


def test_a_cancelled_map_cancels_its_calls():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=QUICK) as client:
            task = asyncio.create_task(client.map(Account.deposit, [(f"a{i}", 1) for i in range(10)]))
            await host.until_calls(10)
            host.calls[3].reply(ActorError("no"))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._caller._pending == {}

    run(main)


def test_closing_ends_every_pending_call():
    async def main():
        host, away = await StandInHost("node-0").start(), await StandInHost("node-1").start()
        host.map = make_map([host, away], primary=0)
        host.answer = lambda received: SILENCE if received.args[0] == 1 else OverloadedError("full", retry_after_s=60)
        client = grid.connect(host.address, settings=QUICK)
        async with client:
            sent = client.get(Account, "alice").deposit(1)
            refused = client.get(Account, "alice").deposit(2)
            await host.until_calls(2)
            await asyncio.sleep(0.01)
            unsent = client.get(Account, "alice").deposit(3)
        with pytest.raises(OutcomeUnknownError, match="outcome unknown, the client was closed"):
            await sent
        for call in (refused, unsent):
            with pytest.raises(HostUnavailableError, match="client was closed"):
                await call
        await client.close()
        await host.until(lambda: all(connection.is_lost for connection in host.connections))

    run(main)


def test_closing_while_a_host_is_away_leaves_no_task():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK) as client:
            await host.stop()
            await asyncio.sleep(0.01)
            call = client.get(Account, "alice").deposit(1)
            await asyncio.sleep(0.05)
        with pytest.raises(HostUnavailableError):
            await call

    run(main)


@pytest.mark.parametrize(
    "poison",
    [
        b"\xff\xff\xff\xff" + b"x" * 100,
        b"\0\0\0\0",
        frame(b"\x92\x63\x01"),
        frame(b"\x92\x05\xc1"),
        frame(b"x"),
        frame(b"\x92\x05" + b"\x91" * 100_000),
        frame(messages.encode((messages.KIND_REPLIES, [(1, 1, "no error")]))),
        frame(messages.encode((messages.KIND_REPLIES, [(1, 1, ("OverloadedError", "full", {"retry_after_s": "soon"}))]))),
        frame(messages.encode((messages.KIND_REPLIES, [(1, 1, ("NotPrimaryError", "no", {"primary": "a@h:1", "epoch": -1}))]))),
        frame(messages.encode((messages.KIND_REPLIES, [(1, 1, ("NotPrimaryError", "no", {"primary": "a@h:1", "partition": "1"}))]))),
        frame(messages.encode((messages.KIND_REPLIES, [(1, 0, 5, -1)]))),
        frame(messages.encode((messages.KIND_MAP, 9, CLUSTER_ID, [], [3]))),
        frame(messages.encode((messages.KIND_MAP, 9, CLUSTER_ID, [], [-1] * 8, [], [[1]]))),
        frame(messages.encode((messages.KIND_MAP, 9, "another grid", [], [-1]))),
        frame(messages.encode((messages.KIND_ADMIN_REPLY, 1, 0, None))),
    ],
    ids=[
        "huge",
        "empty",
        "unknown-kind",
        "garbage",
        "one-byte",
        "nested",
        "no-error",
        "wrong-detail",
        "wrong-epoch",
        "wrong-partition",
        "wrong-position",
        "wrong-map",
        "wrong-secondaries",
        "another-grid",
        "unasked",
    ],
)
def test_a_hostile_frame_closes_the_connection_and_the_call_is_tried_again(poison):
    async def main():
        host = await StandInHost().start()

        def answer(received):
            if len(host.calls) == 1:
                received.connection.send_bytes(poison)
                return SILENCE
            return 5

        host.answer = answer
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 5
            await host.until(lambda: host.connections[0].is_lost)
        assert len(host.connections) == 2
        assert [received.again for received in host.calls] == [False, True]

    run(main)


@pytest.mark.parametrize("seed", range(5))
def test_a_host_that_sends_random_bytes_for_ever_ends_in_the_deadline(seed):
    async def main():
        host = await StandInHost().start()
        rng = random.Random(seed)

        def answer(received):
            received.connection.send_bytes(
                rng.randbytes(rng.randint(5, 3000)) if rng.random() < 0.5 else frame(b"\x92\x05" + rng.randbytes(200))
            )
            return SILENCE

        host.answer = answer
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.4) as client:
            with pytest.raises(DeadlineExceededError):
                await client.get(Account, "alice").deposit(1)
        assert 1 < len(host.connections) < 60

    run(main)


def test_a_host_that_refuses_this_client_fails_its_calls_and_is_not_asked_for_ever():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=QUICK) as client:
            doubtful = client.get(Account, "alice").deposit(1)
            await host.until_calls(1)
            host.refuse = AccessDeniedError("this is grid x, the peer asked for grid y")
            host.connections[0].drop()
            with pytest.raises(OutcomeUnknownError, match=r"a send was lost, and .* refuses this client: this is grid x"):
                await doubtful
            with pytest.raises(AccessDeniedError, match="this is grid x"):
                await client.get(Account, "alice").deposit(1)
            tried = len(host.connections)
            await asyncio.sleep(0.2)
            assert len(host.connections) == tried
            host.refuse = None
            host.answer = lambda received: 1
            assert await client.get(Account, "alice").deposit(1) == 1

    run(main)


@pytest.mark.parametrize("error", [AccessDeniedError("who are you?"), ProtocolError("no common protocol version")])
def test_connecting_to_a_host_that_refuses_raises_its_reason(error):
    async def main():
        host = await StandInHost().start()
        host.refuse = error
        with pytest.raises(type(error), match=str(error)):
            await grid.connect(host.address, settings=QUICK).open()

    run(main)


def test_connecting_waits_for_a_grid_that_starts_and_needs_one_seed_only():
    async def main():
        host = await StandInHost().start()
        host.refuse = HostUnavailableError("starting")
        dead = await StandInHost().start()
        await dead.stop()
        client = grid.connect(f"{dead.address},{host.address}", settings=QUICK)
        opening = asyncio.create_task(client.open())
        await host.until(lambda: len(host.connections) >= 3)
        host.refuse = None
        await opening
        assert await client.get(Account, "alice").deposit(1) == 1
        await client.close()

    run(main)


def test_connecting_to_nobody_says_whom_it_asked():
    async def main():
        dead = await StandInHost().start()
        await dead.stop()
        silent = await StandInHost().start()
        silent.is_silent = True
        settings = ClientSettings(connect_timeout_s=0.1)
        with pytest.raises(HostUnavailableError) as caught:
            await grid.connect(f"{dead.address},{silent.address}", settings=settings, timeout_s=0.5).open()
        assert "no grid found within 0.5 s" in str(caught.value)
        assert f"{dead.address}: " in str(caught.value)
        assert f"{silent.address}: no answer to the handshake within 0.1 s" in str(caught.value)
        await silent.until(lambda: all(connection.is_lost for connection in silent.connections))

    run(main)


def test_connecting_may_be_cancelled():
    async def main():
        silent = await StandInHost().start()
        silent.is_silent = True
        opening = asyncio.create_task(grid.connect(silent.address, settings=QUICK).open())
        await silent.until(lambda: bool(silent.connections))
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await silent.until(lambda: silent.connections[0].is_lost)

    run(main)


def test_a_silent_host_costs_a_handshake_deadline_and_nothing_leaks():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=ClientSettings(connect_timeout_s=0.05, retry_max_s=0.02), timeout_s=0.4) as client:
            host.is_silent = True
            host.connections[0].drop()
            await asyncio.sleep(0.01)
            with pytest.raises(HostUnavailableError, match=r"no answer to the handshake within 0\.05 s"):
                await client.get(Account, "alice").deposit(1)
            assert len(host.connections) > 3
            host.is_silent = False
            assert await client.with_options(timeout_s=5).get(Account, "alice").deposit(1) == 1
            assert [connection.is_lost for connection in host.connections].count(False) == 1

    run(main)


def test_a_host_that_says_goodbye_gets_no_new_calls_and_finishes_the_old_ones():
    async def main():
        old, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        old.map = new.map = make_map([old, new], primary=0)
        old.answer = lambda received: SILENCE
        async with grid.connect(f"{old.address},{new.address}", settings=QUICK) as client:
            assert await _both_connected(old, new)
            started = client.get(Account, "alice").deposit(1)
            await old.until_calls(1)
            new.map = old.map = make_map([old, new], primary=1, version=2)
            old.connections[0].send(messages.Goodbye("drained"))
            await asyncio.sleep(0.01)
            assert await client.get(Account, "alice").deposit(2) == 1
            old.calls[0].reply(77)
            assert await started == 77
        assert [received.number for received in new.calls] == [2]

    run(main)


async def _both_connected(*hosts):
    for host in hosts:
        await host.until(lambda host=host: bool(host.connections))
    return True


def test_a_ping_is_answered():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK):
            host.connections[0].send(messages.Ping(12))
            await host.until(lambda: bool(host.frames))
        assert host.frames == [messages.Pong(12)]

    run(main)


def test_a_connection_on_which_nothing_comes_is_given_up():
    """After a cut is mended the kernel resends what was lost as late again as the cut was long: a new connection works at once."""

    async def main():
        host = await StandInHost(partitions=1).start()
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            assert await alice.deposit(1) == 1
            host.connections[0].is_cut = True
            assert await alice.deposit(2) == 1
            assert len(host.connections) == 2
            assert host.connections[0].is_lost
            assert host.calls[-1].again
            assert host.calls[-1].number == 2

    run(main)


def test_a_host_that_answers_pings_may_take_its_time():
    async def main():
        host = await StandInHost(partitions=1).start()
        async with grid.connect(host.address, settings=QUICK) as client:
            host.answer = lambda received: SILENCE
            call = client.get(Account, "alice").deposit(1)
            await host.until(lambda: any(isinstance(each, messages.Ping) for each in host.frames))
            await asyncio.sleep(2.6)
            host.calls[0].reply(7)
            assert await call == 7
            assert len(host.connections) == 1

    run(main)


def test_a_retry_too_large_for_the_new_host_fails_alone():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.answer = lambda received: SILENCE if len(host.connections) == 1 else 1
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            large, small = alice.store(bytes(100_000)), alice.deposit(1)
            await host.until_calls(2)
            host.frame_bytes_max = 64 * 1024
            host.connections[0].drop()
            with pytest.raises(OutcomeUnknownError, match=r"Account/alice\.store: 1000\d\d bytes .* an earlier send was lost"):
                await large
            assert await small == 1
            with pytest.raises(PayloadTooLargeError):
                alice.store(bytes(100_000))

    run(main)


def test_a_client_used_from_another_loop_says_so():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK) as client:

            async def elsewhere():
                client.get(Account, "alice").deposit(1)

            with pytest.raises(ActorGridError, match="belongs to another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
            with pytest.raises(ActorGridError, match="belongs to another event loop"):
                await asyncio.to_thread(client.get(Account, "alice").deposit, 1)
            assert await client.get(Account, "alice").deposit(1) == 1
            assert client._caller._pending == {}

    run(main)


def test_a_host_that_is_silent_and_primary_no_more_does_not_keep_its_calls():
    async def main():
        stopped, new = [await StandInHost(f"node-{i}").start() for i in range(2)]
        stopped.map = new.map = make_map([stopped, new], primary=0)
        stopped.answer = lambda received: SILENCE
        async with grid.connect(stopped.address, settings=QUICK) as client:
            call = client.get(Account, "alice").deposit(1)
            await stopped.until_calls(1)
            stopped.is_silent = True  # like SIGSTOP: the connection stands, nothing is answered
            new.map = make_map([stopped, new], primary=1, version=2)
            assert await call == 1
            assert not stopped.connections[0].is_lost
        assert [(received.number, received.again) for received in new.calls] == [(1, True)]

    run(main)


def test_a_name_that_cannot_be_resolved_is_an_unavailable_host():
    async def main():
        for name in ("x" * 300, "no-such-host.invalid"):
            with pytest.raises(HostUnavailableError, match="no grid found"):
                await grid.connect(name, timeout_s=0.3).open()

    run(main)


def test_closing_while_connecting_ends_the_wait():
    async def main():
        silent = await StandInHost().start()
        silent.is_silent = True
        client = grid.connect(silent.address)
        opening = asyncio.create_task(client.open())
        await silent.until(lambda: bool(silent.connections))
        await client.close()
        with pytest.raises(ActorGridError, match="closed while it was connecting"):
            await opening

    run(main)


def test_expired_calls_to_a_host_that_is_away_do_not_pile_up():
    async def main():
        host = await StandInHost(partitions=1).start()
        async with grid.connect(host.address, settings=QUICK, timeout_s=0.03) as client:
            await host.stop()
            await asyncio.sleep(0.01)
            alice = client.get(Account, "alice")
            for _ in range(10):
                calls = [alice.deposit(1) for _ in range(200)]
                for call in calls:
                    with pytest.raises(HostUnavailableError):
                        await call
            (lane,) = client._caller._router.lanes.values()
            assert len(lane.unsent) < 400
            assert client._caller._pending == {}
            assert client._caller._pending_bytes == 0

    run(main)


def test_the_first_send_of_a_call_carries_the_position_the_host_told_at_the_handshake():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.positions = {1: 500}
        host.answer = lambda received: SILENCE if len(host.calls) < 2 else 1
        async with grid.connect(host.address, settings=QUICK) as client:
            waiting = client.get(Account, "a").deposit(1)
            await host.until_calls(1)
            host.positions = {1: 900}
            host.connections[0].drop()
            await waiting
            await client.get(Account, "a").deposit(1)
        assert [received.group.since_lsn for received in host.calls] == [500, 500, 900]

    run(main)


def test_a_nested_call_carries_the_request_id_of_its_root_and_leaves_the_result_encoded():
    async def main():
        host = await StandInHost().start()
        caller = Caller(
            client_id=new_client_id(), settings=QUICK, wire=WireSettings(), rng=random.Random(1), role="host", cluster_id=CLUSTER_ID
        )
        assert caller.set_map(host.own_map())
        assert not caller.set_map(host.own_map())
        host.answer = lambda received: SILENCE if len(host.calls) < 3 else {"balance": 3}
        host.positions = {3: 40}
        root = bytes(range(16))

        def call(**changes):
            arguments = {
                "partition": 3,
                "address": "Account\0bob",
                "method_name": "deposit",
                "args": messages.encode((5,)),
                "client_id": root,
                "number": 7,
                "path": (2,),
                "chain": ("Account\0alice",),
                "again": False,
                "lowest_anywhere": 6,
                "key": None,
                "timeout_s": 2.0,
            }
            return caller.submit_nested(**arguments | changes)

        one, other = call(), call(path=(3,), lowest_anywhere=7)
        await host.until_calls(2)
        host.connections[0].drop()
        assert bytes(await one) == messages.encode({"balance": 3})
        await other
        assert host.connections[0].hello.role == "host"
        first, second, again, _ = host.calls
        assert (first.group.client_id, first.group.lowest, first.group.lowest_anywhere, first.group.since_lsn) == (root, 0, 6, 40)
        assert second.group.lowest_anywhere == 7
        extra = first.call.extra
        assert (extra.number, extra.path, extra.chain, extra.again) == (7, (2,), ("Account\0alice",), False)
        assert same_call(first, again)
        assert again.call.extra == messages.CallExtra(number=7, path=(2,), chain=("Account\0alice",), again=True)
        assert again.group.since_lsn == 40, "a call that is sent again may have been executed from its first send on"
        host.answer = lambda received: 1
        await call(path=(4,), again=True)
        assert host.calls[-1].group.since_lsn == 0, "the turn's first life may have made this call at any time"
        host.answer = lambda received: ActorError("no")
        with pytest.raises(ActorError):
            await call()
        with pytest.raises(InvalidArgumentError):
            call(timeout_s=0)
        await caller.close()
        with pytest.raises(ActorGridError):
            call()

    run(main)
