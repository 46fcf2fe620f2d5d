"""Restate, one node or three: a virtual object's ``add`` and a shared ``read``. Server from npm, Python SDK, served by granian.

Callers use the HTTP ingress with an idempotency key for each ``add``, and ask another node with the same key when one fails them: that is
Restate's exactly once. Three nodes keep two copies of log and state, the setting of Restate's own guide for three nodes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import platform
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from bench.load import Load, closed_loop
from bench.peers.interface import Peer, key
from bench.peers.processes import LOOPBACK, MissingPeerError, PeerError, cache_directory, free_ports, run_tool

SERVER_PACKAGE = "@restatedev/restate-server"
SERVER_VERSION = "1.7.12"
#: 200 MB.
FETCH_S = 300.0
CALL_S = 60.0
#: Between rounds of all nodes; the next node is asked at once.
RETRY_S = 0.05
READ_BACK_S = 30.0
#: Keys that must answer before it counts as started, none of which a load uses; they reach most of the default's 24 partitions.
PROBE_KEYS = tuple(f"probe-{number}" for number in range(48))


class WrongCallError(Exception):
    """The ingress refuses the call as such; asking again would not help."""


class RestateOne(Peer):
    """One node."""

    name = "restate-1"
    what = "virtual object add with an idempotency key / shared read, HTTP ingress, Python SDK on granian, one node"
    durability = "fsync of one copy's log"
    nodes = 1

    def __init__(self) -> None:
        super().__init__()
        self._session: aiohttp.ClientSession | None = None
        self._ingress: dict[str, str] = {}
        self._admins: dict[str, str] = {}

    async def _prepare(self) -> None:
        for package in ("restate", "granian"):
            if importlib.util.find_spec(package) is None:
                raise MissingPeerError(f"the package {'restate-sdk' if package == 'restate' else package} is not installed")
        self._program = await _program()

    async def _open(self, directory: Path) -> None:
        (service_port,) = free_ports(1)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=CALL_S), trust_env=False
        )
        serving = f"--interface asgi --host {LOOPBACK} --port {service_port} --backpressure 4096 --no-ws --workers-kill-timeout 1".split()
        await self.processes.start("granian", [sys.executable, "-m", "granian", *serving, "bench.peers.restate_app:app"])
        await self.processes.wait_for_port("granian", service_port)
        ports = free_ports(3 * self.nodes)
        fabric = [f"http://{LOOPBACK}:{port}" for port in ports[: self.nodes]]
        for index in range(self.nodes):
            ingress, admin = ports[self.nodes + 2 * index], ports[self.nodes + 2 * index + 1]
            name = f"restate-{index}"
            (directory / f"{name}.toml").write_text(_settings(index, self.nodes, fabric, ingress, admin, directory / f"{name}-data"))
            await self.processes.start(name, [self._program, "--no-logo", "--config-file", directory / f"{name}.toml"])
            self._ingress[name] = f"http://{LOOPBACK}:{ingress}"
            self._admins[name] = f"http://{LOOPBACK}:{admin}"
            await self.processes.wait_for_port(name, admin)
        deployment = {"uri": f"http://{LOOPBACK}:{service_port}", "force": True}
        await self.processes.wait_until("restate-0", lambda: self._registered(deployment))
        for name in self._ingress:
            await self.processes.wait_until(name, lambda name=name: self._works(name))  # type: ignore[misc]

    async def _load(self, operation: str, *, in_flight: int, duration_s: float) -> Load:
        run = uuid.uuid4().hex

        async def add(number: int) -> None:
            await self._call(number, key(number), "add", "1", f"{run}-{number}")

        async def read(number: int) -> None:
            await self._call(number, key(number), "read", None, None)

        if operation == "read":
            return await closed_loop(read, in_flight=in_flight, duration_s=duration_s)
        return await closed_loop(add, in_flight=in_flight, duration_s=duration_s, book=self.book, timeline=self.faults)

    async def read_back(self) -> dict[str, int]:
        question = {"query": "SELECT service_key, value_utf8 FROM state WHERE service_name = 'Counter' AND key = 'value'"}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READ_BACK_S
        while True:
            try:
                answer = await self._query(question)
                break
            except (aiohttp.ClientError, PeerError, OSError) as error:
                # Partitions of a node that was just killed have no leader for a while.
                if loop.time() >= deadline:
                    raise PeerError(f"cannot be read back for {READ_BACK_S:g} s: {error}") from error
            await asyncio.sleep(1.0)
        return {row["service_key"]: int(row["value_utf8"]) for row in answer["rows"]}

    async def _query(self, question: dict[str, str]) -> dict[str, Any]:
        assert self._session is not None
        url = f"{self._admins['restate-0']}/query"
        async with self._session.post(url, json=question, headers={"accept": "application/json"}) as response:
            if response.status != 200:
                raise PeerError(f"the query was answered {response.status}: {(await response.text())[:200]}")
            answer: dict[str, Any] = await response.json()
            return answer

    async def _close(self) -> None:
        session, self._session = self._session, None
        self._ingress, self._admins = {}, {}
        if session is not None:
            await session.close()

    async def _call(self, number: int, object_key: str, handler: str, body: str | None, idempotency: str | None) -> object:
        """Call by way of a node that is up, the next one when it fails, until the deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CALL_S
        urls = list(self._ingress.values())
        attempt = 0
        while True:
            try:
                return await self._once(urls[(number + attempt) % len(urls)], object_key, handler, body, idempotency)
            except (aiohttp.ClientError, PeerError, OSError) as error:  # TimeoutError is one
                if loop.time() + RETRY_S >= deadline:
                    raise PeerError(f"no answer after {CALL_S:g} s: {error}") from error
            attempt += 1
            if attempt % len(urls) == 0:
                await asyncio.sleep(RETRY_S)

    async def _once(self, url: str, object_key: str, handler: str, body: str | None, idempotency: str | None) -> object:
        assert self._session is not None
        headers = {"idempotency-key": idempotency} if idempotency is not None else {}
        if body is not None:
            headers["content-type"] = "application/json"
        # A handler without input wants no content type either, which the client would add to a POST.
        method = "GET" if body is None else "POST"
        async with self._session.request(method, f"{url}/Counter/{object_key}/{handler}", data=body, headers=headers) as response:
            text = await response.text()
            if response.status == 400:
                raise WrongCallError(f"{object_key}/{handler}: {text[:200]}")
            if response.status != 200:
                raise PeerError(f"{object_key}/{handler} was answered {response.status}: {text[:200]}")
            return json.loads(text)

    async def _registered(self, deployment: dict[str, object]) -> bool:
        assert self._session is not None
        try:
            async with self._session.post(f"{self._admins['restate-0']}/deployments", json=deployment) as response:
                return response.status in (200, 201)
        except (aiohttp.ClientError, OSError):
            return False

    async def _works(self, name: str) -> bool:
        try:
            async with asyncio.TaskGroup() as group:
                for probe in PROBE_KEYS:
                    group.create_task(self._once(self._ingress[name], probe, "add", "1", f"{name}-{probe}"))
        except ExceptionGroup:
            return False
        return True


class RestateThree(RestateOne):
    """Three nodes, each with all roles."""

    name = "restate-3"
    what = "virtual object add with an idempotency key / shared read, HTTP ingress, Python SDK on granian, three nodes"
    durability = "fsync of the log on 2 of 3 nodes"
    nodes = 3
    faults = True

    async def kill_one(self) -> None:
        """Kill the last node; each leads about a third of the partitions, so which one matters little. Callers find out by themselves."""
        await self.processes.kill(next(reversed(self._ingress)))


def _settings(index: int, nodes: int, fabric: list[str], ingress: int, admin: int, data: Path) -> str:
    replication = 2 if nodes > 1 else 1
    port = fabric[index].rpartition(":")[2]
    return f"""\
cluster-name = "bench"
node-name = "node-{index}"
base-dir = {json.dumps(str(data))}
listen-mode = "tcp"
bind-ip = "{LOOPBACK}"
bind-port = {port}
advertised-address = "{fabric[index]}"
auto-provision = {json.dumps(index == 0)}
default-replication = {replication}
log-filter = "warn"
log-disable-ansi-codes = true
disable-telemetry = true
shutdown-timeout = "4s"
[metadata-client]
addresses = {json.dumps(fabric)}
[ingress]
bind-port = {ingress}
advertised-address = "http://{LOOPBACK}:{ingress}"
[admin]
bind-port = {admin}
advertised-address = "http://{LOOPBACK}:{admin}"
disable-web-ui = true
"""


async def _program() -> Path:
    """The server, from npm into the cache at first use."""
    place = cache_directory() / f"restate-server-{SERVER_VERSION}"
    if (found := _server_in(place)) is not None:
        return found
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise MissingPeerError(f"there is no npm to get {SERVER_PACKAGE} with")
    place.mkdir(parents=True, exist_ok=True)
    package = f"{SERVER_PACKAGE}@{SERVER_VERSION}"
    command: list[str | Path] = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", place, package]
    try:
        await run_tool(command, cwd=place, timeout_s=FETCH_S)
    except PeerError as error:
        raise MissingPeerError(f"{SERVER_PACKAGE} could not be had: {error}") from error
    if (found := _server_in(place)) is None:
        raise MissingPeerError(f"{SERVER_PACKAGE} has no server for {platform.system()} on {platform.machine()}")
    return found


def _server_in(place: Path) -> Path | None:
    return next((path for path in place.glob("node_modules/@restatedev/restate-server-*/bin/restate-server") if path.is_file()), None)
