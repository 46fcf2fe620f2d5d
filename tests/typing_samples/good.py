"""What mypy and editors know about calls. Checked by mypy strict, never run."""

from __future__ import annotations

from typing import Any, assert_type

from actorgrid import grid
from actorgrid.errors import ActorGridError


@grid.actor
class Account:
    """The class of the README."""

    balance: int = 0
    history: grid.Map[str, int]

    async def deposit(self, amount: int, note: str = "") -> int:
        self.balance += amount
        return self.balance

    @grid.read
    async def read_balance(self) -> int:
        return self.balance

    @grid.reentrant
    async def touch(self) -> None:
        return None

    @grid.blocking
    def report(self, path: str) -> bytes:
        return path.encode()


@grid.actor(name="Purse")
class Wallet:
    """A class with a name of its own in the grid."""

    async def peek(self) -> list[str]:
        return []


async def use() -> None:
    async with grid.connect("127.0.0.1:7400", timeout_s=5.0) as client:
        alice = client.get(Account, "alice")
        assert_type(alice, Account)
        assert_type(await alice.deposit(5, note="rent"), int)
        assert_type(await alice.report("x"), bytes)
        assert_type(await client.get(Wallet, "w").peek(), list[str])
        assert_type(await client.call(Account.deposit, "alice", 5, note="rent"), int)
        assert_type(await client.call(Account.read_balance, "alice"), int)
        assert_type(await client.call(Account.report, "alice", "x"), bytes)
        await client.call(Account.touch, "alice")
        assert_type(await client.map(Account.deposit, [("alice", 5), ("bob", 7)]), list[int])
        assert_type(await client.map(Account.deposit, [("alice", 5)], return_errors=True), list[int | ActorGridError])
        assert_type(await client.with_options(timeout_s=1.0, idempotency_key="order-77").get(Account, "alice").deposit(1), int)
        assert_type(await client.call_by_name("Account", "alice", "deposit", [5]), Any)


def use_sync() -> None:
    with grid.connect_sync("127.0.0.1:7400") as client:
        assert_type(client.call(Account.deposit, "alice", 5), int)
        assert_type(client.call(Account.report, "alice", "x"), bytes)
        assert_type(client.map(Account.deposit, [("alice", 5)]), list[int])
        client.get(Account, "alice").deposit(5)
