"""Frames on a byte stream: four bytes of length, big-endian, then that many bytes of payload.

No sockets here: `FrameReader` is fed bytes and gives payloads. It never holds more than one frame of the allowed size (I16)
and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from actorgrid.errors import PayloadTooLargeError, ProtocolError

HEADER_BYTES = 4


class FrameReader:
    """Cuts a stream into payloads. After a `ProtocolError` the stream is out of step: close it.

    :param frame_bytes_max: longest payload accepted; may be raised after the handshake
    """

    __slots__ = ("_buffer", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take `data` from the stream and return the payloads it completes, oldest first.

        Payloads are copies: what is decoded from them may outlive the buffer.

        :raises ProtocolError: a length is 0 or above `frame_bytes_max`
        """
        payloads: list[bytes] = []
        buffer = self._buffer
        source: bytes | bytearray = data
        if buffer:
            buffer += data
            source = buffer
        offset, end = 0, len(source)
        while end - offset >= HEADER_BYTES:
            length = int.from_bytes(source[offset : offset + HEADER_BYTES], "big")
            if not 1 <= length <= self.frame_bytes_max:
                raise ProtocolError(f"frame of {length} bytes: allowed are 1..{self.frame_bytes_max}")
            start = offset + HEADER_BYTES
            if end - start < length:
                break
            offset = start + length
            payloads.append(bytes(source[start:offset]))
        if source is buffer:
            del buffer[:offset]
        elif offset < end:
            buffer += data[offset:]
        return payloads


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def array_header(size: int) -> bytes:
    """The MessagePack header of an array of `size` elements."""
    if size < 16:
        return bytes((0x90 | size,))
    if size < 65536:
        return b"\xdc" + size.to_bytes(2, "big")
    return b"\xdd" + size.to_bytes(4, "big")


def frames_of(kind: int, items: Iterable[bytes], frame_bytes_max: int) -> list[bytes]:
    """Frames ``[kind, [item, ...]]`` of already encoded items, as few as the size limit allows, in order.

    :raises PayloadTooLargeError: one item alone is larger than a frame
    """
    frames: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    limit = frame_bytes_max - 16
    for item in items:
        if size + len(item) > limit:
            if len(item) > limit:
                raise PayloadTooLargeError(f"{len(item)} bytes are more than one frame may hold ({frame_bytes_max})")
            frames.append(_frame_of(kind, batch, size))
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        frames.append(_frame_of(kind, batch, size))
    return frames


def _frame_of(kind: int, items: list[bytes], size: int) -> bytes:
    header = b"\x92" + bytes((kind,)) + array_header(len(items))
    return b"".join([(len(header) + size).to_bytes(HEADER_BYTES, "big"), header, *items])
