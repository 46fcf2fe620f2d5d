"""One peer that sends much does not keep the others waiting."""

import asyncio

import msgspec
from host_harness import PARTITIONS, one_grid, raw_client, run

from actorgrid.ids import partition_of
from actorgrid.wire import messages
from actorgrid.wire.framing import frame


def test_others_are_greeted_and_answered_while_one_client_has_sent_a_mountain_of_calls(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (hosts, _client), raw_client(hosts[0]) as greedy:
            calls = [messages.Call(n, "Box\0a", "look", 60_000, msgspec.Raw(messages.encode(()))) for n in range(1, 40_001)]
            group = messages.CallGroup(partition_of("Box\0a", PARTITIONS), b"", 0, 0, 0, calls)
            greedy._writer.write(frame(messages.encode(messages.Calls([group]))))
            await asyncio.sleep(0.01)
            for _ in range(2):
                async with raw_client(hosts[0]) as other:
                    await other.call(1, "look", to="Box\0b")
            answered_meanwhile = len(greedy.answers)
            async with asyncio.timeout(30):
                while len(greedy.answers) < len(calls):
                    await asyncio.sleep(0.02)
            assert sorted(greedy.answers) == list(range(1, 40_001)), "each is answered once, none is lost in a slice"
            assert answered_meanwhile < len(calls), "the mountain was gone before the others came: nothing was shown"

    run(main, timeout_s=60)
