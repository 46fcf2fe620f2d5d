"""The client for code without asyncio: plain calls, plain values, from as many threads as you like. Its actors are in `bank.py`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bank import Account
from example_grid import example_grid

from actorgrid import grid
from actorgrid.errors import ActorError


def main(address: str) -> None:
    with grid.connect_sync(address, timeout_s=10) as client:
        # `call` knows the types; `get` is shorter to write.
        print("deposit: ann has", client.call(Account.deposit, "ann", 500))
        ann = client.get(Account, "ann")
        print("transfer: ann has", ann.transfer("ben", 200))

        try:
            ann.withdraw(1_000_000)
        except ActorError as error:
            print(f"refused: {error.remote_type}: {error.remote_text}")

        # One client for all threads; the actor takes one turn at a time, so nothing is lost and nothing needs a lock.
        before = client.call(Account.read_balance, "till")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda amount: client.call(Account.deposit, "till", amount), [1] * 800))
        print("800 deposits by 8 threads:", client.call(Account.read_balance, "till") - before)

        print("map:", client.map(Account.deposit, [("kim", 1), ("lee", 2)]))


if __name__ == "__main__":
    with example_grid("bank") as address:
        main(address)
