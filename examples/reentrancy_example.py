"""A call that comes back: an actor waits for another one, which asks the first one something.

Turns are exclusive, so that would wait for ever. It fails at once instead, unless the method says that it may run in between.
"""

from __future__ import annotations

import asyncio

from example_grid import example_grid

from actorgrid import grid
from actorgrid.errors import ReentrancyError


@grid.actor
class Order:
    """What somebody bought. Packing needs the address, and asks back for it."""

    address: str = ""
    state: str = "open"

    async def place(self, address: str) -> None:
        """Take the order."""
        self.address, self.state = address, "placed"

    async def ship(self, packer: str) -> str:
        """Have it packed by an actor that asks back properly."""
        self.state = "shipping"
        label = await grid.current().get(Packer, packer).pack(grid.current().actor_id)
        self.state = "shipped"
        return label

    async def ship_badly(self, packer: str) -> str:
        """Have it packed by an actor that asks back with a method that is not reentrant."""
        self.state = "shipping"
        return await grid.current().get(Packer, packer).pack_badly(grid.current().actor_id)

    @grid.reentrant
    @grid.read
    async def ask_address(self) -> str:
        """May run while this order waits for the very chain of calls that asks."""
        return f"{self.address} (order is {self.state})"

    @grid.read
    async def read_state(self) -> str:
        """May not."""
        return self.state


@grid.actor
class Packer:
    """Packs orders of which it knows nothing but the id."""

    packed: int = 0

    async def pack(self, order: str) -> str:
        """Pack one; its label."""
        self.packed += 1
        return f"parcel {self.packed} to {await grid.current().get(Order, order).ask_address()}"

    async def pack_badly(self, order: str) -> str:
        """The same with a method that cannot run now."""
        self.packed += 1
        return await grid.current().get(Order, order).read_state()


async def main(address: str) -> None:
    async with grid.connect(address) as client:
        order = client.get(Order, "77")
        await order.place("12 Elm Street")
        try:
            await order.ship_badly("pam")
        except ReentrancyError as error:
            print("refused at once:", error)
        print("as if it had not been tried:", await order.read_state())
        print("reentrant:", await order.ship("pam"))
        print("afterwards:", await order.read_state())


if __name__ == "__main__":
    with example_grid("reentrancy_example") as address:
        asyncio.run(main(address))
