"""Actors of a small bank, for `bank_demo.py` and `sync_client.py`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from actorgrid import grid

#: In cents. Checked before a turn runs: a call with 0 or "five" never reaches the actor.
Amount = Annotated[int, msgspec.Meta(gt=0)]


class InsufficientFundsError(Exception):
    """The account holds less than was asked for."""


@grid.actor
class Account:
    """One account. Each method is a turn: alone in the actor, its changes durable before the caller has the reply."""

    balance: int = 0

    async def deposit(self, amount: Amount) -> int:
        """Put money in; the new balance."""
        self.balance += amount
        return self.balance

    async def withdraw(self, amount: Amount) -> int:
        """Take money out; the new balance."""
        self.balance -= amount
        if self.balance < 0:
            # Whatever this turn has changed is put back, also in memory.
            raise InsufficientFundsError(f"{-self.balance} cents are missing")
        return self.balance

    async def transfer(self, to: str, amount: Amount) -> int:
        """Move money to another account; the new balance here. When the host dies in the middle, the retry deposits no second time."""
        balance = await self.withdraw(amount)
        await grid.current().get(Account, to).deposit(amount)
        return balance

    @grid.read
    async def read_balance(self) -> int:
        """Reads are not logged and may change nothing."""
        return self.balance
