"""The synchronous client: the same calls, from threads."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from samples import QUICK, Account, Statement
from stand_in import SILENCE, Applied, StandInHost

from actorgrid import grid
from actorgrid.errors import ActorError, ActorGridError, DeadlineExceededError, HostUnavailableError, InvalidArgumentError


@pytest.fixture
def host():
    """A stand-in host on a loop of its own, as it would be in another process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        return await StandInHost().start()

    async def stop(host):
        await host.stop()
        await asyncio.sleep(0.01)

    host = asyncio.run_coroutine_threadsafe(start(), loop).result()
    host.loop = loop
    yield host
    asyncio.run_coroutine_threadsafe(stop(host), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_calls_return_plain_values(host):
    host.answer = lambda received: {"owner": "alice", "balance": 3} if received.call.method == "statement" else received.args[0]
    with grid.connect_sync(host.address, settings=QUICK) as client:
        alice = client.get(Account, "alice")
        assert alice.deposit(5) == 5
        assert client.call(Account.deposit, "alice", 6) == 6
        assert alice.statement() == Statement("alice", 3)
        assert client.map(Account.deposit, ((f"a{i}", i) for i in range(20))) == list(range(20))
        assert client.call_by_name("Account", "alice", "deposit", [8]) == 8
        assert client.admin("127.0.0.1", host.port, "status") == {"verb": "status"}
        assert client.partition_map.partition_count == 8
        assert client.with_options(idempotency_key="order-1", timeout_s=2).get(Account, "alice").deposit(9) == 9
        assert alice == client.get(Account, "alice")
        assert repr(alice) == f"<Account/alice on {host.address}>"
    assert host.calls[-1].call.extra.key == "order-1"


def test_errors_are_raised_in_the_thread_that_called(host):
    host.answer = lambda received: ActorError("no") if received.args[0] == 1 else SILENCE
    with grid.connect_sync(host.address, settings=QUICK) as client:
        with pytest.raises(ActorError, match="no"):
            client.get(Account, "alice").deposit(1)
        with pytest.raises(InvalidArgumentError):
            client.get(Account, "alice").deposit()
        with pytest.raises(DeadlineExceededError):
            client.with_options(timeout_s=0.05).get(Account, "alice").deposit(2)
        with pytest.raises(AttributeError, match="fields are read through methods"):
            _ = client.get(Account, "alice").balance
        results = client.with_options(timeout_s=0.05).map(Account.deposit, [("a", 1), ("b", 2)], return_errors=True)
        assert [type(result) for result in results] == [ActorError, DeadlineExceededError]


def test_many_threads_share_one_client_and_one_connection(host):
    host.answer = lambda received: received.args[0]
    with grid.connect_sync(host.address, settings=QUICK) as client, ThreadPoolExecutor(16) as pool:

        def work(i):
            actor = client.get(Account, f"a{i}")
            return [actor.deposit(i * 100 + j) for j in range(50)] == [i * 100 + j for j in range(50)]

        assert all(pool.map(work, range(16)))
    assert len(host.connections) == 1
    assert sorted(received.number for received in host.calls) == list(range(1, 801))


def test_closing_from_another_thread_lets_nobody_wait_on(host):
    host.answer = lambda received: SILENCE
    client = grid.connect_sync(host.address, settings=QUICK).open()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.get(Account, "alice").deposit, 1) for _ in range(4)]
        while len(host.calls) < 4:
            time.sleep(0.01)
        client.close()
        for call in calls:
            with pytest.raises(ActorGridError, match="closed"):
                call.result(timeout=5)
    client.close()
    with pytest.raises(ActorGridError, match="closed"):
        client.get(Account, "alice").deposit(1)
    with pytest.raises(ActorGridError):
        client.open()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actorgrid client")]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_the_call_and_leaves_the_client_usable(host):
    host.answer = lambda received: SILENCE if received.args[0] == 1 else 5
    with grid.connect_sync(host.address, settings=QUICK) as client:
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.get(Account, "alice").deposit(1)
        assert time.monotonic() - started < 3
        timer.join()
        assert client.get(Account, "alice").deposit(2) == 5
        assert client._client._caller._pending == {}


def test_each_thread_knows_what_its_last_read_of_any_replica_reflects(host):
    host.answer = lambda received: Applied(7, int(received.args[0])) if received.any_replica else 1
    with grid.connect_sync(host.address, settings=QUICK) as client, ThreadPoolExecutor(8) as pool:
        assert client.last_applied_lsn == 0
        assert client.get(Account, "alice").read_about("40") == 7
        assert client.last_applied_lsn == 40
        assert client.call(Account.read_about, "alice", "41") == 7
        assert client.with_options(timeout_s=2).last_applied_lsn == 41
        assert client.get(Account, "alice").read_balance() == client.get(Account, "alice").deposit(1) == 1
        assert client.last_applied_lsn == 41
        assert client.map(Account.read_about, [("alice", "99")]) == [7]
        assert client.last_applied_lsn == 41
        with pytest.raises(InvalidArgumentError):
            client.get(Account, "alice").read_about(5, 6)

        def work(i):
            found = client.last_applied_lsn == 0 or client.last_applied_lsn % 10 == 0
            for j in range(1, 20):
                client.with_options(timeout_s=3).get(Account, "alice").read_about(str(1000 * i + 10 * j))
                found = found and client.last_applied_lsn == 1000 * i + 10 * j
            return found

        assert all(pool.map(work, range(1, 9)))
        assert client.last_applied_lsn == 41


def test_connecting_to_nobody_leaves_no_thread():
    client = grid.connect_sync("127.0.0.1:9", timeout_s=0.1)
    with pytest.raises(ActorGridError, match="not connected"):
        client.get(Account, "alice").deposit(1)
    with pytest.raises(HostUnavailableError, match=r"no grid found within 0\.1 s"), client:
        pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actorgrid client")]
