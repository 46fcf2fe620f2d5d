"""Redis: INCR with ``appendfsync always``; plain, pipelined, and with two replicas and WAIT 1. Server from the path, client redis-py.

No faults: a Redis with replicas does not fail over by itself, and a repeated INCR counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load import Load, closed_loop
from bench.peers.interface import KEYS, Peer, key
from bench.peers.processes import LOOPBACK, MissingPeerError, free_ports

if TYPE_CHECKING:
    from redis.asyncio import Redis

#: Commands in one pipeline: what the grid's batch per tick comes to at 1,024 in flight over a handful of ticks.
PIPELINE = 64
WAIT_MS = 5_000
CALL_TIMEOUT_S = 30.0


class NotReplicatedError(Exception):
    """WAIT ended before a replica had the change, which the primary keeps nevertheless."""


class RedisAof(Peer):
    """One server; each caller has one INCR or GET under way, on a connection of its own."""

    name = "redis-aof"
    what = "INCR / GET of one server, redis-py asyncio, one connection per caller"
    durability = "one copy, appendfsync always"
    replicas = 0

    async def _open(self, directory: Path) -> None:
        if importlib.util.find_spec("redis") is None:
            raise MissingPeerError("the package redis (the client) is not installed")
        program = shutil.which("redis-server")
        if program is None:
            raise MissingPeerError("redis-server is not on the path; Debian's package redis-server has it")
        self._clients: list[Redis] = []
        ports = free_ports(1 + self.replicas)
        for index, port in enumerate(ports):
            name = f"redis-{index}"
            data = directory / name
            data.mkdir()
            options = {"port": port, "bind": LOOPBACK, "dir": data, "appendonly": "yes", "appendfsync": "always", "save": ""}
            arguments = [str(part) for option, value in options.items() for part in (f"--{option}", value)]
            if index:
                # Without the default's wait of five seconds for more replicas.
                arguments += ["--replicaof", f"{LOOPBACK} {ports[0]}", "--repl-diskless-sync-delay", "0"]
            else:
                arguments += ["--repl-diskless-sync-delay", "0"]
            await self.processes.start(name, [program, *arguments])
            await self.processes.wait_for_port(name, port)
        await self.processes.wait_until("redis-0", lambda: self._has_replicas(ports[0]))
        self._primary = self._client(ports[0])

    def _client(self, port: int) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # The client repeats commands by default, and a repeated INCR counts twice.
        client = Redis(host=LOOPBACK, port=port, max_connections=4096, socket_timeout=CALL_TIMEOUT_S, retry=Retry(NoBackoff(), 0))
        self._clients.append(client)
        return client

    async def _has_replicas(self, port: int) -> bool:
        client = self._client(port)
        info: dict[str, Any] = await client.info("replication")
        states = [value.get("state") for name, value in info.items() if name.startswith("slave") and isinstance(value, dict)]
        return states.count("online") == self.replicas

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        primary = self._primary
        if operation == "read":
            return await closed_loop(lambda number: primary.get(key(number)), in_flight=in_flight, duration_s=duration_s)
        return await closed_loop(lambda number: primary.incr(key(number)), in_flight=in_flight, duration_s=duration_s, book=self.book)

    async def read_back(self) -> dict[str, int]:
        keys = [key(number) for number in range(KEYS)]
        values = await self._primary.mget(keys)
        return {name: int(value) for name, value in zip(keys, values, strict=True) if value is not None}

    async def _close(self) -> None:
        for client in getattr(self, "_clients", []):
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await client.aclose()


class RedisPipelined(RedisAof):
    """The same server; the calls of 64 callers travel as one pipeline."""

    name = "redis-aof-pipelined"
    what = f"INCR / GET of one server, redis-py asyncio, pipelines of {PIPELINE}"

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        size = min(in_flight, PIPELINE)
        primary, book = self._primary, self.book

        async def batch(number: int) -> None:
            numbers = range(number * size, (number + 1) * size)
            pipeline = primary.pipeline(transaction=False)
            for each in numbers:
                if operation == "read":
                    pipeline.get(key(each))
                else:
                    pipeline.incr(key(each))
            try:
                await pipeline.execute()
            except Exception as error:
                if operation == "write":
                    for each in numbers:
                        book.failed(each, error)
                raise
            if operation == "write":
                for each in numbers:
                    book.answered(each)

        return await closed_loop(batch, in_flight=in_flight // size, duration_s=duration_s, weight=size)


class RedisWait(RedisAof):
    """Three servers: INCR, then WAIT for one replica, in one round trip."""

    name = "redis-wait1"
    what = "INCR and WAIT 1 in one round trip, two replicas, redis-py asyncio, one connection per caller"
    durability = "appendfsync always on the primary, in the memory of one replica; not a quorum, no failover by itself"
    operations = ("write",)
    replicas = 2

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        primary = self._primary

        async def write(number: int) -> None:
            pipeline = primary.pipeline(transaction=False)
            pipeline.incr(key(number))
            pipeline.wait(1, WAIT_MS)
            _, replicas = await pipeline.execute()
            if replicas < 1:
                raise NotReplicatedError(f"no replica had the change after {WAIT_MS} ms")

        return await closed_loop(write, in_flight=in_flight, duration_s=duration_s, book=self.book)
