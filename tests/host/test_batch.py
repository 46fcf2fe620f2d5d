"""Reads of a map that travel together: every item is the turn that it would be alone, whatever happens to the others and to hosts."""

import asyncio
import contextlib
import random
import time

import msgspec
import pytest
from batch_actors import GATES, SEEN, Shelf, Tally, gate
from host_harness import PARTITIONS, QUICK, HostByHost, Raw, run, seeds, soon, until

from actorgrid import grid
from actorgrid.actor.methods import Method
from actorgrid.client.batch import ReadMap
from actorgrid.credentials import Identity
from actorgrid.errors import (
    AccessDeniedError,
    ActorError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    OverloadedError,
    UnknownMethodError,
)
from actorgrid.ids import make_address, partition_of
from actorgrid.settings import ClientSettings, HostSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame

PATIENT = ClientSettings(timeout_s=12.0, connect_timeout_s=0.5, retry_first_s=0.005, retry_max_s=0.05)
IDS = [f"s{number}" for number in range(200)]


@contextlib.asynccontextmanager
async def shelves(path, hosts=1, replicas=1, settings=QUICK, host_settings=None):
    """Hosts and a client that has spoken to all of them."""
    SEEN.clear()
    GATES.clear()
    several = HostByHost(path, hosts, app="batch_actors", replicas=replicas, settings=host_settings)
    for index in range(hosts):
        await several.start(index)
    await several.hosts[0].administer("init", {})
    await until(lambda: sum(p.serving for host in several.up for p in host.partitions.values()) == PARTITIONS + 1, 8)
    try:
        async with grid.connect(seeds(several.up), settings=settings) as client:
            await client.map(Shelf.look, [(each,) for each in IDS])
            await asyncio.sleep(0.05)
            yield several, client
    finally:
        for host in several.up:
            await host.stop()


def numbers(client):
    return client._caller._last_number


async def batched(client, count, awaitable):
    """The results of a map, which went in batches: each has a number of its own."""
    before = numbers(client)
    results = await awaitable
    assert numbers(client) - before > count, "these did not travel in batches"
    caller = client._caller
    assert not caller._pending
    assert not caller._batches
    assert (caller._batched, caller._pending_bytes) == (0, 0)
    return results


def test_results_are_those_of_single_calls_in_order(tmp_path):
    async def main():
        async with shelves(tmp_path) as (_, client):
            await client.map(Shelf.add, [(each, number) for number, each in enumerate(IDS)])
            assert await batched(client, 200, client.map(Shelf.look, [(each,) for each in IDS])) == list(range(200))
            items = [(each, str(number)) if number % 2 else (each, "none", 7) for number, each in enumerate(IDS)]
            expected = [number if number % 2 else 7 for number in range(200)]
            assert await batched(client, 200, client.map(Shelf.look_at, items)) == expected
            assert await batched(client, 200, client.map(Shelf.look, [[each] for each in IDS])) == list(range(200))
            names = [f"grüße {number}" for number in range(20)]
            assert await batched(client, 20, client.map(Shelf.look, ((each,) for each in names))) == [0] * 20
            assert await batched(client, 20, client.map(Shelf.look, [("s5",)] * 20)) == [5] * 20
            before = numbers(client)
            assert await client.map(Shelf.look, [("s5",)] * 3) == [5] * 3
            assert numbers(client) == before + 3

    run(main)


def test_every_item_is_a_turn_of_its_own(tmp_path):
    async def main():
        async with shelves(tmp_path) as (_, client):
            before = numbers(client)
            found = await batched(client, 200, client.map(Shelf.who, [(each,) for each in IDS]))
            assert [each[0] for each in found] == IDS
            assert len({each[2] for each in found}) == 200
            assert all(before < each[2] <= numbers(client) for each in found)
            assert {each[3] for each in found} == {"none"}, "a context was shared"
            assert {each[1] for each in found} == {client._caller.client_id.hex()}

    run(main)


def test_errors_are_those_of_single_calls(tmp_path):
    async def main():
        async with shelves(tmp_path) as (_, client):
            single = []
            for each in IDS[:12]:
                try:
                    single.append(await client.call(Shelf.odd_look, each))
                except ActorError as error:
                    single.append((type(error), str(error), error.remote_type, error.actor))
            found = await batched(client, 12, client.map(Shelf.odd_look, [(each,) for each in IDS[:12]], return_errors=True))
            assert [
                (type(each), str(each), each.remote_type, each.actor) if isinstance(each, ActorError) else each for each in found
            ] == single
            with pytest.raises(ActorError, match="no s3"):
                await client.map(Shelf.odd_look, [(each,) for each in IDS[1:100]])
            before = numbers(client)
            with pytest.raises(InvalidArgumentError, match="expected a str"):
                await client.map(Shelf.look, [*((each,) for each in IDS), (7,)])
            with pytest.raises(InvalidArgumentError, match=r"expected \(actor id"):
                await client.map(Shelf.look, [*((each,) for each in IDS), "x"])
            assert numbers(client) == before, "something was sent"
            found = await batched(client, 30, client.map(Shelf.look, [(7,), *((each,) for each in IDS[:30]), "x"], return_errors=True))
            assert [type(each) for each in found] == [InvalidArgumentError, *[int] * 30, InvalidArgumentError]
            found = await client.map(Shelf.look_at, [(each, 7) for each in IDS[:10]], return_errors=True)
            assert {type(each) for each in found} == {InvalidArgumentError}
            assert all("parameter key" in str(each) for each in found)

    run(main)


def test_a_read_that_waits_holds_up_its_own_actor_only_and_the_host_serves_on(tmp_path):
    async def main():
        async with shelves(tmp_path) as (_, client):
            slow = soon(client.map(Shelf.slow_look, [(each,) for each in IDS]))
            await until(lambda: "slow" in GATES)
            await asyncio.sleep(0.02)
            assert await client.call(Shelf.look, "s1") == 0
            behind = soon(client.call(Shelf.add, "s7", 3))
            again = soon(client.map(Shelf.look, [("s7",)] * 10))
            await asyncio.sleep(0.05)
            assert not behind.done()
            assert not slow.done()
            gate("slow").set()
            assert await slow == [0] * 200
            assert await behind == 3
            assert set(await again) == {3}

    run(main)


def test_what_a_read_changes_is_undone_and_said(tmp_path, caplog):
    async def main():
        async with shelves(tmp_path) as (_, client):
            found = await client.map(Shelf.naughty, [(each,) for each in IDS[:20]], return_errors=True)
            assert [number for number, each in enumerate(found) if isinstance(each, ActorError)] == [5, 15]
            assert "is marked @grid.read but changed count" in str(found[5])
            assert await client.map(Shelf.look, [(each,) for each in IDS[:20]]) == [0] * 20

    run(main)


def test_a_read_that_blocks_the_loop_is_interrupted_alone(tmp_path):
    async def main():
        quick = HostSettings(loop_block_report_s=0.1, loop_block_limit_s=0.3)
        async with shelves(tmp_path, host_settings=quick) as (_, client):
            found = await client.map(Shelf.spin, [(each,) for each in IDS[:10]], return_errors=True)
            assert [number for number, each in enumerate(found) if isinstance(each, ActorError)] == [5]
            assert found[5].remote_type == "TurnBlockedError"

    run(main)


def test_reads_that_saw_what_is_not_committed_wait_for_it(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, client):
            partitions = list(several.hosts[0].partitions.values())
            changes = [soon(client.call(Shelf.add, each, 2)) for each in IDS[:40]]
            reads = soon(client.map(Shelf.look, [(each,) for each in IDS[:40]]))
            most = 0
            while not reads.done():
                most = max(most, sum(len(partition._gated) for partition in partitions))
                assert not most or all(change.done() for change in changes) or not reads.done()
                await asyncio.sleep(0)
            assert await reads == [2] * 40, "they were sent after the changes"
            assert most, "none was gated"
            assert [await change for change in changes] == [2] * 40

    run(main)


def test_a_partition_that_is_handed_over_meanwhile_answers_all_and_nested_calls_happen_once(tmp_path):
    async def main():
        async with shelves(tmp_path, hosts=3, replicas=3, settings=PATIENT) as (several, client):
            reads = [soon(client.map(Shelf.ask, [(each, 0.01) for each in IDS[part::4]])) for part in range(4)]
            await until(lambda: SEEN["ask"] > 10)
            moved = 0
            for host in several.up:
                for partition in list(host.partitions.values()):
                    target = partition.best_successor()
                    if target is not None:
                        moved += await partition.hand_over(target)
            assert moved
            for each in reads:
                assert await each == [1] * 50
            reads = [soon(client.map(Shelf.ask, [(each, 0) for each in IDS[part::4]])) for part in range(4)]
            for each in reads:
                assert await each == [2] * 50
            assert await client.map(Tally.tell, [("t" + each,) for each in IDS]) == [2] * 200

    run(main, timeout_s=40)


def test_a_host_that_is_gone_meanwhile_is_replaced_and_nested_calls_happen_once(tmp_path):
    async def main():
        async with shelves(tmp_path, hosts=3, replicas=3, settings=PATIENT) as (several, client):
            reads = [soon(client.map(Shelf.ask, [(each, 0.3) for each in IDS[part::4]])) for part in range(4)]
            await until(lambda: SEEN["ask"] >= 150)
            await asyncio.sleep(0.1)
            victim = next(index for index in (1, 2) if any(p.serving for p in several.hosts[index].partitions.values()))
            # No farewell: its connections break under the reads.
            for connection in list(several.hosts[victim]._connections):
                if connection._transport is not None:
                    connection._transport.abort()
            await several.stop(victim)
            for each in reads:
                assert await each == [1] * 50
            assert SEEN["ask"] > 200, "nothing had to be done again"
            assert await client.map(Tally.tell, [("t" + each,) for each in IDS]) == [1] * 200

    run(main, timeout_s=60)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_moves_and_breaks_every_read_is_answered_and_its_calls_happen_once(tmp_path, seed):
    async def main():
        rng = random.Random(seed)
        broken = moved = 0
        rounds = [0] * 4
        async with shelves(tmp_path, hosts=3, replicas=3, settings=PATIENT) as (several, client):
            end = time.monotonic() + 2

            async def read(part):
                while time.monotonic() < end:
                    rounds[part] += 1
                    items = [(each, rng.choice([0, 0, 0.01])) for each in IDS[part::4]]
                    assert await client.map(Shelf.ask, items) == [rounds[part]] * 50

            tasks = [soon(read(part)) for part in range(4)]
            while time.monotonic() < end:
                await asyncio.sleep(rng.random() * 0.1)
                host = rng.choice(several.up)
                partition = rng.choice(list(host.partitions.values()))
                target = partition.best_successor()
                if target is not None:
                    moved += await partition.hand_over(target)
                for connection in list(host._connections):
                    if connection.role == messages.ROLE_CLIENT and connection._transport is not None and rng.random() < 0.5:
                        connection._transport.abort()
                        broken += 1
            for task in tasks:
                await task
            expected = [rounds[number % 4] for number in range(200)]
            assert await client.map(Tally.tell, [("t" + each,) for each in IDS]) == expected
            assert SEEN["ask"] > sum(expected), "nothing had to be done again"
            assert min(moved, broken, *rounds) > 0
            assert (client._caller._batched, client._caller._pending_bytes, len(client._caller._pending)) == (0, 0, 0)

    run(main, timeout_s=40)


def test_bounds_count_items_and_the_rest_follows(tmp_path):
    async def main():
        few = ClientSettings(timeout_s=8, in_flight_max=16, in_flight_bytes_max=1 << 20)
        async with shelves(tmp_path, settings=few) as (_, client):
            most = 0
            reads = soon(client.map(Shelf.slow_look, [(each,) for each in IDS[:100] if not each.endswith("7")]))
            while not reads.done():
                caller = client._caller
                most = max(most, len(caller._pending) + caller._batched)
                await asyncio.sleep(0)
            assert await reads == [0] * 90
            assert 8 <= most <= 16
            args = [(each, "x" * 100_000) for each in IDS[:50]]
            assert await batched(client, 50, client.map(Shelf.look_at, args)) == [-1] * 50
            slow = soon(client.map(Shelf.slow_look, [("s7",)] * 16))
            await until(lambda: "slow" in GATES)
            found = await client.map(Shelf.look, [(each,) for each in IDS[:20]], return_errors=True)
            assert {type(each) for each in found} == {OverloadedError}
            with pytest.raises(OverloadedError, match="16 calls in flight"):
                client.call(Shelf.look, "s1")
            gate("slow").set()
            assert await slow == [0] * 16

    run(main)


def test_results_larger_than_a_frame_come_in_parts(tmp_path):
    async def main():
        async with shelves(tmp_path, settings=PATIENT) as (_, client):
            found = await client.map(Shelf.big, [(each, 1 << 20) for each in IDS[:60]])
            assert [len(each) for each in found] == [1 << 20] * 60
            sizes = [9 << 20, 1, 9 << 20, 2, 10 << 20, 3, 4, 17 << 20, 5]
            found = await client.map(Shelf.big, [("s1", size) for size in sizes], return_errors=True)
            assert [len(each) if isinstance(each, bytes) else type(each).__name__ for each in found] == [
                *sizes[:7],
                "PayloadTooLargeError",
                5,
            ]

    run(main, timeout_s=40)


def test_arguments_larger_than_a_frame_go_in_several(tmp_path):
    async def main():
        async with shelves(tmp_path, settings=PATIENT) as (_, client):
            found = await client.map(Shelf.look_at, [("s1", "x" * (3 << 20)) for _ in range(12)])
            assert found == [-1] * 12
            items = [*[("s1", "x")] * 9, ("s1", "x" * (17 << 20)), ("s1", "x" * (12 << 20))]
            found = await client.map(Shelf.look_at, items, return_errors=True)
            assert [each if isinstance(each, int) else type(each).__name__ for each in found] == [-1] * 9 + ["PayloadTooLargeError", -1]

    run(main, timeout_s=40)


def test_a_long_batch_does_not_keep_the_loop(tmp_path):
    async def main():
        async with shelves(tmp_path, settings=PATIENT) as (_, client):
            reads = soon(client.map(Shelf.busy, [("s1",)] * 1000))
            longest, last = 0.0, time.perf_counter()
            while not reads.done():
                await asyncio.sleep(0)
                longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
            assert await reads == [0] * 1000
            # A look is 128 calls, here of 0.5 ms each; all of them together would be 500 ms.
            assert longest < 0.3

    run(main, timeout_s=40)


def test_deadlines_and_cancellation(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, client):
            began = time.monotonic()
            view = client.with_options(timeout_s=0.2)
            items = [(each,) for each in IDS[:30]]
            found = await view.map(Shelf.slow_look, items, return_errors=True)
            assert time.monotonic() - began < 1
            late = [number for number, each in enumerate(found) if isinstance(each, DeadlineExceededError)]
            assert {7, 17, 27} <= set(late)
            slow = asyncio.create_task(client.map(Shelf.slow_look, items))
            await asyncio.sleep(0.05)
            assert client._caller._batches
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert not client._caller._pending
            assert (client._caller._batched, client._caller._pending_bytes) == (0, 0)
            gate("slow").set()
            assert await client.map(Shelf.look, items) == [0] * 30
            await until(lambda: all(host.runner.admitted == 0 for host in several.up))

    run(main)


def test_closing_the_client_ends_batches(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, client):
            async with grid.connect(seeds(several.up), settings=QUICK) as other:
                await other.call(Shelf.look, "s1")
                items = [(each,) for each in IDS[:30]]
                await other.map(Shelf.look, items)
                slow = soon(other.map(Shelf.slow_look, items, return_errors=True))
                await until(lambda: "slow" in GATES)
            found = await slow
            assert any("the client was closed" in str(each) for each in found)
            gate("slow").set()
            assert await client.map(Shelf.look, items) == [0] * 30

    run(main)


class RawBatches(Raw):
    """Says what the test says, in the newest version or another."""

    async def connect(self, port, version=messages.PROTOCOL_VERSION):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._frames = FrameReader(64 << 20)
        self._writer.write(frame(messages.encode(messages.Hello(messages.MAGIC, 1, version, "", "client", self.client_id))))
        header = await self._reader.readexactly(4)
        self.welcome = messages.decode_handshake_answer(await self._reader.readexactly(int.from_bytes(header, "big")))
        return self

    def send_batches(self, *batches):
        self._writer.write(frame(messages.encode(messages.Batches(list(batches)))))

    async def next_payload(self):
        async with asyncio.timeout(5):
            while True:
                for payload in self._frames.feed(b""):
                    return payload
                data = await self._reader.read(65536)
                if not data:
                    return None
                payloads = self._frames.feed(data)
                if payloads:
                    return payloads[-1]

    async def close(self):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def batch_of(method, ids, args=((),), number=10, since=0, partition=None):
    addresses = [make_address("Shelf", each) for each in ids]
    partition = partition_of(addresses[0], PARTITIONS) if partition is None else partition
    raws = [msgspec.Raw(messages.encode(each)) for each in args]
    return messages.Batch(number, partition, 1, since, method, 5000, addresses, raws)


@pytest.mark.parametrize(("version", "change"), [
    (1, lambda batch: None),
    (2, lambda batch: batch.args.append(batch.args[0])),
    (2, lambda batch: batch.args.clear()),
    (2, lambda batch: setattr(batch, "number", 2**64 - 2)),
    (2, lambda batch: batch.addresses.clear()),
])  # fmt: skip
def test_batches_that_may_not_be_close_the_connection(tmp_path, version, change):
    async def main():
        async with shelves(tmp_path) as (several, _):
            raw = await RawBatches().connect(several.hosts[0].port, version)
            assert raw.welcome.version == version
            batch = batch_of("look", ["s1", "s1", "s1"])
            change(batch)
            raw.send_batches(batch)
            payload = await raw.next_payload()
            assert payload[1] == messages.KIND_REFUSED
            assert messages.CLIENT_DECODERS[payload[1]](payload).error == "ProtocolError"
            await raw.close()

    run(main)


@pytest.mark.parametrize(("batch", "status", "errors"), [
    (batch_of("look", ["s1", "s1"]), 0, []),
    (batch_of("no_such", ["s1", "s1"]), 0, [UnknownMethodError] * 2),
    (batch_of("add", ["s1", "s1"], [(1,)]), 0, [HostUnavailableError] * 2),
    (batch_of("look", ["s1", "s1"], [(1,), ()]), 0, [InvalidArgumentError]),
    (batch_of("look", ["s1", "s1"], partition=99), 1, ["NotPrimaryError"]),
    (batch_of("look", ["s1", "s1"], since=10**9), 1, ["HostUnavailableError"]),
])  # fmt: skip
def test_a_batch_by_hand(tmp_path, batch, status, errors):
    async def main():
        async with shelves(tmp_path) as (several, client):
            raw = await RawBatches().connect(several.hosts[0].port)
            raw.send_batches(batch)
            payload = await raw.next_payload()
            (reply,) = messages.CLIENT_DECODERS[messages.KIND_BATCH_REPLIES](payload).replies
            assert (reply.number, reply.status, reply.offset) == (10, status, 0)
            if status:
                assert messages.decode_error(reply.payload).error == errors[0]
            else:
                payloads = messages.decode_each(reply.payload)
                assert len(payloads) == 2
                assert reply.errors == list(range(len(errors)))
                assert [messages.decode_error(payloads[place]).error for place in reply.errors] == [each.__name__ for each in errors]
            assert SEEN["add"] == 0
            await raw.close()
            assert await client.map(Shelf.look, [("s1",)] * 10) == [0] * 10

    run(main)


def test_a_method_of_one_class_never_runs_on_an_actor_of_another(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, _):
            partition = partition_of(make_address("Shelf", "s1"), PARTITIONS)
            others = [
                address for number in range(200) if partition_of(address := make_address("Tally", f"t{number}"), PARTITIONS) == partition
            ]
            batch = batch_of("look", ["s1"])
            batch.addresses += [*others[:2], batch.addresses[0], others[2]]
            raw = await RawBatches().connect(several.hosts[0].port)
            raw.send_batches(batch)
            payload = await raw.next_payload()
            (reply,) = messages.CLIENT_DECODERS[messages.KIND_BATCH_REPLIES](payload).replies
            payloads = messages.decode_each(reply.payload)
            assert reply.errors == [1, 2, 4]
            assert {messages.decode_error(payloads[place]).error for place in reply.errors} == {"UnknownMethodError"}
            assert [bytes(payloads[place]) for place in (0, 3)] == [b"\x00", b"\x00"]
            await raw.close()

    run(main)


def test_one_item_that_waits_for_long_holds_up_no_other_answer(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, client):
            partition = partition_of(make_address("Shelf", "s7"), PARTITIONS)
            ids = [each for each in IDS if partition_of(make_address("Shelf", each), PARTITIONS) == partition]
            waiting = [index for index, each in enumerate(ids) if each.endswith("7")]
            assert waiting
            assert len(waiting) < len(ids)
            raw = await RawBatches().connect(several.hosts[0].port)
            raw.send_batches(batch_of("slow_look", ids))
            answered = {}
            while len(answered) < len(ids) - len(waiting):
                for reply in messages.CLIENT_DECODERS[messages.KIND_BATCH_REPLIES](await raw.next_payload()).replies:
                    assert (reply.number, reply.status, reply.errors) == (10, 0, [])
                    answered.update({reply.offset + place: bytes(each) for place, each in enumerate(messages.decode_each(reply.payload))})
            assert not set(waiting) & set(answered)
            gate("slow").set()
            while len(answered) < len(ids):
                for reply in messages.CLIENT_DECODERS[messages.KIND_BATCH_REPLIES](await raw.next_payload()).replies:
                    answered.update({reply.offset + place: bytes(each) for place, each in enumerate(messages.decode_each(reply.payload))})
            assert answered == dict.fromkeys(range(len(ids)), b"\x00")
            await raw.close()

            GATES.clear()
            found = await client.with_options(timeout_s=0.3).map(Shelf.slow_look, [(each,) for each in IDS], return_errors=True)
            late = {each for each, result in zip(IDS, found, strict=True) if isinstance(result, Exception)}
            assert late == {each for each in IDS if each.endswith("7")}
            gate("slow").set()
            await until(lambda: all(host.runner.admitted == 0 for host in several.up))

    run(main)


def test_a_method_that_is_a_read_at_the_client_only_is_called_as_what_it_is(tmp_path):
    """In the middle of a rolling update classes differ. The items become calls under numbers that a session may remember."""

    async def main():
        async with shelves(tmp_path) as (_, client):
            await client.map(Shelf.add, [(each, 1) for each in IDS[:20]])

            async def add(self, amount): ...

            method = Method("Shelf.add", add, {"amount": int, "return": int}, read=True)
            reads = ReadMap(client._caller, method, None, 20)
            assert reads.prepare("Shelf", [(each, 5) for each in IDS[:20]], return_errors=False)
            await reads.run()
            assert reads.results == [6] * 20
            assert await client.map(Shelf.look, [(each,) for each in IDS[:20]]) == [6] * 20
            assert SEEN["add"] == 40

    run(main)


def test_who_may_not_call_may_not_send_batches(tmp_path):
    async def main():
        async with shelves(tmp_path) as (several, client):
            host = several.hosts[0]
            for connection in host._connections:
                connection.identity = Identity("", frozenset({"observer"}), "a test")
                connection._may_call = False
            before = host._counters.access_denied_total
            found = await client.map(Shelf.look, [(each,) for each in IDS[:20]], return_errors=True)
            assert {type(each) for each in found} == {AccessDeniedError}
            assert host._counters.access_denied_total == before + 1
            assert SEEN["look"] == 200

    run(main)
