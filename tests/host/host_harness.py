"""Real hosts for tests: in this process, or in one of their own that can be killed; and a client that speaks the wire by hand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import host_actors
import msgspec
import uvloop

from actorgrid import grid
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError, from_wire
from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.ids import HostName, make_address, partition_of
from actorgrid.settings import ClientSettings, HostSettings, WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import FrameReader, frame
from actorgrid.wire.messages import HostInfo

HERE = Path(__file__).parent
CLUSTER = "grid-of-the-test"
PARTITIONS = 4
QUICK = ClientSettings(timeout_s=5.0, connect_timeout_s=0.5, retry_first_s=0.005, retry_max_s=0.05)


#: Each process that runs tests has ports of its own, below those that the kernel gives to outgoing connections.
PORTS = itertools.count(20_000 + 4_000 * (1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1")[2:])) % 12_000)


def free_port() -> int:
    """A port nobody listens on, and that was not given out before."""
    for port in itertools.islice(PORTS, 2_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("2,000 ports in a row are in use")


def make_config(
    data_dir: Path,
    *,
    ports: list[int] | None = None,
    index: int = 0,
    settings: HostSettings | None = None,
    wire: WireSettings | None = None,
    app: str = "host_actors",
    replicas: int = 1,
    cluster_id: str = CLUSTER,
    credentials: Credentials | None = None,
) -> HostConfig:
    ports = ports or [free_port()]
    hosts = tuple(HostInfo(f"host-{i + 1}", "127.0.0.1", port) for i, port in enumerate(ports))
    return HostConfig(
        cluster_id=cluster_id,
        name=HostName(f"host-{index + 1}"),
        node=f"node-{index + 1}",
        data_dir=data_dir / f"host-{index + 1}",
        address="127.0.0.1",
        port=ports[index],
        partition_count=PARTITIONS,
        replica_set_size=replicas,
        hosts=hosts,
        app=(app,),
        app_path=(str(HERE),),
        settings=settings or HostSettings(),
        wire=wire or WireSettings(),
        credentials=credentials,
    )


@contextlib.asynccontextmanager
async def serving(
    data_dir: Path, *, hosts: int = 1, settings: HostSettings | None = None, ports: list[int] | None = None
) -> AsyncIterator[list[Host]]:
    """`hosts` hosts in this process, stopped in order at the end."""
    ports = ports or [free_port() for _ in range(hosts)]
    started = [Host(make_config(data_dir, ports=ports, index=i, settings=settings)) for i in range(len(ports))]
    for host in started:
        await host.start()
    await begin(started)
    try:
        yield started
    finally:
        for host in started:
            await host.stop()


class HostByHost:
    """Hosts of one grid, in this process, that are started and stopped one by one; None where one does not run.

    :param options: for `make_config`
    """

    def __init__(self, path: Path, count: int, **options: Any) -> None:
        self.path = path
        self.ports = [free_port() for _ in range(count)]
        self.hosts: list[Any] = [None] * count
        self._options = options

    async def start(self, index: int) -> Host:
        host = self.hosts[index] = Host(make_config(self.path, ports=self.ports, index=index, **self._options))
        await host.start()
        return host

    async def stop(self, index: int) -> None:
        host, self.hosts[index] = self.hosts[index], None
        await host.stop()

    @property
    def up(self) -> list[Host]:
        return [host for host in self.hosts if host is not None]


async def begin(hosts: list[Host]) -> None:
    """The first start of a grid: its hosts create their replicas. Later starts need and mind it not."""
    await hosts[0].administer("init", {})
    await until(lambda: all(partition.serving for host in hosts for partition in host.partitions.values()))


@contextlib.asynccontextmanager
async def one_grid(
    data_dir: Path, *, hosts: int = 1, settings: HostSettings | None = None
) -> AsyncIterator[tuple[list[Host], grid.Client]]:
    """Hosts and a client of them."""
    async with serving(data_dir, hosts=hosts, settings=settings) as started, grid.connect(seeds(started), settings=QUICK) as client:
        yield started, client


def seeds(hosts: list[Host]) -> str:
    return ",".join(f"127.0.0.1:{host.port}" for host in hosts)


def run(main: Callable[[], Coroutine[Any, Any, None]], timeout_s: float = 12.0, *, problems_allowed: bool = False) -> None:
    """Run a test's coroutine on uvloop; afterwards no task may be left and nothing may have gone wrong unheard."""
    host_actors.SEEN.clear()
    host_actors.GATES.clear()
    host_actors.KEPT.clear()

    async def guarded() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with asyncio.timeout(timeout_s):
            await main()
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()]
        assert not left, left
        assert problems_allowed or not problems, problems

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(guarded())


async def awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def soon(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that waits for `awaitable`."""
    return asyncio.get_running_loop().create_task(awaited(awaitable))


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def actor_on(partition: int, actor_type: str, prefix: str = "a", count: int = PARTITIONS) -> str:
    """An id of an actor that lives in `partition`."""
    return next(f"{prefix}{i}" for i in range(10_000) if partition_of(make_address(actor_type, f"{prefix}{i}"), count) == partition)


class Raw:
    """A client that says exactly what the test says: numbers, marks and all."""

    def __init__(self, client_id: bytes | None = None) -> None:
        self.client_id = client_id or secrets.token_bytes(16)
        self.answers: dict[int, list[Any]] = {}
        self.lost = False

    async def connect(self, port: int, role: str = messages.ROLE_CLIENT) -> Raw:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._frames = FrameReader(64 << 20)
        hello = messages.Hello(messages.MAGIC, 1, 1, "", role, self.client_id)
        self._writer.write(frame(messages.encode(hello)))
        header = await self._reader.readexactly(4)  # the answer first: until then a host reads handshakes only
        await self._reader.readexactly(int.from_bytes(header, "big"))
        self._task = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(65536):
                for payload in self._frames.feed(data):
                    if payload[1] == messages.KIND_REPLIES:
                        for reply in messages.CLIENT_DECODERS[messages.KIND_REPLIES](payload).replies:
                            self.answers.setdefault(reply.correlation, []).append(_result_of(reply))
        self.lost = True

    def send(
        self,
        number: int,
        method: str,
        *args: Any,
        to: str = "Box\0a",
        lowest: int = 0,
        anywhere: int = 0,
        since: int = 0,
        timeout_ms: int = 10_000,
        extra: messages.CallExtra | None = None,
        client_id: bytes = b"",
    ) -> None:
        call = messages.Call(number, to, method, timeout_ms, msgspec.Raw(messages.encode(args)), extra)
        group = messages.CallGroup(partition_of(to, PARTITIONS), client_id, lowest, anywhere, since, [call])
        self._writer.write(frame(messages.encode(messages.Calls([group]))))

    async def answer(self, number: int, index: int = 0, timeout_s: float = 5.0) -> Any:
        await until(lambda: len(self.answers.get(number, ())) > index, timeout_s)
        return self.answers[number][index]

    async def call(self, number: int, method: str, *args: Any, **options: Any) -> Any:
        """Send, and wait for the next answer with this number."""
        have = len(self.answers.get(number, ()))
        self.send(number, method, *args, **options)
        return await self.answer(number, have)

    async def close(self) -> None:
        self._writer.close()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._task
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_client(host: Host | int, client_id: bytes | None = None, role: str = messages.ROLE_CLIENT) -> AsyncIterator[Raw]:
    client = await Raw(client_id).connect(host if isinstance(host, int) else host.port, role)
    try:
        yield client
    finally:
        await client.close()


def _result_of(reply: messages.Reply) -> Any:
    if reply.status == messages.STATUS_OK:
        return msgspec.msgpack.decode(reply.payload)
    payload = messages.decode_error(reply.payload)
    return from_wire(payload.error, payload.message, payload.details)


def expect(answer: Any, kind: type[ActorGridError], *words: str) -> None:
    """`answer` is an error of this very kind, and says these words."""
    assert type(answer) is kind, answer
    for word in words:
        assert word in str(answer), f"{word!r} is not in {answer}"


class HostProcess:
    """A host in a process of its own."""

    def __init__(self, data_dir: Path, port: int | None = None, **settings: Any) -> None:
        self.port = port or free_port()
        environment = {**os.environ, **{f"ACTORGRID_{name.upper()}": str(value) for name, value in settings.items()}}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "host_process.py"), str(data_dir), str(self.port)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.strip() == b"serving", line

    @property
    def pid(self) -> int:
        return self._process.pid

    def rss_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        code = self._process.wait(timeout=20)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def __enter__(self) -> HostProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive():
            self.kill()
