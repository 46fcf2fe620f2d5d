"""Load from another process: for peers whose client is of another language, or claims a process of its own.

One JSON object a line each way. The child says ``{"ready": true}`` or ``{"missing": why}`` first. Each question
``{"operation", "in_flight", "duration_s", "keys"}`` is answered by a `bench.answer.LoadAnswer`; a child in another language, which has no
histograms, answers with a `RawAnswer`. End of input ends the child.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.answer import LoadAnswer
from bench.book import Book
from bench.load import Call, Load, Numbers, closed_loop, folded
from bench.peers.interface import KEYS
from bench.peers.processes import MissingPeerError, PeerError, Processes

READY_S = 90.0
#: After its time a load waits for its last answers, which have deadlines of their own.
ANSWER_S = 60.0


class RawAnswer(msgspec.Struct, kw_only=True):
    """A load as it was seen, to be folded here. Moments and durations are little-endian 64-bit nanoseconds in base64.

    :ivar over_ns: when the callers' time was over, since the load began
    :ivar took_ns: how long each answered call took
    :ivar ended_ns: when it was answered, since the load began
    :ivar failed_ns: when calls failed, since the load began
    :ivar acknowledged: changes that the callers were told of, by key; of reads it is of no use
    :ivar folding_cpu_s: what the child took to collect all this; it is not the load's
    """

    over_ns: int
    took_ns: str
    ended_ns: str
    failed_ns: str
    errors: dict[str, int]
    acknowledged: list[int]
    unknown: list[int]
    folding_cpu_s: float = 0.0

    def load(self) -> Load:
        began_s = time.process_time()
        took_ns, ended_ns, failed_ns = map(_numbers, (self.took_ns, self.ended_ns, self.failed_ns))
        load = folded(took_ns, ended_ns, failed_ns, over_ns=self.over_ns, errors=self.errors)
        return dataclasses.replace(load, folding_cpu_s=self.folding_cpu_s + time.process_time() - began_s)

    def book(self) -> Book:
        return Book.told(self.acknowledged, self.unknown)


class Child:
    """The parent's end of one child."""

    def __init__(self, processes: Processes, name: str) -> None:
        self._processes = processes
        self._name = name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, argv: Sequence[str | Path]) -> None:
        """Start it and wait until it is ready.

        :raises MissingPeerError: it says that it lacks something
        :raises PeerError: it fails
        """
        self._process = await self._processes.start(self._name, argv, pipes=True)
        answer = msgspec.json.decode(await self._line(READY_S))
        if "missing" in answer:
            raise MissingPeerError(str(answer["missing"]))

    async def load(self, operation: str, *, in_flight: int, duration_s: float, book: Book) -> Load:
        """Let it run one load; a write's outcome is added to `book`.

        :raises PeerError: it failed
        """
        assert self._process is not None
        assert self._process.stdin is not None
        question = {"operation": operation, "in_flight": in_flight, "duration_s": duration_s, "keys": KEYS}
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        await self._process.stdin.drain()
        line = await self._line(duration_s + ANSWER_S)
        began_s = time.process_time()
        is_raw = b'"over_ns"' in line
        answer = msgspec.json.decode(line, type=RawAnswer) if is_raw else msgspec.json.decode(line, type=LoadAnswer)
        decoding_s = time.process_time() - began_s
        if operation == "write":
            book.merge(answer.book())
        load = answer.load()
        return dataclasses.replace(load, folding_cpu_s=load.folding_cpu_s + decoding_s)

    async def close(self) -> None:
        """Let it end by itself, so that it can take down what it started."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15.0):
                    await self._process.wait()

    async def _line(self, timeout_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise PeerError(f"{self._name} says nothing for {timeout_s:g} s: {self._processes.log_tail(self._name)}") from error
        if not line:
            raise PeerError(f"{self._name} ended: {self._processes.log_tail(self._name)}")
        return line


def _numbers(text: str) -> Numbers:
    return np.frombuffer(base64.b64decode(text), dtype="<i8").astype(np.int64)


#: Opens a peer in the child: gives the call of each operation.
Opened = AbstractAsyncContextManager[dict[str, Call]]


async def serve(opened: Callable[[], Opened]) -> None:
    """The child's end, in Python: answer questions until the input ends."""
    # What libraries print must not end up among the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def say(answer: object) -> None:
            answers.write(msgspec.json.encode(answer).decode() + "\n")
            answers.flush()

        try:
            async with opened() as calls:
                say({"ready": True})
                while line := await asyncio.to_thread(sys.stdin.readline):
                    question = msgspec.json.decode(line)
                    say(await _answered(question, calls[question["operation"]]))
        except MissingPeerError as error:
            say({"missing": str(error)})


async def _answered(question: dict[str, Any], call: Call) -> LoadAnswer:
    book = Book(question["keys"])
    load = await closed_loop(
        call,
        in_flight=question["in_flight"],
        duration_s=question["duration_s"],
        book=book if question["operation"] == "write" else None,
        timeline=False,
    )
    return LoadAnswer.of(load, book)
