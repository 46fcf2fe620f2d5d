"""Two actors that call each other at the same moment: one turn gives way and is run again, and nothing is lost or doubled."""

import asyncio

import pytest
from host_actors import Payer
from host_harness import actor_on, one_grid, run


@pytest.mark.parametrize("hosts", [1, 2], ids=["on one host", "across two hosts"])
def test_opposite_transfers_both_succeed_and_money_is_conserved(tmp_path, hosts):
    async def main():
        a, b = actor_on(1, "Payer", "one"), actor_on(2, "Payer", "two")
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            for _ in range(20):
                async with asyncio.timeout(5):
                    there, back = client.get(Payer, a).pay(b, 3), client.get(Payer, b).pay(a, 2)
                    await there
                    await back
            assert await client.get(Payer, a).look() == (-20, 40)
            assert await client.get(Payer, b).look() == (20, 40)

    run(main, timeout_s=40)


def test_many_opposite_transfers_between_few_actors_end_and_conserve_money(tmp_path):
    async def main():
        names = [actor_on(1, "Payer", "one"), actor_on(2, "Payer", "two")]
        async with one_grid(tmp_path, hosts=2) as (_, client):
            calls = [client.get(Payer, names[i % 2]).pay(names[1 - i % 2], 1 + i % 3) for i in range(60)]
            for call in calls:
                await call
            balances = [await client.get(Payer, name).look() for name in names]
            assert sum(balance for balance, _ in balances) == 0
            assert sum(changes for _, changes in balances) == 120, "each transfer changes each side once"

    run(main, timeout_s=40)
