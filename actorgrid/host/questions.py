"""Questions that hosts ask each other on their peer connections: for what is seldom and wants an answer, such as placement.

An answer is sent back as it comes, so a slow one holds up nobody. A question whose connection ends, or that waits too long, is an error to
whoever asked, and may have been answered all the same: what is asked for must be safe to repeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from actorgrid.errors import (
    ActorGridError,
    DeadlineExceededError,
    HostUnavailableError,
    OverloadedError,
    ProtocolError,
    from_wire,
    to_wire,
)
from actorgrid.host.peers import Peers
from actorgrid.replication.frames import PeerAnswer, PeerQuestion

logger = logging.getLogger(__name__)

#: Questions of one host that are being answered at a time (I16).
UNDER_WAY_MAX: Final = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_decode_error = msgspec.msgpack.Decoder(tuple[str, str, dict[str, Any]]).decode


class Questions:
    """The questions of one host, asked and answered.

    :param answer: how this host answers: ``(asking host, verb, arguments)`` to plain values
    """

    def __init__(self, peers: Peers, answer: Callable[[str, str, dict[str, Any]], Awaitable[Any]]) -> None:
        self._peers = peers
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._last_number = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[PeerAnswer]]] = {}
        self._under_way: dict[asyncio.Task[None], str] = {}

    async def ask(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """Ask `host`, and return its answer as plain values.

        :raises HostUnavailableError: there is no connection to it, or it ended; the question may have been answered
        :raises DeadlineExceededError: no answer within `timeout_s`
        :raises ActorGridError: what the host answered
        """
        self._last_number += 1
        number = self._last_number
        future: asyncio.Future[PeerAnswer] = self._loop.create_future()
        if not self._peers.send_frame(host, PeerQuestion(number, verb, arguments)):
            raise HostUnavailableError(f"no connection to host {host}")
        self._waiting[number] = host, future
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise DeadlineExceededError(f"{verb}: host {host} did not answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[number]
        try:
            if answer.is_error:
                raise from_wire(*_decode_error(answer.payload))
            return _decode(answer.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
            raise ProtocolError(f"{verb}: the answer of host {host} cannot be decoded: {why}") from None

    def on_question(self, host: str, question: PeerQuestion) -> None:
        """A host asks."""
        if list(self._under_way.values()).count(host) >= UNDER_WAY_MAX:
            self._reply(host, question, OverloadedError(f"{UNDER_WAY_MAX} questions of {host} are being answered"))
            return
        task = self._loop.create_task(self._work(host, question), name=f"question of {host}: {question.verb}")
        self._under_way[task] = host
        task.add_done_callback(self._under_way.pop)

    def on_answer(self, host: str, answer: PeerAnswer) -> None:
        """An answer came; one that nobody waits for any more is ignored."""
        asked, future = self._waiting.get(answer.number, ("", None))
        if future is not None and asked == host and not future.done():
            future.set_result(answer)

    def peer_lost(self, host: str) -> None:
        """The connection to `host` has ended, and with it what was asked."""
        for asked, future in list(self._waiting.values()):
            if asked == host and not future.done():
                future.set_exception(HostUnavailableError(f"the connection to host {host} ended"))

    async def _work(self, host: str, question: PeerQuestion) -> None:
        try:
            result: Any = await self._answer(host, question.verb, question.arguments)
        except ActorGridError as error:
            result = error
        except Exception as error:
            logger.exception("question could not be answered verb=%s host=%s", question.verb, host)
            result = ProtocolError(f"{question.verb}: {type(error).__name__}: {error}")
        self._reply(host, question, result)

    def _reply(self, host: str, question: PeerQuestion, result: Any) -> None:
        is_error = isinstance(result, ActorGridError)
        payload = _encode(to_wire(result) if is_error else result)
        self._peers.send_frame(host, PeerAnswer(question.number, is_error, payload))

    async def close(self) -> None:
        """Answer nothing more."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
