"""Restate's virtual object, served by granian. A module of its own, as the SDK is needed to define it and may not be installed."""

from __future__ import annotations

import restate

counter = restate.VirtualObject("Counter")


@counter.handler()
async def add(ctx: restate.ObjectContext, amount: int) -> int:
    """Changes state, one call a key at a time, journalled."""
    value = (await ctx.get("value", type_hint=int) or 0) + amount
    ctx.set("value", value)
    return value


@counter.handler(kind="shared")
async def read(ctx: restate.ObjectSharedContext) -> int:
    """Changes nothing, and runs beside others."""
    return await ctx.get("value", type_hint=int) or 0


app = restate.app([counter])
