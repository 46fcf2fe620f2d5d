"""Load from client processes of their own: ``python -m bench.clients`` is one of them, told what to do on its standard input.

The parent writes a `ClientOrder`, waits for "ready", and then writes a `LoadOrder` for each load; the answer to each is a
`bench.answer.LoadAnswer`, whose book is that since the start. One line of JSON each. A closed standard input ends the process, so that
none outlives its parent.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Self

import msgspec
import uvloop

from actorgrid import grid
from bench.answer import LoadAnswer
from bench.book import Book
from bench.load import Load, closed_loop, merged
from bench.workload import Workload

READY = b"ready\n"
START_S = 60.0
#: What a load may take beyond its duration: calls that wait for a failover.
LATE_S = 90.0
LINE_BYTES_MAX = 256 << 20


class ClientOrder(msgspec.Struct, kw_only=True):
    """What one process is to do."""

    address: str
    workload: Workload
    in_flight: int
    first: int


class LoadOrder(msgspec.Struct):
    """One load."""

    duration_s: float


class ClientProcesses:
    """So many client processes: ``async with ClientProcesses(4, target.address, workload, in_flight=1024) as clients``."""

    def __init__(self, count: int, address: str, workload: Workload, *, in_flight: int) -> None:
        self._workload = workload
        share = max(1, in_flight // count)
        # Each begins elsewhere: processes that call the same actors in step would wait for each other's turns.
        self._orders = [
            ClientOrder(address=address, workload=workload, in_flight=share, first=place * (workload.actors // count))
            for place in range(count)
        ]
        self._processes: list[asyncio.subprocess.Process] = []
        self._answers: list[LoadAnswer] = []

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(START_S):
                for order in self._orders:
                    process = await asyncio.create_subprocess_exec(
                        # With -P the build that this process runs comes before the working directory, which has the pure one.
                        *(sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "bench.clients"),
                        cwd=Path(__file__).parent.parent,
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        limit=LINE_BYTES_MAX,
                    )
                    self._processes.append(process)
                    self._write(process, order)
                for process in self._processes:
                    line = await self._line(process)
                    if line != READY:
                        raise RuntimeError(f"a client process did not get ready: {line[:200]!r}")
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    async def load(self, duration_s: float) -> Load:
        """All of them for so long; what they saw together.

        :raises RuntimeError: one of them ended
        :raises TimeoutError: one does not answer
        """
        async with asyncio.timeout(duration_s + LATE_S):
            for process in self._processes:
                self._write(process, LoadOrder(duration_s))
            self._answers = [msgspec.json.decode(await self._line(process), type=LoadAnswer) for process in self._processes]
        return merged([each.load() for each in self._answers])

    def book(self) -> Book:
        """What all of them were told since they started."""
        book = self._workload.book()
        for answer in self._answers:
            book.merge(answer.book())
        return book

    def _write(self, process: asyncio.subprocess.Process, order: msgspec.Struct) -> None:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def _line(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client process ended by itself, exit code {await process.wait()}; its error is above")
        return line

    async def _end(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def serve() -> None:
    """Be a client process."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = msgspec.json.decode(await reader.readline(), type=ClientOrder)
    async with grid.connect(order.address) as client:
        call, book = order.workload.call(client), order.workload.book()
        _answer(READY)
        while line := await reader.readline():
            wanted = msgspec.json.decode(line, type=LoadOrder)
            load = await closed_loop(
                call,
                in_flight=order.in_flight,
                duration_s=wanted.duration_s,
                book=book if order.workload.changes else None,
                first=order.first,
                weight=order.workload.weight,
                timeline=False,
            )
            _answer(msgspec.json.encode(LoadAnswer.of(load, book)) + b"\n")


def _answer(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(serve())
