"""Load from another process: for peers whose client is of another language, or claims a process of its own.

One JSON object a line each way. The child says ``{"ready": true}`` or ``{"missing": why}`` first. Each question
``{"operation", "in_flight", "duration_s", "keys"}`` is answered by the fields of a `Load` and, of writes, by what the callers were told by
key (``acknowledged``, ``unknown``). A child in another language sends, instead of ``latencies``, base64 of little-endian 64-bit nanoseconds
of each call: how long it took (``took_ns``), and when since the load began it was answered (``ended_ns``) or failed (``failed_ns``). End of
input ends the child.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.book import Book
from bench.latencies import Latencies
from bench.load import SLICE_S, Call, Load, Slice, closed_loop
from bench.peers.interface import KEYS
from bench.peers.processes import MissingPeerError, PeerError, Processes

READY_S = 90.0
#: After its time a load waits for its last answers, which have deadlines of their own.
ANSWER_S = 60.0


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
        answer = await self._answer(READY_S)
        if "missing" in answer:
            raise MissingPeerError(str(answer["missing"]))

    async def load(self, operation: str, *, in_flight: int, duration_s: float, book: Book) -> Load:
        """Let it run one load; a write's outcome is added to `book`.

        :raises PeerError: it failed
        """
        assert self._process is not None
        assert self._process.stdin is not None
        question = {"operation": operation, "in_flight": in_flight, "duration_s": duration_s, "keys": KEYS}
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        await self._process.stdin.drain()
        answer = await self._answer(duration_s + ANSWER_S)
        if operation == "write":
            told = Book(KEYS)
            told.acknowledged, told.unknown = answer.pop("acknowledged"), answer.pop("unknown")
            book.merge(told)
        took_ns, ended_ns, failed_ns = (_numbers(answer.get(name, "")) for name in ("took_ns", "ended_ns", "failed_ns"))
        return Load(
            calls=answer["calls"],
            failed=answer["failed"],
            elapsed_s=answer["elapsed_s"],
            latencies=Latencies.of_ns(took_ns) if len(took_ns) else Latencies.decode(answer.get("latencies", "")),
            errors=answer["errors"],
            longest_gap_s=answer["longest_gap_s"],
            timeline=_timeline(took_ns, ended_ns, failed_ns),
        )

    async def close(self) -> None:
        """Let it end by itself, so that it can take down what it started."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15.0):
                    await self._process.wait()

    async def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise PeerError(f"{self._name} says nothing for {timeout_s:g} s: {self._processes.log_tail(self._name)}") from error
        if not line:
            raise PeerError(f"{self._name} ended: {self._processes.log_tail(self._name)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _numbers(text: str) -> NDArray[np.int64]:
    return np.frombuffer(base64.b64decode(text), dtype="<i8").astype(np.int64)


def _timeline(took_ns: NDArray[np.int64], ended_ns: NDArray[np.int64], failed_ns: NDArray[np.int64]) -> tuple[Slice, ...]:
    width_ns = int(SLICE_S * 1e9)
    places, failed_places = ended_ns // width_ns, failed_ns // width_ns
    if not len(places) and not len(failed_places):
        return ()
    size = int(max(places.max(initial=0), failed_places.max(initial=0))) + 1
    calls, failed = np.bincount(places, minlength=size), np.bincount(failed_places, minlength=size)
    slowest = np.zeros(size)
    np.maximum.at(slowest, places, took_ns / 1e6)
    return tuple(
        Slice(round(place * SLICE_S, 3), int(calls[place]), int(failed[place]), round(float(slowest[place]), 3)) for place in range(size)
    )


#: Opens a peer in the child: gives the call of each operation.
Opened = AbstractAsyncContextManager[dict[str, Call]]


async def serve(opened: Callable[[], Opened]) -> None:
    """The child's end, in Python: answer questions until the input ends."""
    # What libraries print must not end up among the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def say(answer: dict[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        try:
            async with opened() as calls:
                say({"ready": True})
                while line := await asyncio.to_thread(sys.stdin.readline):
                    question = json.loads(line)
                    say(await _answered(question, calls[question["operation"]]))
        except MissingPeerError as error:
            say({"missing": str(error)})


async def _answered(question: dict[str, Any], call: Call) -> dict[str, Any]:
    book = Book(question["keys"])
    is_write = question["operation"] == "write"
    load = await closed_loop(call, in_flight=question["in_flight"], duration_s=question["duration_s"], book=book if is_write else None)
    fields = {field.name: getattr(load, field.name) for field in dataclasses.fields(load) if field.name != "timeline"}
    fields["latencies"] = load.latencies.encode()
    if is_write:
        fields |= {"acknowledged": book.acknowledged, "unknown": book.unknown}
    return fields
