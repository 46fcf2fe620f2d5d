"""Unit tests of the actors in `bank.py`, with failovers, in well under a second: ``python -m pytest test_bank.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bank import Account

from actorgrid.client.client import Client
from actorgrid.errors import ActorError
from actorgrid.testing import TestGrid


@pytest.fixture
def test_grid() -> Iterator[TestGrid]:
    """One host: enough for everything that is not about several. It takes a few milliseconds to start."""
    with TestGrid(Account) as test_grid:
        yield test_grid


def test_money_is_moved(test_grid: TestGrid) -> None:
    async def scenario(client: Client) -> tuple[int, int]:
        alice, bob = client.get(Account, "alice"), client.get(Account, "bob")
        await alice.deposit(100)
        await alice.transfer("bob", 30)
        return await alice.read_balance(), await bob.read_balance()

    assert test_grid.run(scenario) == (70, 30)


def test_who_has_too_little_keeps_it(test_grid: TestGrid) -> None:
    test_grid.call(Account.deposit, "alice", 100)
    with pytest.raises(ActorError, match="900 cents are missing"):
        test_grid.call(Account.withdraw, "alice", 1000)
    assert test_grid.call(Account.read_balance, "alice") == 100


def test_the_balance_is_kept_when_the_account_has_left_memory(test_grid: TestGrid) -> None:
    test_grid.call(Account.deposit, "alice", 100)
    test_grid.advance(3600.0)  # nobody calls for an hour
    assert not test_grid.is_active(Account, "alice")
    assert test_grid.call(Account.read_balance, "alice") == 100


@pytest.mark.parametrize("after_us", range(0, 3000, 250))
def test_money_is_moved_once_whenever_the_host_dies(after_us: int) -> None:
    with TestGrid(Account, hosts=3) as test_grid:
        test_grid.call(Account.deposit, "alice", 100)

        async def scenario(client: Client) -> int:
            return await client.get(Account, "alice").transfer("bob", 30)

        transfer = test_grid.start(scenario)
        test_grid.advance(after_us / 1e6)
        test_grid.fail_over(Account, "alice")  # before the transfer, in the middle of it, or after it
        assert transfer.result() == 70
        assert test_grid.call(Account.read_balance, "alice") == 70
        assert test_grid.call(Account.read_balance, "bob") == 30
