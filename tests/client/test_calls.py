"""The plain path: what goes out, in how many frames, and what comes back."""

import asyncio
import dataclasses

import pytest
from samples import QUICK, Account, Statement, Wallet
from stand_in import SILENCE, StandInHost, make_map, run

from actorgrid import grid
from actorgrid.errors import ActorError, ActorGridError, InvalidArgumentError, OverloadedError, PayloadTooLargeError
from actorgrid.ids import make_address, partition_of
from actorgrid.settings import ClientSettings


def test_a_call_goes_to_the_primary_and_its_result_has_the_annotated_type():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: {"owner": "alice", "balance": 7}
        async with grid.connect(host.address, settings=QUICK) as client:
            statement = await client.get(Account, "alice").statement()
        assert statement == Statement("alice", 7)
        (received,) = host.calls
        assert received.call.address == "Account\0alice"
        assert received.call.method == "statement"
        assert received.args == []
        assert received.group.partition == partition_of("Account\0alice", 8)
        assert received.group.client_id == b""
        assert 4900 <= received.call.timeout_ms <= 5000
        assert received.call.extra is None
        assert host.connections[0].hello.role == "client"
        assert len(host.connections[0].hello.client_id) == 16

    run(main)


def test_calls_of_one_tick_travel_in_one_frame_in_the_order_they_were_made():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: received.args[0]
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            futures = [alice.deposit(i) for i in range(50)]
            assert [await future for future in futures] == list(range(50))
        assert [received.number for received in host.calls] == list(range(1, 51))
        assert {received.frame_number for received in host.calls} == {1}

    run(main)


def test_a_map_is_one_frame_for_each_host_and_gives_results_in_order():
    async def main():
        hosts = [await StandInHost(f"node-{i}").start() for i in range(3)]
        for host in hosts:
            host.map = make_map(hosts, primary=None)
            host.answer = lambda received: received.args[0] * 2
        async with grid.connect(hosts[0].address, settings=QUICK) as client:
            results = await client.map(Account.deposit, [(f"a{i}", i) for i in range(200)])
        assert results == [i * 2 for i in range(200)]
        assert sum(len(host.calls) for host in hosts) == 200
        for host in hosts:
            assert host.calls
            assert len({received.frame_number for received in host.calls}) == 1

    run(main)


def test_a_map_larger_than_a_frame_is_split_and_loses_nothing():
    async def main():
        host = await StandInHost(partitions=3).start()
        host.frame_bytes_max = 64 * 1024
        host.answer = lambda received: len(received.args[0])
        async with grid.connect(host.address, settings=QUICK) as client:
            results = await client.map(Account.store, [(f"a{i}", bytes(10_000 + i)) for i in range(100)])
        assert results == [10_000 + i for i in range(100)]
        assert len(host.frames) > 10

    run(main)


def test_the_first_error_of_a_map_is_raised_when_all_its_calls_are_done():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: ActorError(f"no {received.args[0]}") if received.args[0] in (3, 5) else received.args[0]
        async with grid.connect(host.address, settings=QUICK) as client:
            items = [(f"a{i}", i) for i in range(8)]
            with pytest.raises(ActorError, match="no 3"):
                await client.map(Account.deposit, items)
            assert len(host.calls) == 8
            results = await client.map(Account.deposit, items, return_errors=True)
        assert [type(result).__name__ for result in results] == ["int"] * 3 + ["ActorError", "int", "ActorError", "int", "int"]

    run(main)


def test_an_argument_that_cannot_be_encoded_fails_only_its_own_call():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: 1 if received.call.method == "deposit" else None
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            good = alice.deposit(1)
            with pytest.raises(InvalidArgumentError, match=r"Account\.take: parameter anything"):
                alice.take(object())
            with pytest.raises(InvalidArgumentError, match=r"deposit"):
                alice.deposit(1, 2, 3)
            assert await good == 1
            results = await client.map(Account.take, [("a", 1), ("b", object()), ("c",), 7], return_errors=True)
            assert [isinstance(result, InvalidArgumentError) for result in results] == [False, True, True, True]

    run(main)


def test_a_malformed_item_of_a_map_is_found_before_anything_is_sent():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK) as client:
            with pytest.raises(InvalidArgumentError, match=r"Account\.deposit"):
                await client.map(Account.deposit, [("a", 1), ("b", 2), ("c", object())])
            await asyncio.sleep(0.05)
        assert host.calls == []

    run(main)


def test_a_map_of_more_calls_than_may_be_in_flight_sends_the_rest_as_answers_come_in():
    async def main():
        host = await StandInHost().start()
        settings = dataclasses.replace(QUICK, in_flight_max=50)
        async with grid.connect(host.address, settings=settings) as client:
            results = await client.map(Account.deposit, [(f"a{number}", number) for number in range(400)])
        assert len(results) == len(host.calls) == 400

    run(main)


def test_an_oversized_call_fails_alone_and_is_never_sent():
    async def main():
        host = await StandInHost().start()
        host.frame_bytes_max = 64 * 1024
        async with grid.connect(host.address, settings=QUICK) as client:
            alice = client.get(Account, "alice")
            good = alice.deposit(1)
            with pytest.raises(PayloadTooLargeError, match=r"Account/alice\.store: 7\d{4} bytes"):
                alice.store(bytes(70_000))
            assert await good == 1
            assert await alice.deposit(2) == 1
        assert [received.call.method for received in host.calls] == ["deposit", "deposit"]
        assert [received.number for received in host.calls] == [1, 2]

    run(main)


def test_arguments_are_read_once_when_the_call_is_made():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: 1 if received.call.method == "deposit" else None
        async with grid.connect(host.address, settings=QUICK) as client:
            items = [1, 2]
            call = client.get(Account, "alice").take(items)
            items.append(3)
            await client.get(Account, "bob").deposit(1)
            assert await call is None
        assert host.calls[0].args == [[1, 2]]

    run(main)


def test_keyword_arguments_travel_by_position():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: "x"
        async with grid.connect(host.address, settings=QUICK) as client:
            await client.get(Account, "alice").close_at(year=2030)
            await client.call(Account.close_at, "alice", year=2031, month=5)
        assert [received.args for received in host.calls] == [[2030, 1], [2031, 5]]

    run(main)


def test_lowest_is_per_partition_and_lowest_anywhere_is_over_all_of_them():
    async def main():
        host = await StandInHost().start()
        one, other = _ids_in_two_partitions()
        held = []
        host.answer = lambda received: held.append(received) or SILENCE
        async with grid.connect(host.address, settings=QUICK) as client:
            first, second = client.get(Account, one), client.get(Account, other)

            async def send(actor):
                call = actor.deposit(1)
                await host.until_calls(call.number)
                return call

            a, b, c = await send(first), await send(second), await send(second)
            held[1].reply(1)
            await b
            d = await send(second)
            held[0].reply(1)
            await a
            e = await send(first)
            for received in held[2:]:
                received.reply(1)
            for call in (c, d, e):
                await call
            await send(first)
            headers = [(received.number, received.group.lowest, received.group.lowest_anywhere) for received in host.calls]
            assert headers == [(1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 3, 1), (5, 5, 3), (6, 6, 6)]
            held[-1].reply(1)

    run(main)


def test_lowest_anywhere_does_not_pass_a_call_with_a_timeout_of_its_own():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: SILENCE if received.number in (1, 4) else 1
        async with grid.connect(host.address, settings=QUICK) as client:
            calls = []
            for actor_id, view in (
                ("a", client.with_options(timeout_s=3)),
                ("b", client),
                ("c", client.with_options(timeout_s=9)),
                ("d", client),
            ):
                calls.append(view.get(Account, actor_id).deposit(1))
                await host.until_calls(len(calls))
            assert [received.group.lowest_anywhere for received in host.calls] == [1, 1, 1, 1]
            host.calls[0].reply(1)
            await calls[0]
            await client.with_options(timeout_s=3).get(Account, "e").deposit(1)
            assert host.calls[-1].group.lowest_anywhere == 4
            host.calls[3].reply(1)
            for call in calls:
                await call

    run(main)


def _ids_in_two_partitions() -> tuple[str, str]:
    one = "a0"
    partition = partition_of(make_address("Account", one), 8)
    return one, next(f"a{i}" for i in range(1, 100) if partition_of(make_address("Account", f"a{i}"), 8) != partition)


def test_calls_past_the_limits_are_refused_at_once():
    async def main():
        host = await StandInHost(partitions=1).start()
        host.answer = lambda received: SILENCE
        settings = ClientSettings(timeout_s=5, in_flight_max=20, session_window=16)
        async with grid.connect(host.address, settings=settings) as client:
            alice = client.get(Account, "alice")
            calls = [alice.deposit(1) for _ in range(16)]
            with pytest.raises(OverloadedError, match=r"queue full; 16 calls to partition 1 .* in flight"):
                alice.deposit(1)
            await host.until_calls(16)
            host.calls[1].reply(1)
            await calls[1]
            with pytest.raises(OverloadedError):  # the oldest is still open, so the window has not moved
                alice.deposit(1)
            host.calls[0].reply(1)
            await calls[0]
            calls.append(alice.deposit(1))
            await host.until_calls(17)
            for received in host.calls[2:]:
                received.reply(1)
            for call in calls:
                await call

        host = await StandInHost().start()
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=ClientSettings(in_flight_max=3, in_flight_bytes_max=1 << 20)) as client:
            alice = client.get(Account, "alice")
            calls = [alice.store(bytes(400_000)) for _ in range(2)]
            with pytest.raises(OverloadedError, match=r"bytes of arguments in 2 calls in flight"):
                alice.store(bytes(400_000))
            calls.append(alice.deposit(1))
            with pytest.raises(OverloadedError, match="queue full; 3 calls in flight"):
                alice.deposit(1)
            for call in calls:
                call.cancel()
            calls = [alice.deposit(1) for _ in range(3)]
            for call in calls:
                call.cancel()

    run(main)


def test_an_idempotency_key_and_a_timeout_travel_with_the_calls_of_a_view():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK) as client:
            view = client.with_options(idempotency_key="order-77", timeout_s=2.0)
            await view.get(Account, "alice").deposit(1)
            await view.call(Account.deposit, "alice", 1)
            await client.call(Account.deposit, "alice", 1)
            with pytest.raises(InvalidArgumentError, match="map makes many calls"):
                await view.map(Account.deposit, [("a", 1)])
        assert [received.call.extra and received.call.extra.key for received in host.calls] == ["order-77", "order-77", None]
        assert [received.call.timeout_ms <= 2000 for received in host.calls] == [True, True, False]
        assert [received.number for received in host.calls] == [1, 2, 3]
        assert len(host.connections) == 1

    run(main)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"timeout_s": "5"}]
)
def test_a_timeout_must_be_finite_and_above_zero(options):
    async def main():
        with pytest.raises(InvalidArgumentError, match="timeout_s"):
            grid.connect("127.0.0.1:1").with_options(**options)
        with pytest.raises(InvalidArgumentError, match="timeout_s"):
            grid.connect("127.0.0.1:1", **options)

    run(main)


@pytest.mark.parametrize("key", ["", "x" * 513, 7, b"key", "\ud800"])
def test_an_idempotency_key_is_a_text_of_1_to_512_characters(key):
    with pytest.raises(InvalidArgumentError, match="idempotency_key"):
        grid.connect("127.0.0.1:1").with_options(idempotency_key=key)


@pytest.mark.parametrize("address", ["", ",", "host:port", "host:0", "host:70000", "[::1", "[::1]7400", ":7400", 7400, "a:1:2"])
def test_an_address_that_is_none_is_refused_at_once(address):
    with pytest.raises(InvalidArgumentError, match="address"):
        grid.connect(address)


def test_a_method_is_called_by_name_with_plain_values():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: {"owner": "alice", "balance": received.args[0]}
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.call_by_name("Account", "alice", "statement", [9]) == {"owner": "alice", "balance": 9}
            with pytest.raises(InvalidArgumentError, match=r"Account\.statement"):
                client.call_by_name("Account", "alice", "statement", [object()])

    run(main)


def test_a_result_that_does_not_fit_the_annotation_is_told_and_harms_no_other_call():
    async def main():
        host = await StandInHost().start()
        host.answer = lambda received: "text" if received.args[0] == 1 else 5
        async with grid.connect(host.address, settings=QUICK) as client:
            bad, good = client.call(Account.deposit, "alice", 1), client.call(Account.deposit, "alice", 2)
            with pytest.raises(InvalidArgumentError, match="does not fit"):
                await bad
            assert await good == 5
        assert len(host.calls) == 2

    run(main)


def test_proxies_are_equal_by_actor_and_tell_what_they_are():
    async def main():
        host = await StandInHost().start()
        client = grid.connect(host.address, settings=QUICK)
        alice = client.get(Account, "alice")  # no I/O: also before the client is open
        assert alice == client.get(Account, "alice")
        assert alice == client.with_options(timeout_s=1).get(Account, "alice")
        assert hash(alice) == hash(client.get(Account, "alice"))
        assert alice != client.get(Account, "bob")
        assert alice != grid.connect(host.address).get(Account, "alice")
        assert repr(alice) == f"<Account/alice on {host.address}>"
        assert repr(client.get(Wallet, "w")) == f"<Purse/w on {host.address}>"
        for name in ("balance", "helper", "withdraw", "_private"):
            with pytest.raises(AttributeError, match=r"it has: close_at, deposit, .*\(fields are read through methods\)"):
                getattr(alice, name)
        with pytest.raises(AttributeError):
            alice.balance = 5
        with pytest.raises(ActorGridError, match="not connected"):
            alice.deposit(1)
        async with client:
            assert await alice.deposit(1) == 1
        with pytest.raises(ActorGridError, match="closed"):
            alice.deposit(1)
        with pytest.raises(ActorGridError, match="closed"):
            await client.open()

    run(main)


@pytest.mark.parametrize("actor_id", ["", "x" * 1025, "a\0b", 7, None, "\ud800"])
def test_an_id_that_is_none_is_refused_by_get(actor_id):
    with pytest.raises(InvalidArgumentError, match="actor id of Account"):
        grid.connect("127.0.0.1:1").get(Account, actor_id)


def test_a_class_or_method_that_is_no_actors_is_refused():
    client = grid.connect("127.0.0.1:1")
    with pytest.raises(InvalidArgumentError, match="not an actor"):
        client.get(dict, "alice")
    with pytest.raises(InvalidArgumentError, match="not a remote method"):
        client.call(len, "alice")
    with pytest.raises(InvalidArgumentError, match="not a remote method"):
        client.call(Account.helper, "alice")


def test_an_operators_question_is_answered_over_a_connection_of_its_own():
    async def main():
        host = await StandInHost().start()
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.admin("127.0.0.1", host.port, "status", {"depth": 2}) == {"verb": "status", "depth": 2}
            assert [connection.hello.role for connection in host.connections] == ["client", "operator"]
            host.admin = lambda question: InvalidArgumentError("no such verb")
            with pytest.raises(InvalidArgumentError, match="no such verb"):
                await client.admin("127.0.0.1", host.port, "dance")
            host.admin = lambda question: SILENCE
            with pytest.raises(ActorGridError, match="no answer within"):
                await client.with_options(timeout_s=0.05).admin("127.0.0.1", host.port, "status")
            await host.until(lambda: [connection.is_lost for connection in host.connections] == [False, True, True, True])

    run(main)


def test_a_slow_reader_is_not_written_to_without_bound():
    async def main():
        host = await StandInHost(partitions=2).start()
        async with grid.connect(host.address, settings=ClientSettings(timeout_s=10)) as client:
            host.connections[0].transport.pause_reading()
            host.answer = lambda received: len(received.args[0])
            calls = [client.call(Account.store, f"a{i}", bytes(100_000)) for i in range(400)]
            await asyncio.sleep(0.1)
            (link,) = client._caller._router.links
            assert link.connection._transport.get_write_buffer_size() < 18 << 20
            assert not link.is_writable
            host.connections[0].transport.resume_reading()
            assert [await call for call in calls] == [100_000] * 400

    run(main)
