"""Chains of calls that come back to where they began, on one host and across two."""

import pytest
from host_actors import SEEN, Caller, Impatient
from host_harness import actor_on, one_grid, run, until

from actorgrid.errors import ActorError, ReentrancyError

pytestmark = pytest.mark.parametrize("hosts", [1, 2], ids=["on one host", "across two hosts"])


def names():
    return actor_on(1, "Caller", "one"), actor_on(2, "Caller", "two")


def test_a_cycle_fails_at_once_and_names_its_chain(tmp_path, hosts):
    async def main():
        a, b = names()
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            with pytest.raises(ReentrancyError) as caught:
                await client.get(Caller, a).forbidden_around([b, a])
            assert caught.value.chain == [f"Caller/{a}", f"Caller/{b}", f"Caller/{a}"]
            assert "@grid.reentrant" in str(caught.value)
            with pytest.raises(ReentrancyError) as caught:
                await client.get(Caller, a).relay(a)
            assert caught.value.chain == [f"Caller/{a}", f"Caller/{a}"]
            assert await client.get(Caller, a).bump() == 1

    run(main)


def test_a_reentrant_method_runs_inside_the_turn_that_waits_for_it(tmp_path, hosts):
    async def main():
        a, b = names()
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert await client.get(Caller, a).around([b, a]) == 1
            assert await client.get(Caller, a).around([b, a]) == 2
            assert await client.get(Caller, a).around([a]) == 3
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert (await client.get(Caller, a).tell())[:2] == (0, 3)

    run(main)


def test_a_rollback_of_the_outer_turn_keeps_what_the_inner_one_committed(tmp_path, hosts):
    async def main():
        a, b = names()
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            with pytest.raises(ActorError, match="after all"):
                await client.get(Caller, a).around_and_raise([b, a])
            assert (await client.get(Caller, a).tell())[:2] == (0, 1)
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert (await client.get(Caller, a).tell())[:2] == (0, 1)

    run(main)


def test_an_outer_turn_with_changed_entries_may_be_come_back_to(tmp_path, hosts):
    async def main():
        a, b = names()
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert await client.get(Caller, a).around_with_map([b, a]) == 1
            assert await client.get(Caller, a).tell() == (0, 1, [], {"outer": 1})
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert await client.get(Caller, a).tell() == (0, 1, [], {"outer": 1})

    run(main)


def test_a_field_that_both_change_is_refused_and_nothing_of_either_is_kept(tmp_path, hosts):
    async def main():
        a, b = names()
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            with pytest.raises(ActorError, match="inner was changed by the waiting turn"):
                await client.get(Caller, a).around_in_conflict([b, a])
            assert (await client.get(Caller, a).tell())[:2] == (0, 0)
            assert await client.get(Caller, a).around([b, a]) == 1

    run(main)


def test_an_outer_turn_that_gives_up_waiting_does_not_log_what_the_inner_one_has_not_finished(tmp_path, hosts):
    async def main():
        async with one_grid(tmp_path, hosts=hosts) as ((host, *_), client):
            assert await client.get(Impatient, "i").begin(0.03) == 1
            assert SEEN["gave up"] == 1
            assert await client.get(Impatient, "i").tell() == (1, 0)
            await until(lambda: host.runner.admitted == 0)
        async with one_grid(tmp_path, hosts=hosts) as (_, client):
            assert await client.get(Impatient, "i").tell() == (1, 0)

    run(main)
