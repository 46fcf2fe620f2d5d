"""Callers that never pause for long, and know what each answer must be."""

from __future__ import annotations

import asyncio
import time

from actorgrid import grid


class Load:
    """A few callers that change and count until told to stop."""

    def __init__(self, client: grid.Client, ledger: type) -> None:
        self.client, self.ledger = client, ledger
        self.stopping = False
        self.versions: dict[str, int] = {}
        self.slowest_s = 0.0

    async def caller(self, number: int) -> None:
        while not self.stopping:
            for actor in (f"{number}-{each}" for each in range(8)):
                began = time.monotonic()
                version = await self.client.get(self.ledger, actor).change(f"{time.monotonic_ns()}")
                assert version == self.versions.get(actor, 0) + 1
                self.versions[actor] = version
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                await asyncio.sleep(0.02)
