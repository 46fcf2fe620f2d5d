"""What is remembered of a finished request, and the bytes of a session in a checkpoint."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct


class SessionRecord(Struct, array_like=True, gc=False):
    """The answer of one executed request: ``status`` and ``result`` as in the entry at ``lsn``."""

    digest: int
    status: int
    result: bytes
    lsn: int


class SessionImage(Struct, array_like=True):
    """One client's session, as checkpoints hold it."""

    order: int
    floor_lsn: int
    lowest: int
    lowest_anywhere: int
    last_lsn: int
    records: list[tuple[int, SessionRecord]]
    nested: list[tuple[int, tuple[int, ...], SessionRecord]]


encode_image: Final = msgspec.msgpack.Encoder().encode
decode_image: Final = msgspec.msgpack.Decoder(SessionImage).decode
