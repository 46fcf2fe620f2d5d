"""`TestGrid`: what users write with it, what it says when they err, and that it costs them nothing."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from actorgrid import ambient, grid
from actorgrid.errors import ActorError, DeadlineExceededError, InvalidArgumentError, SettingsError, TransientError
from actorgrid.settings import ClientSettings, HostSettings
from actorgrid.testing import Running, SimCluster, SimulationError, StuckError, TestGrid
from actorgrid.testing import grid as grid_module

ROOT = Path(__file__).parents[2]

#: What turns did, also those that were executed in vain.
happened: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_has_happened():
    happened.clear()
    real = ambient.monotonic_ns
    yield
    assert ambient.monotonic_ns is real


def add(first: int, second: int) -> int:
    return first + second


@grid.actor
class Account:
    balance: int = 0
    _seen: int = 0

    async def deposit(self, amount: int) -> int:
        self.balance += amount
        self._seen += 1
        return self.balance

    async def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance

    async def transfer(self, to: str, amount: int) -> int:
        happened.append("transfer")
        balance = await self.withdraw(amount)
        await grid.current().get(Account, to).deposit(amount)
        return balance

    async def deposit_slowly(self, amount: int, seconds: float) -> int:
        happened.append("begun")
        self.balance += amount
        await asyncio.sleep(seconds)
        happened.append("ended")
        return self.balance

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def watch(self, seconds: float) -> None:
        self._watching = asyncio.create_task(self._watch(seconds))

    async def _watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            happened.append("looked")

    async def offload(self) -> int:
        return await grid.offload(add, 2, 3)

    @grid.blocking
    def block(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @grid.read
    async def read_balance(self) -> int:
        return self.balance

    @grid.read
    async def read_seen(self) -> int:
        return self._seen

    @grid.read(consistency="any")
    async def read_anywhere(self) -> int:
        return self.balance


@grid.actor
class Hooked:
    entered: int = 0
    left: int = 0

    async def on_activate(self) -> None:
        await asyncio.sleep(0.5)
        self.entered += 1

    async def on_deactivate(self) -> None:
        await asyncio.sleep(0.5)
        self.left += 1

    @grid.read
    async def read(self) -> tuple[int, int]:
        return self.entered, self.left


@pytest.fixture(name="test_grid")
def _test_grid():
    with TestGrid(Account, Hooked) as test_grid:
        yield test_grid


@pytest.fixture(name="three")
def _three():
    with TestGrid(Account, Hooked, hosts=3) as test_grid:
        yield test_grid


# -- calls


def test_a_whole_test_as_a_user_writes_it():
    with TestGrid(Account, hosts=3) as test_grid:

        async def scenario(client):
            alice = client.get(Account, "alice")
            await alice.deposit(100)
            with pytest.raises(ActorError, match="not enough money"):
                await alice.withdraw(1000)
            return await alice.read_balance()

        assert test_grid.run(scenario) == 100
        test_grid.fail_over(Account, "alice")
        test_grid.advance(60.0)
        assert test_grid.call(Account.read_balance, "alice") == 100


@pytest.mark.parametrize("hosts", [1, 3])
def test_it_starts_in_no_time(hosts):
    took_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        with TestGrid(Account, hosts=hosts) as test_grid:
            test_grid.call(Account.deposit, "alice", 1)
        took_s.append(time.perf_counter() - began_s)
    assert min(took_s) < 0.1


def test_what_a_scenario_raises_is_raised_by_run(test_grid):
    async def scenario(client):
        assert await client.get(Account, "alice").deposit(1) == 2

    with pytest.raises(AssertionError, match="== 2"):
        test_grid.run(scenario)
    with pytest.raises(ActorError, match="not enough") as refused:
        test_grid.call(Account.withdraw, "alice", 5)
    assert refused.value.remote_type == "ValueError"

    async def fails(client):
        pytest.fail("said by the test")

    with pytest.raises(pytest.fail.Exception, match="said by the test"):
        test_grid.run(fails)


def test_scenarios_follow_each_other_with_the_same_client(test_grid):
    assert test_grid.run(lambda client: client.get(Account, "alice").deposit(1)) == 1
    test_grid.fail_over(Account, "alice")
    assert test_grid.run(lambda client: client.map(Account.deposit, [("alice", 2), ("bob", 3)])) == [3, 3]


def test_a_started_scenario_goes_on_when_time_passes(test_grid):
    async def scenario(client):
        await asyncio.sleep(10)
        return await client.get(Account, "alice").deposit(1)

    running: Running[int] = test_grid.start(scenario)
    test_grid.advance(9.9)
    assert not running.is_over
    test_grid.advance(0.2)
    assert running.is_over
    assert running.result() == running.result() == 1


def run_unasked(*, test_fails: bool) -> None:
    async def scenario(client):
        raise LookupError("heard at the end")

    with TestGrid(Account) as test_grid:
        test_grid.start(scenario)
        test_grid.advance(1)
        if test_fails:
            raise ZeroDivisionError


def test_what_nobody_asked_for_is_raised_at_the_end():
    with pytest.raises(LookupError, match="heard at the end"):
        run_unasked(test_fails=False)
    with pytest.raises(ZeroDivisionError):  # what the test itself raises comes first
        run_unasked(test_fails=True)


def test_a_task_that_raises_and_that_nobody_awaits_is_heard_of():
    async def broken():
        raise LookupError("in a task")

    async def scenario(client):
        tasks = [asyncio.create_task(broken())]
        await asyncio.sleep(1)
        tasks.clear()
        await asyncio.sleep(1)

    with pytest.raises(SimulationError, match="in a task"), TestGrid(Account) as test_grid:
        test_grid.run(scenario)


def test_a_cancelled_scenario_says_so(test_grid):
    async def scenario(client):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError, match="scenario"):
        test_grid.run(scenario)


def test_threads_and_offloaded_functions_run_in_place(test_grid):
    assert test_grid.call(Account.block, "alice", 5) == 5
    assert test_grid.call(Account.offload, "alice") == 5


def test_settings_are_the_users():
    with TestGrid(Account, settings=HostSettings(activation_idle_s=5), client_settings=ClientSettings(timeout_s=2)) as test_grid:
        test_grid.call(Account.deposit, "alice", 1)
        test_grid.advance(7)
        assert not test_grid.is_active(Account, "alice")
        began_s = test_grid.now_s
        with pytest.raises(DeadlineExceededError, match="no answer within 2 s"):
            test_grid.call(Account.hang, "alice")
        assert 2 <= test_grid.now_s - began_s < 3


# -- what is wrong is said


@pytest.mark.pure  # a compiled coroutine does not tell where it waits
def test_a_scenario_that_never_ends_says_who_waits_and_where(test_grid):
    async def scenario(client):
        return await client.with_options(timeout_s=1000).get(Account, "alice").hang()

    with pytest.raises(StuckError) as stuck:
        test_grid.run(scenario, timeout_s=50)
    text = str(stuck.value)
    assert "not within 50 virtual seconds" in text
    assert re.search(r"test_test_grid\.py:\d+ in test_a_scenario_that_never_ends.*scenario", text)
    assert re.search(r"Account\.hang of Account/alice, waits since 49\.\d+ s at\n  .*test_test_grid\.py:\d+ in Account\.hang", text)
    with pytest.raises(StuckError, match="is true"):
        test_grid.run_until(lambda: False, timeout_s=1)


def test_a_scenario_that_polls_without_a_pause_is_ended(test_grid, monkeypatch):
    monkeypatch.setattr(grid_module, "EVENTS_MAX", 5_000)

    async def scenario(client):
        while True:
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="polls without a pause"):
        test_grid.run(scenario)


def test_a_hanging_call_ends_at_its_own_deadline(test_grid):
    with pytest.raises(DeadlineExceededError, match="deadline"):
        test_grid.call(Account.hang, "alice")
    assert test_grid.now_s < 31


def test_only_one_at_a_time(test_grid):
    with pytest.raises(RuntimeError, match="another TestGrid or SimCluster is open"), TestGrid(Account):
        pass
    test_grid.fail_over(Account, "alice")
    assert test_grid.call(Account.deposit, "alice", 1) == 1


def test_no_cluster_beside_it(test_grid):
    with pytest.raises(RuntimeError, match="another TestGrid or SimCluster is open"), SimCluster(1, [Account]):
        pass
    test_grid.fail_over(Account, "alice")
    assert test_grid.call(Account.deposit, "alice", 1) == 1


def test_not_beside_a_cluster():
    with SimCluster(1, [Account]), pytest.raises(RuntimeError, match="another TestGrid"), TestGrid(Account):
        pass


def test_not_in_a_running_loop():
    async def with_a_loop():
        with TestGrid(Account):
            pass

    with pytest.raises(RuntimeError, match="plain `def` test"):
        asyncio.run(with_a_loop())


def test_not_from_inside_and_not_outside_the_block(test_grid):
    async def scenario(client):
        test_grid.advance(1)

    with pytest.raises(RuntimeError, match="called by a scenario"):
        test_grid.run(scenario)
    with pytest.raises(RuntimeError, match="with TestGrid"):
        TestGrid(Account).call(Account.deposit, "alice", 1)
    with pytest.raises(TypeError, match="do not call it"):
        test_grid.run(_coroutine())
    with pytest.raises(TypeError, match="returned 5"):
        test_grid.run(lambda client: 5)


async def _coroutine():
    pass


def test_after_a_failed_start_everything_is_as_before(monkeypatch):
    def fail(self):
        raise LookupError("at the start")

    with monkeypatch.context() as patch:
        patch.setattr(SimCluster, "begin", fail)
        with pytest.raises(LookupError), TestGrid(Account):
            pass
    with TestGrid(Account) as test_grid:
        assert test_grid.call(Account.deposit, "alice", 1) == 1


@pytest.mark.parametrize("hosts", [0, 8, True, "3"])
def test_the_number_of_hosts_is_checked(hosts):
    with pytest.raises(ValueError, match=r"expected 1\.\.7"):
        TestGrid(Account, hosts=hosts)


def test_the_app_is_checked_where_it_is_given():
    @grid.actor
    class Broken:
        lock: asyncio.Lock = None

    @grid.actor(name="Account")
    class Other:
        pass

    with pytest.raises(SettingsError, match="Broken"):
        TestGrid(Broken)
    with pytest.raises(SettingsError, match="two actor classes are named 'Account'"):
        TestGrid(Account, Other)
    with pytest.raises(InvalidArgumentError, match="decorate the class"):
        TestGrid(int)
    with pytest.raises(TypeError, match="got 'bank'"):
        TestGrid("bank")
    with pytest.raises(SettingsError, match="no actor is given"):
        TestGrid()
    with pytest.raises(SettingsError, match="'asyncio' has no actor"):
        TestGrid(asyncio)


def test_local_classes_and_modules_are_served():
    @grid.actor
    class Local:
        count: int = 0

        async def step(self) -> int:
            self.count += 1
            return self.count + await grid.current().get(Account, "alice").deposit(10)

    module = types.ModuleType("made_up")
    module.Account = Account
    module.AlsoAccount = Account
    with TestGrid(Local, module, Account, hosts=3) as test_grid:
        assert test_grid.call(Local.step, "x") == 11
        test_grid.fail_over(Local, "x")
        assert test_grid.call(Local.step, "x") == 22


# -- time


def test_time_passes_at_no_cost_and_idle_actors_leave(test_grid):
    test_grid.call(Account.deposit, "alice", 1)
    test_grid.advance(590)
    assert test_grid.is_active(Account, "alice")
    test_grid.advance(20)
    assert not test_grid.is_active(Account, "alice")
    began_s, began_real_s = test_grid.now_s, time.perf_counter()
    test_grid.advance(86_400)
    assert test_grid.now_s - began_s == pytest.approx(86_400)
    assert time.perf_counter() - began_real_s < 3
    assert test_grid.call(Account.read_balance, "alice") == 1
    with pytest.raises(ValueError, match="forward"):
        test_grid.advance(-1)


def test_leaps_over_time_frighten_nobody(three):
    three.call(Account.deposit, "alice", 1)
    before = three.cluster.primaries()
    epochs = [host.host.liveness.primaries for host in three.cluster.hosts.values()]
    known = [dict(each) for each in epochs]
    three.advance(300)
    assert three.cluster.primaries() == before
    assert [dict(each) for each in epochs] == known
    began_s = three.now_s
    assert three.call(Account.deposit, "alice", 1) == 2
    assert three.now_s - began_s < 0.05


def test_idempotency_keys_are_forgotten_after_their_time(test_grid):
    def pay(order):
        return test_grid.run(lambda client: client.with_options(idempotency_key=order).get(Account, "alice").deposit(5))

    assert pay("order-77") == 5
    test_grid.advance(86_400 - 60)
    assert pay("order-77") == 5
    test_grid.advance(120)
    assert pay("order-78") == 10  # an expired key goes with the next one that comes to its partition
    test_grid.advance(1)
    assert pay("order-77") == 15


def test_what_an_actor_does_by_itself_happens_in_time(test_grid):
    test_grid.call(Account.watch, "alice", 2.0)
    test_grid.advance(101)
    assert happened == ["looked"] * 50


def test_a_timer_of_the_users_is_on_time(test_grid):
    async def scenario(client):
        loop = asyncio.get_running_loop()
        loop.call_later(100, lambda: happened.append(f"{loop.time() - began_s:.3f}"))
        return loop.time()

    began_s = test_grid.run(scenario)
    test_grid.advance(300)
    assert happened == ["100.000"]


def test_a_waiting_turn_goes_on_in_time(test_grid):
    running = test_grid.start(lambda client: client.with_options(timeout_s=500).get(Account, "alice").deposit_slowly(1, 100.0))
    test_grid.advance(99)
    assert happened == ["begun"]
    test_grid.advance(2)
    assert happened == ["begun", "ended"]
    assert running.result() == 1


# -- what may happen


@pytest.mark.parametrize("hosts", [1, 3])
def test_deactivate_leaves_what_is_persisted(hosts):
    with TestGrid(Account, hosts=hosts) as test_grid:
        test_grid.call(Account.deposit, "alice", 7)
        for _ in range(4):
            test_grid.call(Account.read_anywhere, "alice")
        assert test_grid.call(Account.read_seen, "alice") == 1
        test_grid.deactivate(Account, "alice")
        assert not test_grid.is_active(Account, "alice")
        test_grid.deactivate(Account, "alice")
        assert test_grid.call(Account.read_seen, "alice") == 0
        assert test_grid.call(Account.read_balance, "alice") == 7


def test_deactivate_runs_hooks_and_waits_for_turns(test_grid):
    assert test_grid.call(Hooked.read, "x") == (1, 0)
    test_grid.deactivate(Hooked, "x")
    assert test_grid.call(Hooked.read, "x") == (2, 1)

    running = test_grid.start(lambda client: client.get(Account, "alice").deposit_slowly(1, 5.0))
    test_grid.run_until(lambda: happened == ["begun"])
    test_grid.deactivate(Account, "alice")
    assert happened == ["begun", "ended"]
    assert running.result() == 1

    hanging = test_grid.start(lambda client: client.with_options(timeout_s=100).get(Account, "alice").hang())
    test_grid.advance(1)
    with pytest.raises(StuckError, match="Account/alice can leave memory"):
        test_grid.deactivate(Account, "alice")
    with pytest.raises(DeadlineExceededError):
        hanging.result()


@pytest.mark.parametrize("hosts", [1, 2, 3, 5])
def test_fail_over_again_and_again(hosts):
    with TestGrid(Account, hosts=hosts) as test_grid:
        for number in range(6):
            assert test_grid.call(Account.deposit, "alice", 1) == number + 1
            before = test_grid.host_of(Account, "alice")
            after = test_grid.fail_over(Account, "alice")
            assert after == test_grid.host_of(Account, "alice")
            assert hosts < 3 or after != before


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_turn_that_is_cut_short_runs_again_and_counts_once(hosts):
    with TestGrid(Account, hosts=hosts) as test_grid:
        running = test_grid.start(lambda client: client.get(Account, "alice").deposit_slowly(7, 1.0))
        test_grid.run_until(lambda: happened == ["begun"])
        test_grid.fail_over(Account, "alice")
        assert running.result() == 7
        assert happened == ["begun", "begun", "ended"]
        assert test_grid.call(Account.read_balance, "alice") == 7


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_transfer_happens_once_whenever_the_host_dies(hosts):
    executions = set()
    for after_us in range(0, 2500, 125):
        happened.clear()
        with TestGrid(Account, hosts=hosts) as test_grid:
            test_grid.call(Account.deposit, "alice", 100)
            transfer = test_grid.start(lambda client: client.get(Account, "alice").transfer("bob", 30))
            test_grid.advance(after_us / 1e6)
            test_grid.fail_over(Account, "alice")
            assert transfer.result() == 70
            assert test_grid.run(lambda client: client.map(Account.read_balance, [("alice",), ("bob",)])) == [70, 30]
        executions.add(len(happened))
    assert executions == {1, 2}  # some moments are in the middle of it


def test_a_fail_over_that_would_cost_the_majority_is_refused(three):
    three.call(Account.deposit, "alice", 1)
    three.crash(next(host for host in three.hosts if host != three.host_of(Account, "alice")))
    with pytest.raises(StuckError, match=r"the grid can do without host-\d(.|\n)*host-\d is down"):
        three.fail_over(Account, "alice")


def test_actors_move_while_they_are_called(three):
    async def scenario(client):
        for _ in range(200):
            await client.get(Account, "alice").deposit(1)
            await asyncio.sleep(0.01)

    running = three.start(scenario)
    seen = {three.host_of(Account, "alice")}
    for _ in range(3):
        three.advance(0.1)
        seen.add(three.move(Account, "alice"))
    assert len(seen) > 1
    for host in three.hosts:
        assert three.move(Account, "alice", to=host) == host == three.host_of(Account, "alice")
    running.result()
    assert three.call(Account.read_balance, "alice") == 200


def test_moves_that_cannot_be(test_grid):
    with pytest.raises(ValueError, match="one host"):
        test_grid.move(Account, "alice")
    with pytest.raises(ValueError, match="no host 'host-9'; there are host-1"):
        test_grid.move(Account, "alice", to="host-9")
    assert test_grid.move(Account, "alice", to="host-1") == "host-1"


def test_a_turn_that_takes_long_keeps_its_actor_where_it_is(three, monkeypatch):
    monkeypatch.setattr(grid_module, "GRID_TIMEOUT_S", 10.0)
    three.start(lambda client: client.with_options(timeout_s=500).get(Account, "alice").hang())
    three.advance(1)
    with pytest.raises(StuckError, match="another host serves Account/alice"):
        three.move(Account, "alice")


def test_hosts_die_and_come_back(three):
    three.call(Account.deposit, "alice", 1)
    three.crash("host-1")
    assert three.call(Account.deposit, "alice", 1) == 2
    three.crash("host-2")
    three.advance(3)
    with pytest.raises(TransientError):
        three.call(Account.deposit, "alice", 1)
    three.restart("host-2")
    assert three.call(Account.deposit, "alice", 1) == 3
    three.restart("host-2")  # it runs
    three.restart("host-1")
    assert three.call(Account.deposit, "alice", 1) == 4
    with pytest.raises(ValueError, match="no host"):
        three.crash("host-4")


def test_the_network_may_be_slow(test_grid):
    def takes_s():
        began_s = test_grid.now_s
        test_grid.call(Account.deposit, "alice", 1)
        return test_grid.now_s - began_s

    takes_s()
    assert takes_s() < 0.01
    with test_grid.slow_network(latency_s=0.2, jitter_s=0.1):
        assert 0.4 <= takes_s() < 0.7
    assert takes_s() < 0.01


def test_a_host_may_be_cut_off(three):
    three.call(Account.deposit, "alice", 1)
    before = three.host_of(Account, "alice")
    with three.isolated(before):
        assert three.call(Account.deposit, "alice", 1) == 2
        assert three.host_of(Account, "alice") != before
    three.advance(5)
    assert three.call(Account.deposit, "alice", 1) == 3


def test_a_date_may_be_wrong(three):
    three.set_date_offset(-86_400, "host-1")
    three.set_date_offset(0.5, "host-2")
    three.restart("host-1")
    offsets_ns = {name: host.process.loop.date_offset_ns for name, host in three.cluster.hosts.items()}
    assert offsets_ns == {"host-1": -86_400_000_000_000, "host-2": 500_000_000, "host-3": 0}
    three.set_date_offset(3600)
    assert three.call(Account.deposit, "alice", 1) == 1
    with pytest.raises(ValueError, match="no host"):
        three.set_date_offset(1, "host-4")


# -- the same again


def a_run(seed: int) -> tuple[str, list[str]]:
    happened.clear()
    with TestGrid(Account, hosts=3, seed=seed) as test_grid:
        running = test_grid.start(lambda client: client.get(Account, "alice").deposit_slowly(1, 0.5))
        test_grid.advance(0.25)
        hosts = [test_grid.fail_over(Account, "alice")]
        running.result()
        test_grid.advance(30)
        hosts.append(test_grid.move(Account, "alice"))
        test_grid.deactivate(Account, "alice")
        return test_grid.cluster.world.digest, hosts


def test_the_same_seed_gives_the_same_run():
    assert a_run(3) == a_run(3)
    assert len({a_run(seed)[0] for seed in range(4)}) == 4


# -- pytest, imports, documents


def test_logs_are_the_tests(test_grid, caplog):
    @grid.actor
    class FailsToWake:
        async def on_activate(self) -> None:
            raise ValueError("does not wake up")

        async def touch(self) -> None: ...

    test_grid.__exit__(None, None, None)
    with TestGrid(FailsToWake) as other:
        with pytest.raises(ActorError, match="does not wake up"):
            other.call(FailsToWake.touch, "x")
        assert "hook failed" in caplog.text
    logger = logging.getLogger("actorgrid")
    assert logger.propagate
    assert logger.level == logging.NOTSET


def test_pytest_does_not_take_it_for_tests():
    assert TestGrid.__test__ is False


def test_importing_the_checkers_imports_no_server():
    script = (
        "import sys; import actorgrid.testing.exactly_once, actorgrid.testing.linearizability\n"
        "loaded = [name for name in sys.modules if name.startswith(('actorgrid.host', 'actorgrid.storage', 'rocksdict'))]\n"
        "assert not loaded, loaded\n"
        "from actorgrid.testing import SimCluster, TestGrid\n"
        "assert 'actorgrid.host.host' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_the_server_it_says_what_to_install(monkeypatch):
    import actorgrid.testing

    monkeypatch.setitem(actorgrid.testing._MODULE_OF, "TestGrid", "no_such_package.grid")
    with pytest.raises(ModuleNotFoundError, match=r"TestGrid needs no_such_package: pip install 'actorgrid\[server\]'"):
        _ = actorgrid.testing.TestGrid
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = actorgrid.testing.Nothing


def test_every_code_block_of_the_document_runs(tmp_path):
    text = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```") // 2, "blocks of other languages would not be run"
    (tmp_path / "test_document.py").write_text("\n\n".join(blocks))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-W", "error", "-p", "no:cacheprovider", "test_document.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    names = set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)) - {"test_grid"}
    assert names == set(re.findall(r"::(test_\w+)\S* PASSED", run.stdout))
