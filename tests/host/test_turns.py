"""What happens in a turn stays in its turn: errors, hangs, cancellations, asyncio's tools, contexts."""

import asyncio
import gc
import logging

import pytest
from host_actors import KEPT, SEEN, Box, Caller, Juggler, Rogue, gate
from host_harness import expect, one_grid, raw_client, run, seeds, serving, soon, until

from actorgrid import grid
from actorgrid.errors import (
    ActorError,
    DeadlineExceededError,
    InvalidArgumentError,
    OverloadedError,
    UnknownActorTypeError,
    UnknownMethodError,
)
from actorgrid.settings import HostSettings

FAST = HostSettings(loop_block_report_s=0.02, loop_block_limit_s=0.1, turn_cancel_grace_s=0.05)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("leave", "SystemExit"),
        ("leave_later", "SystemExit"),
        ("spin", "TurnBlockedError"),
        ("unprintable", "Unprintable"),
        ("surrogate", "ValueError"),
        ("loud", "ValueError"),
        ("pretend_storage_failed", "StorageError"),
    ],
)
def test_a_turn_that_goes_wrong_harms_only_itself(tmp_path, method, kind):
    async def main():
        async with one_grid(tmp_path, settings=FAST) as ((host,), client):
            rogue = client.get(Rogue, "r")
            assert await rogue.bump() == 1
            with pytest.raises(ActorError) as caught:
                await getattr(rogue, method)()
            assert caught.value.remote_type.endswith(kind)
            assert caught.value.actor == "Rogue/r"
            assert len(str(caught.value)) < 50_000
            assert await rogue.bump() == 2
            assert await client.get(Box, "b").add(1) == 1
            assert host.state == "serving"
            assert host.runner.admitted == 0

    run(main)


def test_an_error_class_of_the_application_travels_as_the_grid_error_it_derives_from(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError, match="mine"):
                await client.get(Rogue, "r").own_kind_of_error()

    run(main)


def test_a_turn_that_asks_its_caller_to_come_again_is_not_recorded_and_changes_nothing(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Rogue, "r").come_again() == 100
            assert SEEN["come_again"] == 3

    run(main)


def test_a_raising_turn_changes_nothing_in_memory_or_on_disk(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            box = client.get(Box, "a")
            assert await box.add(1) == 1
            with pytest.raises(ActorError, match="no 7"):
                await box.add_then_raise(7)
            assert await box.look() == (1, [1], {"1": 1})
            assert await box.add(2) == 3
        async with one_grid(tmp_path) as (_, client):
            assert await client.get(Box, "a").look() == (3, [1, 2], {"1": 1, "2": 3})

    run(main)


def test_reads_go_on_after_a_raising_turn_whatever_order_its_sets_had(tmp_path):
    """A set that is put back may iterate in another order: that is no change (found by review)."""

    async def main():
        async with one_grid(tmp_path) as (_, client):
            box = client.get(Box, "a")
            assert await box.remember(first=33, second=2) == {2, 33}
            for number in range(3, 30):
                await box.remember(first=number)
            for number in (33, 17, 2, 9):
                with pytest.raises(ActorError):
                    await box.forget_then_raise(number)
                assert await box.who() == {2, 33, 0, *range(3, 30)}

    run(main)


def test_a_read_that_sets_an_undeclared_attribute_is_the_one_that_fails(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            with pytest.raises(ActorError, match="undeclared"):
                await client.get(Box, "a").sneaky_read()
            assert await client.get(Box, "a").add(1) == 1

    run(main)


def test_a_wrong_call_never_reaches_the_actor(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            expect(await client.call(1, "add", "five"), InvalidArgumentError, "Box.add", "amount", "int", "str")
            expect(await client.call(2, "add"), InvalidArgumentError, "Box.add", "expected 1 arguments, got 0")
            expect(await client.call(3, "add", 1, 2), InvalidArgumentError, "expected 1 arguments, got 2")
            expect(await client.call(4, "remember", 1, 2, 3), InvalidArgumentError, "Box.remember")
            expect(await client.call(5, "remember"), InvalidArgumentError, "Box.remember")
            expect(await client.call(6, "nothing"), UnknownMethodError, "nothing", "add", "look")
            expect(await client.call(7, "on_activate"), UnknownMethodError)
            expect(await client.call(8, "__init__"), UnknownMethodError)
            expect(await client.call(9, "add", 1, to="Nobody\0a"), UnknownActorTypeError, "Nobody", "Box")
            expect(await client.call(10, "add", 1, to="Box"), InvalidArgumentError)
            expect(await client.call(11, "add", 1, to="Box\0"), InvalidArgumentError)
            expect(await client.call(12, "add", 1, to="Box\0a\0b"), InvalidArgumentError)
            expect(await client.call(13, "add", 1, to="Box\0" + "é" * 600), InvalidArgumentError)
            assert SEEN["add"] == 0
            # none of these is remembered: the numbers are still free
            assert await client.call(1, "add", 5) == 5

    run(main)


# -- deadlines


def test_a_hanging_turn_is_cancelled_at_its_deadline_and_the_actor_is_free(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=FAST) as ((host,), client):
            rogue = client.get(Rogue, "r")
            await rogue.bump()
            with pytest.raises(DeadlineExceededError):
                await client.with_options(timeout_s=0.1).get(Rogue, "r").hang()
            assert await rogue.bump() == 2
            assert host.runner.turns_cancelled == 1
            assert host.runner.admitted == 0
            assert not host.runner.suspended

    run(main)


def test_a_turn_that_ignores_its_cancellation_is_abandoned_and_the_actor_serves_from_stored_state(tmp_path):
    async def main():
        async with one_grid(tmp_path, settings=FAST) as ((host,), client):
            rogue = client.get(Rogue, "r")
            await rogue.bump()
            with pytest.raises(DeadlineExceededError):
                await client.with_options(timeout_s=0.1).get(Rogue, "r").hang_for_good()
            assert await rogue.bump() == 2
            assert host.runner.turns_abandoned == 1
            assert host.runner.admitted == 0
            SEEN["cancelled"] = 100  # now it may go
            for task in asyncio.all_tasks():
                if "_go_on" in repr(task):
                    task.cancel()

    run(main)


def test_a_call_whose_deadline_passes_in_the_queue_is_not_executed(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            client.send(1, "wait_then_add", "g", 1)
            await until(lambda: SEEN["wait_then_add"] == 1)
            client.send(2, "add", 5, timeout_ms=30)
            await asyncio.sleep(0.06)
            gate("g").set()
            assert await client.answer(1) == 1
            expect(await client.answer(2), OverloadedError, "nothing happened")
            assert SEEN["add"] == 0

    run(main)


def test_deadlines_of_any_size_are_taken(tmp_path):
    async def main():
        async with serving(tmp_path) as (host,), raw_client(host) as client:
            for number, timeout_ms in enumerate([0, 1, 2**31, 2**53, 2**64 - 1], 1):
                client.send(number, "wait_then_add", f"g{number}", 1, timeout_ms=timeout_ms, to=f"Box\0x{number}")
            await until(lambda: SEEN["wait_then_add"] >= 4)
            for number in range(1, 6):
                gate(f"g{number}").set()
            for number in (3, 4, 5):
                assert await client.answer(number) == 1

    run(main)


# -- blocking the loop


def test_a_turn_that_blocks_the_loop_is_reported_by_name_and_interrupted(tmp_path, caplog):
    async def main():
        async with one_grid(tmp_path, settings=FAST) as ((host,), client):
            with caplog.at_level(logging.WARNING):
                spinning = soon(client.get(Rogue, "r").spin())
                others = [client.get(Box, f"b{i}").add(1) for i in range(20)]
                assert [await other for other in others] == [1] * 20
                with pytest.raises(ActorError, match="blocked its host's loop"):
                    await spinning
            assert "loop blocked method=Rogue.spin actor=Rogue/r" in caplog.text
            assert host.status()["counters"]["turns_interrupted_total"] == 1
            for _ in range(50):
                await client.get(Rogue, "r").bump()

    run(main)


def test_blocking_methods_run_in_threads_side_by_side(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            loop = asyncio.get_running_loop()
            begin = loop.time()
            results = await client.map(Juggler.sleep, [(f"j{i}", 0.1) for i in range(8)])
            assert results == [1] * 8
            assert loop.time() - begin < 0.5
            begin = loop.time()
            assert await client.map(Juggler.sleep, [("one", 0.02) for _ in range(4)]) == [1, 2, 3, 4]
            assert loop.time() - begin >= 0.08

    run(main)


# -- asyncio's own tools


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("time_out", "timed out"),
        ("in_time", "in time"),
        ("group", 10),
        ("group_fails", "failed"),
        ("child", 1),
        ("same_task", True),
        ("known_weakly", True),
    ],
)
def test_asyncio_tools_work_from_the_first_line_of_a_turn(tmp_path, method, result):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            for _ in range(2):
                answer = await getattr(client.get(Juggler, "j"), method)()
                assert answer in (result, 20) if method == "group" else answer == result

    run(main)


def test_a_timeout_that_has_passed_before_the_turn_waits_does_not_strand_the_actor(tmp_path):
    """asyncio cancels a task that has not run yet by never running it (found by review)."""

    async def main():
        async with one_grid(tmp_path) as ((host,), client):
            assert await client.get(Rogue, "r").time_out_at_once() == "timed out"
            assert await client.get(Rogue, "r").bump() == 1
            with pytest.raises(DeadlineExceededError):
                await client.with_options(timeout_s=0.3).get(Rogue, "r").cancel_itself()
            assert await client.get(Rogue, "r").bump() == 2
            assert not host.runner.suspended

    run(main)


def test_cancelling_the_task_of_a_turn_that_is_over_hits_no_other_turn(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            await client.get(Rogue, "r").keep_the_task()
            KEPT[-1].cancel()
            assert await client.get(Juggler, "j").time_out() == "timed out"
            await client.get(Rogue, "r").keep_the_task()
            task = KEPT[-1]
            waiting = soon(client.get(Juggler, "j").paint_and_wait("red"))
            await asyncio.sleep(0.005)
            task.cancel()
            assert await waiting == "none"

    run(main)


def test_context_variables_set_in_a_turn_are_seen_by_no_other(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            j = client.get(Juggler, "j")
            assert [await j.paint("red"), await j.paint("blue")] == ["none", "none"]
            calls = [j.paint_and_wait(str(i)) for i in range(4)] + [j.paint("x")]
            assert [await call for call in calls] == ["none"] * 5
            assert await j.paint_and_ask("green", "k") == "none"

    run(main)


# -- grid.current()


def test_a_turn_knows_who_it_is_and_how_long_it_has(tmp_path):
    async def main():
        async with one_grid(tmp_path) as ((host,), client):
            actor_type, actor_id, deadline_s, client_id, number = await client.with_options(timeout_s=5).get(Caller, "a").about_itself()
            assert (actor_type, actor_id) == ("Caller", "a")
            assert 4 < deadline_s <= 5
            assert len(client_id) == 32
            assert number >= 1
            async with raw_client(host, b"m" * 16) as raw:
                assert (await raw.call(17, "about_itself", to="Caller\0a"))[3:] == [(b"m" * 16).hex(), 17]

    run(main)


def test_a_proxy_is_good_for_its_own_turn_only(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            await client.get(Caller, "a").keep_proxy()
            with pytest.raises(ActorError, match="turn that is over"):
                await client.get(Caller, "a").use_kept_proxy()
            assert (await client.get(Caller, "late").tell())[0] == 0
        gc.collect()

    run(main)


def test_a_type_is_reached_through_seeds_of_every_host(tmp_path):
    async def main():
        async with serving(tmp_path, hosts=2) as hosts, grid.connect(seeds(hosts[1:])) as client:
            assert await client.map(Box.add, [(f"b{i}", 1) for i in range(10)]) == [1] * 10

    run(main)
