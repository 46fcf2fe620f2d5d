"""Maps of reads on the wire: what travels together, and what becomes of it when a host refuses, is silent, moves or goes."""

import asyncio

import pytest
from msgspec import Raw
from samples import QUICK, Account
from stand_in import CLUSTER_ID, SILENCE, StandInHost, begin_anew, make_map, run

from actorgrid import grid
from actorgrid.errors import (
    ActorError,
    DeadlineExceededError,
    HostUnavailableError,
    InvalidArgumentError,
    NotPrimaryError,
    OutcomeUnknownError,
    OverloadedError,
    to_wire,
)
from actorgrid.settings import ClientSettings
from actorgrid.wire import messages
from actorgrid.wire.messages import BatchReplies, BatchReply, ErrorPayload, Replies, Reply, Welcome, encode

ITEMS = [(f"a{number}",) for number in range(40)]


class BatchHost(StandInHost):
    """A stand-in that understands batches.

    :ivar answer_batch: called with each `Batch`; what it returns is a list of results and errors, one error for all, `SILENCE`, or a list
        of `BatchReply`
    """

    def __init__(self, name="node-0", partitions=8):
        super().__init__(name, partitions)
        self.version = 2
        self.batches = []
        self.answer_batch = lambda batch: [1] * len(batch.addresses)

    def on_hello(self, connection):
        welcome = Welcome(self.version, CLUSTER_ID, self.name, 1, self.frame_bytes_max, self.map or self.own_map(), self.positions)
        connection.send(welcome)

    def on_frame(self, connection, message):
        if not isinstance(message, messages.Batches):
            super().on_frame(connection, message)
            return
        self.frames.append(message)
        replies = []
        for batch in message.batches:
            self.batches.append((batch, connection))
            result = self.answer_batch(batch)
            if result is SILENCE:
                continue
            replies += replies_to(batch, result)
        if replies:
            connection.send(BatchReplies(replies))
        self.changed.set()


def replies_to(batch, result):
    if isinstance(result, Exception):
        return [BatchReply(batch.number, 1, 0, error_of(result))]
    if isinstance(result[0], BatchReply):
        return result
    errors = [place for place, each in enumerate(result) if isinstance(each, Exception)]
    payloads = [error_of(each) if isinstance(each, Exception) else Raw(encode(each)) for each in result]
    return [BatchReply(batch.number, 0, 0, Raw(encode(payloads)), errors)]


def error_of(error):
    return Raw(encode(ErrorPayload(*to_wire(error))))


def is_clean(client):
    caller = client._caller
    return not caller._pending and not caller._batches and (caller._batched, caller._pending_bytes) == (0, 0)


async def one(**changes):
    host = BatchHost(**changes)
    await host.start()
    return host


async def two():
    hosts = [await one(name="node-0"), await one(name="node-1")]
    for host in hosts:
        host.map = make_map(hosts, primary=0, epoch=5, secondaries=[1])
    return hosts


async def warm(client, *hosts):
    """A client that is connected to all of them."""
    await client.get(Account, "alice").deposit(1)
    await begin_anew(hosts)


def test_reads_of_a_map_travel_in_one_frame_with_numbers_of_their_own():
    async def main():
        host = await one()
        host.positions = dict.fromkeys(range(1, 9), 70)
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            deposit = client.get(Account, "alice").deposit(2)
            assert await client.map(Account.read_balance, ITEMS) == [1] * 40
            assert await deposit == 1
            assert [type(each).__name__ for each in host.frames] == ["Calls", "Batches"], "an earlier call goes first"
            number = host.calls[0].number
            batches = [batch for batch, _ in host.batches]
            assert sum(len(batch.addresses) for batch in batches) == 40
            for batch in batches:
                assert batch.number == number + 1
                number = batch.number + len(batch.addresses)
                assert (batch.method, batch.timeout_ms, batch.since_lsn) == ("read_balance", 5000, 70)
                assert [bytes(each) for each in batch.args] == [b"\x90"]
                assert batch.lowest_anywhere == host.calls[0].number
            assert is_clean(client)
            await client.get(Account, "alice").deposit(3)
            assert host.calls[-1].group.lowest_anywhere == host.calls[-1].number == number + 1

    run(main)


def test_while_an_item_is_open_nothing_later_frees_it():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer_batch = lambda batch: SILENCE if "Account\0a7" in batch.addresses else [1] * len(batch.addresses)
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await host.until(lambda: host.batches)
            await asyncio.sleep(0.05)
            (batch, connection) = next(each for each in host.batches if "Account\0a7" in each[0].addresses)
            await client.get(Account, "alice").deposit(3)
            assert host.calls[-1].group.lowest_anywhere == batch.number
            # All but one item are answered: the last one holds it still.
            count = len(batch.addresses)
            connection.send(BatchReplies([BatchReply(batch.number, 0, 1, Raw(encode([2] * (count - 1))))]))
            await client.get(Account, "alice").deposit(3)
            assert host.calls[-1].group.lowest_anywhere == batch.number
            connection.send(BatchReplies([BatchReply(batch.number, 0, 0, Raw(encode([3])))]))
            found = await reads
            assert sorted(found) == [1] * (40 - count) + [2] * (count - 1) + [3]
            assert is_clean(client)

    run(main)


def test_what_cannot_be_a_batch_is_none():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            await client.map(Account.read_about, ITEMS)
            await client.map(Account.deposit, [(f"a{i}", 1) for i in range(40)])
            await client.map(Account.read_balance, ITEMS[:7])
            assert not host.batches
            assert len(host.calls) == 87
        host = await one()
        host.version = 1
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            assert await client.map(Account.read_balance, ITEMS) == [1] * 40
            assert not host.batches
            assert len(host.calls) == 40

    run(main)


def test_a_refused_batch_is_taken_to_the_new_primary_under_the_same_numbers():
    async def main():
        first, second = await two()
        async with grid.connect(first.address, settings=QUICK) as client:
            await warm(client, first, second)
            hint = f"node-1@127.0.0.1:{second.port}"
            first.answer_batch = lambda batch: NotPrimaryError("moved", partition=batch.partition, primary=hint, epoch=6)
            second.answer = lambda received: int(received.call.address[9:])
            assert await client.map(Account.read_balance, ITEMS) == list(range(40))
            numbers = {batch.number + 1 + i: address for batch, _ in first.batches for i, address in enumerate(batch.addresses)}
            assert {received.number: received.call.address for received in second.calls} == numbers
            assert not any(received.again for received in second.calls), "nothing of them happened"
            assert is_clean(client)

    run(main)


def test_items_that_are_refused_alone_are_tried_again_and_the_others_are_not():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)

            def answer(batch):
                results = []
                for address in batch.addresses:
                    number = int(address[9:])
                    errors = {0: OverloadedError("busy", retry_after_s=0.01), 1: ActorError("no"), 2: "not a number"}
                    results.append(errors.get(number % 10, number))
                return results

            host.answer_batch = answer
            host.answer = lambda received: -int(received.call.address[9:])
            found = await client.map(Account.read_balance, ITEMS, return_errors=True)
            for number, each in enumerate(found):
                if number % 10 == 0:
                    assert each == -number
                elif number % 10 == 1:
                    assert type(each) is ActorError
                elif number % 10 == 2:
                    assert type(each) is InvalidArgumentError
                    assert "does not fit this class's annotation" in str(each)
                else:
                    assert each == number
            assert sorted(int(received.call.address[9:]) for received in host.calls) == [0, 10, 20, 30]
            assert not any(received.again for received in host.calls)
            with pytest.raises(ActorError):
                await client.map(Account.read_balance, ITEMS[1:])
            assert is_clean(client)

    run(main)


def test_what_a_lost_connection_owes_is_asked_again_and_said_to_be_so():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer_batch = lambda batch: SILENCE
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await host.until(lambda: host.batches)
            sent = {batch.number + 1 + i: address for batch, _ in host.batches for i, address in enumerate(batch.addresses)}
            host.connections[-1].drop()
            assert await reads == [1] * 40
            assert {received.number: received.call.address for received in host.calls} == sent
            assert all(received.again for received in host.calls)
            lowest = min(sent) - 1
            assert {received.group.lowest_anywhere for received in host.calls} == {lowest}
            assert all(received.group.lowest <= received.number for received in host.calls)
            assert is_clean(client)

    run(main)


def test_a_map_that_names_another_primary_is_followed_without_waiting_for_the_old_one():
    async def main():
        first, second = await two()
        async with grid.connect(first.address, settings=ClientSettings(timeout_s=10)) as client:
            await warm(client, first, second)
            first.answer_batch = lambda batch: SILENCE
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await first.until(lambda: first.batches)
            second.answer = lambda received: 7
            second.push(make_map([first, second], version=2, primary=1, epoch=6, secondaries=[0]))
            async with asyncio.timeout(1):
                assert await reads == [7] * 40
            assert all(received.again for received in second.calls)
            # What the old one says now is late.
            for batch, connection in first.batches:
                connection.send(BatchReplies(replies_to(batch, [3] * len(batch.addresses))))
            assert await client.map(Account.read_balance, ITEMS) == [1] * 40
            assert is_clean(client)

    run(main)


def test_a_slow_host_is_asked_for_the_map_and_its_late_answer_counts():
    async def main():
        first, second = await two()
        async with grid.connect(first.address, settings=ClientSettings(timeout_s=10)) as client:
            await warm(client, first, second)
            first.answer_batch = lambda batch: SILENCE
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await first.until(lambda: first.batches)
            await asyncio.sleep(1.6)
            assert not client._caller._batches, "they are calls by now"
            assert first.maps_asked + second.maps_asked > 0
            for batch, connection in first.batches:
                connection.send(BatchReplies(replies_to(batch, [*[5] * (len(batch.addresses) - 1), ActorError("late")])))
            with pytest.raises(ActorError, match="late"):
                await reads
            assert is_clean(client)

    run(main)


def test_at_the_deadline_each_item_says_what_it_would_alone():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer_batch = lambda batch: SILENCE
            for view in (client.with_options(timeout_s=0.1), client.with_options(timeout_s=0.15)):
                found = await view.map(Account.read_balance, ITEMS, return_errors=True)
                assert {type(each) for each in found} == {DeadlineExceededError}
                assert "Account/a3.read_balance: outcome unknown, no answer within 0.1" in str(found[3])
                assert "1 attempt" in str(found[3])
            assert is_clean(client)
            host.answer_batch = lambda batch: HostUnavailableError("not now", retry_after_s=5)
            found = await view.map(Account.read_balance, ITEMS, return_errors=True)
            assert {str(each) for each in found} == {"not now"}
            assert is_clean(client)

    run(main)


def test_a_map_that_is_cancelled_gives_its_items_up_also_those_that_are_calls():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            for answer in (SILENCE, OverloadedError("busy", retry_after_s=3)):
                host.answer_batch = lambda batch, answer=answer: answer
                reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
                await host.until(lambda: host.batches)
                await asyncio.sleep(0.05)
                reads.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reads
                assert is_clean(client)
                host.batches.clear()
            host.calls.clear()
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await asyncio.sleep(0)
            reads.cancel()
            await asyncio.wait([reads])
            assert is_clean(client)

    run(main)


def test_closing_the_client_ends_a_map():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer_batch = lambda batch: SILENCE
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS, return_errors=True))
            await host.until(lambda: host.batches)
        found = await reads
        assert {type(each) for each in found} == {OutcomeUnknownError}
        assert "the client was closed after 1 attempts" in str(found[0])
        assert is_clean(client)

    run(main)


def test_a_host_that_takes_nothing_gets_the_items_as_calls_when_it_does():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            reads = asyncio.create_task(client.map(Account.read_balance, ITEMS))
            await asyncio.sleep(0)
            host.connections[-1].drop()
            for link in client._caller._router.links:
                link.is_writable = False
            assert await reads == [1] * 40
            assert is_clean(client)

    run(main)


@pytest.mark.parametrize("reply", [
    lambda batch: BatchReply(batch.number, 0, 0, Raw(encode([1] * 4097))),
    lambda batch: BatchReply(batch.number, 0, 1, Raw(encode([1] * len(batch.addresses)))),
    lambda batch: BatchReply(batch.number, 0, 0, Raw(encode("no array"))),
    lambda batch: BatchReply(batch.number, 1, 0, Raw(encode("no error"))),
])  # fmt: skip
def test_answers_that_make_no_sense_close_the_connection(reply):
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer_batch = lambda batch: [reply(batch)]
            assert await client.map(Account.read_balance, ITEMS) == [1] * 40
            assert len(host.connections) >= 2, "asked again on a new connection, one by one"
            assert all(received.again for received in host.calls)
            assert is_clean(client)

    run(main)


def test_an_item_that_is_answered_and_then_refused_has_its_answer():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)

            def answer(batch):
                count = len(batch.addresses)
                refused = [error_of(HostUnavailableError("not now")), *[Raw(encode(2))] * (count - 1)]
                return [BatchReply(batch.number, 0, 0, Raw(encode([1]))), BatchReply(batch.number, 0, 0, Raw(encode(refused)), [0])]

            host.answer_batch = answer
            found = await client.map(Account.read_balance, ITEMS)
            assert (found.count(1), found.count(2)) == (len(host.batches), 40 - len(host.batches))
            assert is_clean(client)
            assert len(host.connections) == 1

    run(main)


def test_an_answer_to_a_batch_as_if_it_were_a_call_closes_the_connection():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)

            def answer(batch):
                host.connections[-1].send(Replies([Reply(batch.number, 0, Raw(encode(5)))]))
                return SILENCE

            host.answer_batch = answer
            assert await client.map(Account.read_balance, ITEMS) == [1] * 40
            assert len(host.connections) >= 2
            assert is_clean(client)

    run(main)


def test_answers_that_nobody_waits_for_and_answers_twice_are_ignored():
    async def main():
        host = await one()
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)

            def answer(batch):
                count = len(batch.addresses)
                part = [BatchReply(batch.number, 0, place, Raw(encode([place]))) for place in range(count)]
                return [BatchReply(10**9, 0, 0, Raw(encode([1]))), *part[: count - 1], *part, BatchReply(batch.number, 1, 0, Raw(b"\xc0"))]

            host.answer_batch = answer
            found = await client.map(Account.read_balance, ITEMS)
            assert found.count(0) == len(host.batches)
            assert is_clean(client)
            assert len(host.connections) == 1

    run(main)


def test_frames_of_a_host_that_allows_little_are_kept_small():
    async def main():
        host = await one()
        host.frame_bytes_max = 8192
        async with grid.connect(host.address, settings=QUICK) as client:
            await warm(client, host)
            host.answer = lambda received: 0
            assert await client.map(Account.read_balance, [(f"a{number}" * 50,) for number in range(200)]) == [1] * 200
            assert len(host.batches) > 8
            assert all(len(encode(frame)) <= 8192 for frame in host.frames)

    run(main)
