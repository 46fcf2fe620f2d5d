"""Primaries move: calls follow them at once, each once for each epoch, and never backwards."""

import asyncio
import time

import pytest
from samples import QUICK, Account
from stand_in import SILENCE, StandInHost, make_map, run

from actorgrid import grid
from actorgrid.errors import HostUnavailableError, NotPrimaryError, NoWriteQuorumError, OverloadedError, WriteInDoubtError
from actorgrid.ids import make_address, partition_of
from actorgrid.settings import ClientSettings
from actorgrid.wire.framing import frame
from actorgrid.wire.messages import encode

#: A test that passes by backoff, or by the look for silent hosts after a second, takes longer than it may.
SLOW = ClientSettings(timeout_s=10, connect_timeout_s=0.5, retry_first_s=4, retry_max_s=4)
AT_ONCE_S = 0.6


async def hosts_of_one_grid(count=3):
    hosts = [await StandInHost(f"node-{i}").start() for i in range(count)]
    for host in hosts:
        host.map = make_map(hosts, primary=0, epoch=5, secondaries=[1, 2][: count - 1])
    return hosts


def sends(host):
    return [(received.number, received.again) for received in host.calls]


def hint(host, **details):
    return {"primary": f"{host.name}@{host.address}", **details}


def test_what_a_deposed_primary_owes_is_sent_to_the_new_one_when_the_map_comes():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid()
        old.answer = lambda received: SILENCE
        new.answer = lambda received: 7
        async with grid.connect(old.address, settings=SLOW) as client:
            calls = [client.get(Account, f"a{i}").deposit(i) for i in range(20)]
            await old.until_calls(20)
            await third.until(lambda: third.is_connected)
            started = time.monotonic()
            third.push(make_map(hosts, primary=1, epoch=6))  # the old one is stopped, or cut off: it says nothing
            assert [await call for call in calls] == [7] * 20
            assert time.monotonic() - started < AT_ONCE_S
            for received in old.calls:
                received.reply(-1)  # late
            assert await client.get(Account, "a0").deposit(1) == 7
        assert sorted(sends(new)) == [(number, True) for number in range(1, 21)] + [(21, False)]
        assert len(old.calls) == 20

    run(main)


def test_a_map_without_epochs_proves_nobody_deposed_so_the_answer_is_waited_for():
    async def main():
        old, new = hosts = await hosts_of_one_grid(2)
        old.map = new.map = make_map(hosts)
        old.answer = lambda received: SILENCE
        async with grid.connect(old.address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await old.until_calls(1)
            old.push(make_map(hosts, primary=1, version=2))
            await asyncio.sleep(0.1)
            assert new.calls == []
            old.calls[0].reply(5)
            assert await call == 5

    run(main)


def test_a_call_is_sent_again_once_for_each_epoch_however_often_it_is_told():
    async def main():
        old, new, third = hosts = await hosts_of_one_grid()
        for host in hosts:
            host.answer = lambda received: SILENCE
        async with grid.connect(old.address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await old.until_calls(1)
            for _ in range(20):
                old.push(make_map(hosts, primary=1, epoch=6))
                old.push(make_map(hosts, primary=2, epoch=4, version=9))
            await new.until_calls(1)
            await asyncio.sleep(0.05)
            assert [len(host.calls) for host in hosts] == [1, 1, 0]
            for _ in range(5):
                old.push(make_map(hosts, primary=2, epoch=7))
                old.push(make_map(hosts, primary=1, epoch=6))
            await third.until_calls(1)
            await asyncio.sleep(0.05)
            assert [len(host.calls) for host in hosts] == [1, 1, 1]
            third.calls[0].reply(9)
            assert await call == 9

    run(main)


def test_a_refusal_that_comes_right_behind_the_map_leaves_no_doubt():
    async def main():
        old, new = hosts = await hosts_of_one_grid(2)
        old.answer = lambda received: SILENCE
        async with grid.connect(old.address, settings=SLOW) as client:
            calls = [client.get(Account, "alice").deposit(i) for i in range(3)]
            await old.until_calls(3)
            frames = [make_map(hosts, primary=1, epoch=6)]
            frames += [received.replies(NotPrimaryError("moved", **hint(new, epoch=6))) for received in old.calls]
            old.calls[0].connection.send_bytes(b"".join(frame(encode(each)) for each in frames))
            assert [await call for call in calls] == [1] * 3
        assert sends(new) == [(1, False), (2, False), (3, False)]

    run(main)


def test_a_primary_that_is_elected_again_keeps_what_it_has():
    async def main():
        host, _ = hosts = await hosts_of_one_grid(2)
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await host.until_calls(1)
            host.push(make_map(hosts, primary=0, epoch=6))
            await asyncio.sleep(0.05)
            assert len(host.calls) == 1
            host.calls[0].reply(3)
            assert await call == 3

    run(main)


REFUSALS = [
    NotPrimaryError("not here", retry_after_s=4),
    HostUnavailableError("does not serve at the moment", retry_after_s=4),
    NoWriteQuorumError("two of three are away", retry_after_s=4),
    WriteInDoubtError("stepped down"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
@pytest.mark.parametrize(("primary", "epoch"), [(1, 6), (0, 6)], ids=["another host", "a newer epoch"])
def test_a_refused_call_does_not_wait_for_its_backoff_when_the_primary_changes(refusal, primary, epoch):
    async def main():
        hosts = await hosts_of_one_grid(2)
        hosts[0].answer = lambda received: refusal if len(hosts[0].calls) == 1 else 1
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await hosts[0].until_calls(1)
            await asyncio.sleep(0.05)
            started = time.monotonic()
            hosts[0].push(make_map(hosts, primary=primary, epoch=epoch))
            assert await call == 1
            assert time.monotonic() - started < AT_ONCE_S
        assert sends(hosts[primary])[-1] == (1, isinstance(refusal, WriteInDoubtError))

    run(main)


def test_a_map_that_changes_nothing_for_a_partition_releases_none_of_its_calls():
    async def main():
        hosts = await hosts_of_one_grid(2)
        partition = partition_of(make_address("Account", "alice"), 8)
        hosts[0].answer = lambda received: NoWriteQuorumError("two of three are away") if received.group.partition == partition else 1
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            assert await client.map(Account.deposit, [(f"b{i}", 1) for i in range(50) if partition_of(f"Account\0b{i}", 8) != partition])
            hosts[0].calls.clear()
            call = client.get(Account, "alice").deposit(1)
            await hosts[0].until_calls(1)
            await asyncio.sleep(0.02)
            told = make_map(hosts, primary=1, epoch=6)
            told.primaries[partition - 1], told.epochs[partition - 1] = 0, 5
            hosts[0].push(told)
            hosts[0].push(make_map(hosts, primary=0, epoch=5, version=4))
            await asyncio.sleep(0.1)
            assert client.partition_map.epochs.count(6) == 7
            assert not call.done()
            assert [len(host.calls) for host in hosts] == [1, 0]
            call.cancel()

    run(main)


def test_a_full_host_is_left_alone_also_when_it_is_elected_again():
    async def main():
        hosts = await hosts_of_one_grid(2)
        hosts[0].answer = lambda received: OverloadedError("full", retry_after_s=5)
        async with grid.connect(hosts[0].address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await hosts[0].until_calls(1)
            await asyncio.sleep(0.02)
            hosts[0].push(make_map(hosts, primary=0, epoch=6))
            await asyncio.sleep(0.1)
            assert len(hosts[0].calls) == 1
            call.cancel()

    run(main)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
def test_a_refusal_that_comes_with_the_news_of_a_primary_sends_the_call_there_at_once(refusal):
    """Also where the call has been refused before, so that its backoff has grown."""

    async def main():
        old, new = hosts = await hosts_of_one_grid(2)
        old.answer = lambda received: OverloadedError("full") if len(old.calls) == 1 else SILENCE
        settings = ClientSettings(timeout_s=10, retry_first_s=0.4, retry_max_s=5)
        async with grid.connect(old.address, settings=settings) as client:
            call = client.get(Account, "alice").deposit(1)
            await old.until_calls(2)
            started = time.monotonic()
            old.calls[1].connection.send(make_map(hosts, primary=1, epoch=6))
            old.calls[1].reply(refusal)
            assert await call == 1
            assert time.monotonic() - started < 0.35
        assert new.calls[0].number == 1

    run(main)


# -- hints


def test_a_hint_with_a_newer_epoch_changes_the_map_for_all_calls():
    async def main():
        old, new = await hosts_of_one_grid(2)
        old.answer = lambda received: NotPrimaryError("moved", **hint(new, epoch=6, partition=received.group.partition))
        async with grid.connect(old.address, settings=SLOW) as client:
            partition = partition_of(make_address("Account", "alice"), 8)
            assert await client.get(Account, "alice").deposit(1) == 1
            assert client.partition_map.host_of(partition) == new.info
            assert client.partition_map.epoch_of(partition) == 6
            assert [host.name for host in client.partition_map.secondaries_of(partition)] == ["node-0"]
            assert client.partition_map.epochs.count(5) == 7
            assert await client.get(Account, "alice").deposit(2) == 1
        assert sends(old) == [(1, False)]
        assert sends(new) == [(1, False), (2, False)]

    run(main)


def test_a_hint_that_is_older_than_the_map_leads_nobody_back():
    async def main():
        old, new = hosts = await hosts_of_one_grid(2)
        for host in hosts:
            host.map = make_map(hosts, primary=1, epoch=6)
        hints = [hint(old, epoch=5), hint(old), hint(old, epoch=5)]
        new.answer = lambda received: NotPrimaryError("not yet", **hints.pop()) if hints else 4
        async with grid.connect(new.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 4
            assert set(client.partition_map.epochs) == {6}
        assert old.calls == []
        assert len(new.calls) == 4

    run(main)


def test_a_hint_of_another_partition_or_without_a_host_changes_nothing():
    async def main():
        host, other = await hosts_of_one_grid(2)
        hints = [hint(other, epoch=9, partition=77), {"primary": "node-9", "epoch": 9}, {"primary": "", "epoch": 9}]
        host.answer = lambda received: NotPrimaryError("not yet", **hints.pop()) if hints else 4
        async with grid.connect(host.address, settings=QUICK) as client:
            assert await client.get(Account, "alice").deposit(1) == 4
            assert set(client.partition_map.epochs) == {5}
        assert other.calls == []

    run(main)


@pytest.mark.parametrize("epoch", [0, 6])
def test_a_hint_leads_to_a_host_that_the_map_does_not_know(epoch):
    async def main():
        old, _ = await hosts_of_one_grid(2)
        old.map = None if epoch == 0 else old.map
        newcomer = await StandInHost("node-9").start()
        newcomer.map = old.map
        old.answer = lambda received: NotPrimaryError("moved", **hint(newcomer, epoch=epoch))
        async with grid.connect(old.address, settings=SLOW) as client:
            started = time.monotonic()
            assert await client.get(Account, "alice").deposit(1) == 1
            assert time.monotonic() - started < AT_ONCE_S
        assert sends(newcomer) == [(1, False)]

    run(main)


def test_a_hint_names_the_primary_that_the_map_lacks():
    async def main():
        host, other = hosts = await hosts_of_one_grid(2)
        for each in hosts:
            each.map = make_map(hosts, primary=0, epoch=5)
        host.answer = lambda received: SILENCE
        async with grid.connect(host.address, settings=SLOW) as client:
            call = client.get(Account, "alice").deposit(1)
            await host.until_calls(1)
            host.push(make_map(hosts, primary=-1, epoch=6))
            await asyncio.sleep(0.02)
            host.calls[0].reply(NotPrimaryError("moved", **hint(other, epoch=6)))
            assert await call == 1
        assert sends(other) == [(1, False)]

    run(main)


# -- two hosts, neither of which knows everything


def test_what_two_hosts_know_is_put_together():
    async def main():
        one, other = hosts = await hosts_of_one_grid(2)
        ids = {partition_of(make_address("Account", f"a{i}"), 8): f"a{i}" for i in range(200)}
        half = make_map(hosts, primary=0, epoch=5)
        half.primaries[:4], half.epochs[:4] = [1] * 4, [8] * 4
        one.map = make_map(hosts, primary=0, epoch=5)
        other.map = half
        refuse = NotPrimaryError("not here")
        one.answer = lambda received: 1 if received.group.partition > 4 else refuse
        other.answer = lambda received: 1 if received.group.partition <= 4 else refuse
        async with grid.connect(f"{one.address},{other.address}", settings=QUICK) as client:
            await other.until(lambda: other.is_connected)
            await asyncio.sleep(0.02)
            assert await client.map(Account.deposit, [(ids[partition], 1) for partition in range(1, 9)]) == [1] * 8
            # An answer that knows less, whatever its version, takes nothing away.
            one.push(make_map(hosts, primary=0, epoch=5, version=99))
            await asyncio.sleep(0.02)
            assert await client.map(Account.deposit, [(ids[partition], 1) for partition in range(1, 9)]) == [1] * 8
        assert (len(one.calls), len(other.calls)) == (8, 8), "nobody was asked in vain"

    run(main)
