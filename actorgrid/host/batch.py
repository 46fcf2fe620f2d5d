"""A batch of reads on its way through a host: what is still to be done of it, and the answers there are.

Its items are turns like all others (see `Admission.admit_batch`). Their answers are collected here and leave together. What a batch
would otherwise keep of large results leaves as soon as it fills half a frame, and what is there leaves a moment after the last item has
begun: one that waits for long holds up nobody else's answer and keeps nothing but itself (I16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from actorgrid.errors import ActorGridError, ProtocolError
from actorgrid.host.runner import error_payload
from actorgrid.wire.framing import array_header
from actorgrid.wire.messages import STATUS_ERROR, STATUS_OK, Batch, encode

_ARRAY_OF_FIVE: Final = b"\x95"
_ARRAY_OF_ONE: Final = b"\x91"
_NO_ERRORS: Final = b"\x90"
_FIRST_IS_ERROR: Final = b"\x91\x00"
#: In the place of an answer that has left; no MessagePack begins with this byte.
_SENT: Final = b"\xc1"
_NUMBERS: Final = 1 << 64


class BatchAnswers(Protocol):
    """Where answers to batches go: a connection."""

    def reply_batch(self, encoded: bytes) -> None:
        """Send a `BatchReply`; never raises, never blocks."""

    def after_a_moment(self, action: Callable[[], None]) -> None:
        """Do `action` when what only waits for a commit is over as a rule."""


class ReadBatch:
    """One `Batch` of a client. As `Sink` of its turns it takes the place of an item for its correlation.

    :param client_id: of whom it came from
    :param frame_bytes_max: what a frame to it may have
    :ivar count: of items
    :ivar begun: items that were looked at
    :ivar deadline_ns: monotonic; 0 before the first item
    """

    __slots__ = (
        "_answers",
        "_bytes",
        "_bytes_max",
        "_errors",
        "_is_late",
        "_left",
        "_payloads",
        "_was_split",
        "addresses",
        "args",
        "begun",
        "client_id",
        "count",
        "deadline_ns",
        "lowest_anywhere",
        "method_name",
        "number",
        "partition",
        "since_lsn",
        "timeout_ms",
    )

    def __init__(self, batch: Batch, client_id: bytes, frame_bytes_max: int, answers: BatchAnswers) -> None:
        """
        :raises ProtocolError: the batch does not have its form
        """
        self.count = count = len(batch.addresses)
        if len(batch.args) != count and len(batch.args) != 1:
            raise ProtocolError(f"batch {batch.number} has {count} addresses and {len(batch.args)} arguments, expected {count} or 1")
        if batch.number + count >= _NUMBERS:
            raise ProtocolError(f"batch {batch.number} of {count} items: its numbers do not fit in 64 bits")
        self.number: int = batch.number
        self.partition: int = batch.partition
        self.lowest_anywhere: int = batch.lowest_anywhere
        self.since_lsn: int = batch.since_lsn
        self.method_name: str = batch.method
        self.timeout_ms: int = batch.timeout_ms
        self.addresses: list[str] = batch.addresses
        self.args = batch.args
        self.client_id = client_id
        self.begun = 0
        self.deadline_ns = 0
        self._answers = answers
        self._bytes_max = frame_bytes_max // 2
        self._bytes = 0
        self._left = count
        self._payloads: list[bytes] = [b""] * count
        self._errors: dict[int, None] = {}
        self._was_split = False
        self._is_late = False

    def reply(self, correlation: int, status: int, payload: bytes, lsn: int = 0) -> None:
        """Take the answer of item number `correlation` (see `Sink`); the first one counts."""
        if self._payloads[correlation]:
            return
        if self._is_late:
            self._payloads[correlation] = _SENT
            self._left -= 1
            errors = _NO_ERRORS if status == STATUS_OK else _FIRST_IS_ERROR
            self._answers.reply_batch(
                b"".join((_ARRAY_OF_FIVE, encode((self.number, STATUS_OK, correlation))[1:], _ARRAY_OF_ONE, payload, errors))
            )
            return
        if status != STATUS_OK:
            self._errors[correlation] = None
        self._payloads[correlation] = payload
        self._bytes += len(payload)
        self._left -= 1
        if not self._left or self._bytes > self._bytes_max:
            self._send()

    def reply_all(self, indexes: list[int], results: list[bytes]) -> None:
        """Take results of items that have no answer yet."""
        payloads = self._payloads
        for place, index in enumerate(indexes):
            payload = results[place]
            payloads[index] = payload
            self._bytes += len(payload)
        self._left -= len(indexes)
        if not self._left or self._bytes > self._bytes_max:
            self._send()

    def refuse_rest(self, error: ActorGridError) -> None:
        """Refuse what was not begun: nothing of it happened."""
        payload = error_payload(error)
        if not self.begun:
            self.begun = self.count
            self._answers.reply_batch(b"".join((_ARRAY_OF_FIVE, encode((self.number, STATUS_ERROR, 0))[1:], payload, _NO_ERRORS)))
            return
        begun, self.begun = self.begun, self.count
        for index in range(begun, self.count):
            self.reply(index, STATUS_ERROR, payload)
        self.all_begun()

    def all_begun(self) -> None:
        """No item is left to be looked at: what came with them is not needed any more, and those that wait are waited for a moment."""
        self.addresses, self.args = [], []
        if self._left:
            self._answers.after_a_moment(self._send_late)

    def _send_late(self) -> None:
        if not self._left:
            return
        if self._bytes:
            self._send()
        self._is_late = True
        self._errors.clear()

    def _send(self) -> None:
        """Let the answers leave that there are, in runs of neighbours that fit into a frame."""
        payloads = self._payloads
        if not self._left and not self._was_split and self._bytes <= self._bytes_max:
            self._send_run(0, payloads)
            return
        self._was_split = True
        self._bytes = 0
        run: list[bytes] = []
        size = 0
        for index, payload in enumerate(payloads):
            is_new = payload != b"" and payload != _SENT
            if run and (not is_new or size + len(payload) > self._bytes_max):
                self._send_run(index - len(run), run)
                run, size = [], 0
            if is_new:
                run.append(payload)
                size += len(payload)
                payloads[index] = _SENT
        if run:
            self._send_run(len(payloads) - len(run), run)

    def _send_run(self, start: int, run: list[bytes]) -> None:
        errors = _NO_ERRORS
        if self._errors:
            errors = encode([index - start for index in self._errors if start <= index < start + len(run)])
        header = encode((self.number, STATUS_OK, start))
        self._answers.reply_batch(b"".join((_ARRAY_OF_FIVE, header[1:], array_header(len(run)), *run, errors)))
