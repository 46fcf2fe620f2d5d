"""Load that only the application knows: each room says how many viewers it has, and placement evens that out over the hosts."""

from __future__ import annotations

import asyncio
import time

from example_grid import example_grid

from actorgrid import grid
from actorgrid.errors import ActorError, TransientError


@grid.actor
class Room:
    """A room of a broadcast. One with many viewers is more work than one with few, however rarely it is called."""

    viewers: int = 0

    async def enter(self, viewers: int) -> int:
        """So many more are in."""
        self.viewers += viewers
        grid.report_load(self.viewers)
        return self.viewers

    async def on_activate(self) -> None:
        """The load is gone with the activation: who comes back into memory says it again."""
        grid.report_load(self.viewers)


async def loads_by_node(client: grid.Client) -> dict[str, float]:
    """What placement knows, as ``actorgrid nodes --json`` has it: a mean over about a minute, so it takes a while to be all of it."""
    host = client.partition_map.hosts[0]
    try:
        answer = await client.admin(host.address, host.port, "nodes")
    except TransientError:
        return {}  # the manager is moving, as partitions do
    return {node["name"]: node["load"] for node in answer["nodes"]}


async def main(address: str) -> None:
    async with grid.connect(address) as client:
        viewers = await client.map(Room.enter, [(f"room-{number}", 100 * number) for number in range(1, 31)])
        print("viewers in 30 rooms:", sum(viewers))
        try:
            await client.get(Room, "room-1").enter(-1000)
        except ActorError as error:
            print("refused:", error.remote_text)
        until = time.monotonic() + 20
        while (known := sum((await loads_by_node(client)).values())) <= 0 and time.monotonic() < until:
            await asyncio.sleep(0.1)
        print("placement hears of it:", known > 0)


if __name__ == "__main__":
    with example_grid("load_example") as address:
        asyncio.run(main(address))
