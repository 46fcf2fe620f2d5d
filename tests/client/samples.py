"""Actor classes for the client's tests, and the settings most of them use."""

import dataclasses
from typing import Any

from actorgrid import grid
from actorgrid.settings import ClientSettings

QUICK = ClientSettings(timeout_s=5.0, connect_timeout_s=0.5, retry_first_s=0.005, retry_max_s=0.05)


@dataclasses.dataclass
class Statement:
    owner: str
    balance: int


@grid.actor
class Account:
    balance: int = 0

    async def deposit(self, amount: int, note: str = "") -> int:
        self.balance += amount
        return self.balance

    async def close_at(self, *, year: int, month: int = 1) -> str:
        return f"{year}-{month}"

    @grid.read
    async def read_balance(self) -> int:
        return self.balance

    @grid.read(consistency="any")
    async def read_about(self, note: str = "") -> int:
        return self.balance

    @grid.read
    async def statement(self) -> Statement:
        return Statement("alice", self.balance)

    async def store(self, data: bytes) -> int:
        return len(data)

    async def take(self, anything: Any) -> None:
        return None

    def helper(self) -> int:
        return 1


@grid.actor(name="Purse")
class Wallet:
    async def peek(self) -> int:
        return 0
