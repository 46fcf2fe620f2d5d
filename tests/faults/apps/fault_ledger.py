"""The actors of the fault campaign: they keep which token made which version, and who was last, so that oracles can judge them."""

from __future__ import annotations

from actorgrid import grid


@grid.actor
class Ledger:
    """Counts changes in a field, a list and a collection, and keeps a balance: all of them must agree afterwards."""

    version: int = 0
    balance: int = 0
    last: str = ""
    recent: list[str] = []
    made: grid.Map[str, int]

    async def change(self, token: str) -> int:
        """One change; the answer is the version it made."""
        self.version += 1
        self.last = token
        self.recent.append(token)
        del self.recent[:-5]
        self.made[token] = self.version
        return self.version

    async def transfer(self, token: str, to: str, amount: int) -> int:
        """Move money to another ledger: one change there, made as ``token+``, then one here."""
        self.balance -= amount
        await grid.current().get(Ledger, to).credit(token + "+", amount)
        return await self.change(token)

    async def credit(self, token: str, amount: int) -> int:
        self.balance += amount
        return await self.change(token)

    @grid.read
    async def read(self) -> tuple[int, str]:
        """Version, and the token that made it."""
        return self.version, self.last

    @grid.read
    async def read_all(self) -> tuple[int, int, list[tuple[str, int]], list[str]]:
        """Version, balance, every (token, version), and the last tokens."""
        return self.version, self.balance, list(self.made.items()), self.recent
