"""Actors of the fault tests: they keep which token made which version, so that an oracle can judge them."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Ledger:
    """Counts changes, in a field and in a collection: both must agree."""

    version: int = 0
    balance: int = 0
    recent: list[str] = []
    made: grid.Map[str, int]

    async def change(self, token: str) -> int:
        """One change; the answer is the version it made."""
        self.version += 1
        self.recent.append(token)
        del self.recent[:-5]
        self.made[token] = self.version
        return self.version

    async def transfer(self, token: str, to: str, amount: int) -> int:
        """Move money to another ledger: one change here, one there."""
        self.balance -= amount
        await grid.current().get(Ledger, to).credit(token, amount)
        return await self.change(token)

    async def credit(self, token: str, amount: int) -> int:
        self.balance += amount
        return await self.change(token + "+")

    @grid.read
    async def read_version(self) -> int:
        return self.version

    @grid.read
    async def read_all(self) -> tuple[int, list[tuple[str, int]], list[str]]:
        """Balance, every (token, version), and the last tokens."""
        return self.balance, list(self.made.items()), self.recent
