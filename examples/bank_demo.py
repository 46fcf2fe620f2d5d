"""Deposits, transfers between actors, errors, and a call that is sent twice and counts once. Its actors are in `bank.py`."""

from __future__ import annotations

import asyncio

from bank import Account
from example_grid import example_grid

from actorgrid import grid
from actorgrid.errors import ActorError, InvalidArgumentError


async def main(address: str) -> None:
    async with grid.connect(address) as client:
        alice, bob = client.get(Account, "alice"), client.get(Account, "bob")  # no I/O: any account exists
        print("deposit: alice has", await alice.deposit(100_00))

        # A turn that calls another actor.
        print("transfer: alice has", await alice.transfer("bob", 30_00), "and bob", await bob.read_balance())

        # A raising turn changes nothing, and its exception comes back to the caller.
        before = await bob.read_balance()
        try:
            await bob.transfer("alice", 1_000_000_00)
        except ActorError as error:
            print(f"refused by the actor: {error.remote_type}: {error.remote_text}")
        print("unchanged:", await bob.read_balance() == before)

        # A wrong argument never reaches the actor.
        try:
            await alice.deposit("five")  # type: ignore[arg-type]
        except InvalidArgumentError as error:
            print("refused before the turn:", error)

        # Sent twice, perhaps by two runs of an application that crashed in between; it takes effect once.
        paying = client.with_options(idempotency_key="order-77")
        first = await paying.call(Account.deposit, "shop", 19_99)
        second = await paying.call(Account.deposit, "shop", 19_99)
        print("paid once:", first == second == await client.call(Account.read_balance, "shop"))

        # Many actors at once: one frame for each host, results in order.
        print("map:", await client.map(Account.deposit, [("carol", 1), ("dave", 2), ("erin", 3)]))


if __name__ == "__main__":
    with example_grid("bank") as address:
        asyncio.run(main(address))
