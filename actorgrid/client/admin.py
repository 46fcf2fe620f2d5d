"""An operator's question to one host, over a connection of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from actorgrid.client.connection import Connection, RefusedError, connect, error_of
from actorgrid.credentials import Credentials, client_context
from actorgrid.errors import ActorGridError, DeadlineExceededError, HostUnavailableError, ProtocolError
from actorgrid.settings import WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import frame
from actorgrid.wire.messages import Admin, AdminReply, BatchReply, Hello, MapMessage, Reply

_CORRELATION = 1


class _Question:
    """Listener of the connection; it waits for one answer and takes nothing else seriously."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[AdminReply] = asyncio.get_running_loop().create_future()

    def on_admin_reply(self, connection: Connection, reply: AdminReply) -> None:
        if reply.correlation == _CORRELATION and not self.answer.done():
            self.answer.set_result(reply)

    def on_lost(self, connection: Connection, error: ActorGridError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody waits for it when the deadline has passed

    def on_replies(self, connection: Connection, replies: list[Reply]) -> None:
        raise ProtocolError(f"{connection.name}: replies to calls that were never made here")

    def on_batch_replies(self, connection: Connection, replies: list[BatchReply]) -> None:
        raise ProtocolError(f"{connection.name}: replies to batches that were never sent here")

    def on_map(self, connection: Connection, message: MapMessage) -> None: ...
    def on_goodbye(self, connection: Connection, reason: str) -> None: ...
    def on_writable(self, connection: Connection) -> None: ...


async def ask(
    host: str,
    port: int,
    verb: str,
    arguments: dict[str, Any],
    *,
    client_id: bytes,
    cluster_id: str,
    wire: WireSettings,
    timeout_s: float,
    credentials: Credentials | None = None,
) -> Any:
    """Ask a host, and return its answer as plain values.

    :param verb: what to do; the host knows the list
    :param credentials: None: no TLS
    :raises AccessDeniedError: they do not do for this
    :raises HostUnavailableError: it cannot be reached; nothing happened
    :raises DeadlineExceededError: it was asked and did not answer within `timeout_s`
    :raises ActorGridError: what the host answered
    """
    question = _Question()
    hello = Hello(
        messages.MAGIC,
        messages.PROTOCOL_VERSION_OLDEST,
        messages.PROTOCOL_VERSION,
        cluster_id,
        messages.ROLE_OPERATOR,
        client_id,
        credentials.read_token() if credentials is not None else b"",
    )
    tls = client_context(credentials) if credentials is not None else None
    started = asyncio.get_running_loop().time()
    try:
        connection = await connect(question, host, port, hello, wire=wire, timeout_s=timeout_s, tls=tls)
    except RefusedError as refusal:
        raise refusal.error from None
    try:
        async with asyncio.timeout_at(started + timeout_s):
            connection.write([frame(messages.encode(Admin(_CORRELATION, verb, arguments)))])
            reply = await question.answer
    except TimeoutError:
        raise DeadlineExceededError(f"{verb} on {connection.name}: no answer within {timeout_s:g} s") from None
    finally:
        connection.close(HostUnavailableError(f"{connection.name}: the question is over"))
    try:
        if reply.status == messages.STATUS_OK:
            return msgspec.msgpack.decode(reply.payload)
        error = messages.decode_error(reply.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as why:
        raise ProtocolError(f"{verb} on {connection.name}: the answer cannot be decoded: {why}") from None
    raise error_of(error.error, error.message, error.details)
