"""What hosts say to each other about their replicas: the handshake of two peers, one frame per tick, and copies.

A frame's payload is an array whose first element is its kind, as in `actorgrid.wire.messages`; the kinds here begin at 20. Everything
that several partitions have to say to one host in one tick travels in one `PeerFrame`, and so do beats.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from actorgrid.replication.configuration import Configuration
from actorgrid.replication.messages import Counter, HostNameText, Message

KIND_PEER_HELLO: Final = 20
KIND_PEER_WELCOME: Final = 21
KIND_PEER_REFUSED: Final = 22
KIND_PEER_FRAME: Final = 23
KIND_COPY_BEGIN: Final = 24
KIND_COPY_CHUNK: Final = 25
KIND_COPY_END: Final = 26
KIND_COPY_ANSWER: Final = 27
KIND_PEER_QUESTION: Final = 28
KIND_PEER_ANSWER: Final = 29

Text = Annotated[str, Meta(max_length=1024)]


class StoreMark(Struct, array_like=True, frozen=True):
    """How far a host's store is: its life, its counter of promises, and which store it is.

    A host that comes back with less than its peers remember has a disk that went back in time (I6).
    """

    incarnation: Counter
    position: Counter
    store_id: Text


NOTHING_KNOWN: Final = StoreMark(0, 0, "")


class PeerHello(Struct, array_like=True, tag=KIND_PEER_HELLO):
    """First frame between two hosts, from the one that connects. `known`: what it remembers of the other one's store."""

    magic: Text
    version_oldest: Counter
    version_newest: Counter
    cluster_id: Text
    host: HostNameText
    mark: StoreMark
    process_id: Text
    known: StoreMark


class PeerWelcome(Struct, array_like=True, tag=KIND_PEER_WELCOME):
    """The answer: the same about the other side."""

    version: Counter
    host: HostNameText
    mark: StoreMark
    process_id: Text
    known: StoreMark


class PeerRefused(Struct, array_like=True, tag=KIND_PEER_REFUSED):
    """No replication with you: `known` is what is remembered of your store, which is more than you have, or the text says why."""

    message: Annotated[str, Meta(max_length=4096)]
    known: StoreMark


class Beat(Struct, array_like=True, gc=False):
    """I am alive. `sent_ns` is the sender's clock, and comes back in the answer.

    `primaries` is what the sender is primary of, with epochs; only sent until the receiver has answered `version`.
    """

    sent_ns: Counter
    version: Counter
    primaries: dict[int, int] | None = None


class BeatAnswer(Struct, array_like=True, gc=False):
    """I support you, under this number. `version`: the newest announcement that was understood."""

    sent_ns: Counter
    number: Counter
    version: Counter


class PeerFrame(Struct, array_like=True, tag=KIND_PEER_FRAME, gc=False):
    """Everything one host says to another in one tick. `position`: what its store has durably, never less than the messages promise."""

    position: Counter
    beat: Beat | None
    answer: BeatAnswer | None
    messages: list[Message]


class CopyBegin(Struct, array_like=True, tag=KIND_COPY_BEGIN):
    """A copy of a partition for the replica `to` of the receiver; `copy` names it for its other frames."""

    copy: Counter
    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter


class CopyChunkFrame(Struct, array_like=True, tag=KIND_COPY_CHUNK, gc=False):
    """One chunk; `checksum` is the XXH3-64 of `data`."""

    copy: Counter
    number: Counter
    checksum: Counter
    data: bytes


class CopyEnd(Struct, array_like=True, tag=KIND_COPY_END):
    """The copy is complete, or given up if `digest` is empty."""

    copy: Counter
    chunks: Counter
    pairs: Counter
    bytes: Counter
    digest: Text
    lsn: Counter
    epoch_at_lsn: Counter
    configuration: Configuration | None
    configuration_lsn: Counter


class CopyAnswer(Struct, array_like=True, tag=KIND_COPY_ANSWER):
    """Of the receiver: `chunks` chunks are taken; ``done``: and it is installed; `error`: it is given up."""

    copy: Counter
    chunks: Counter
    done: bool = False
    error: Annotated[str, Meta(max_length=4096)] = ""


class PeerQuestion(Struct, array_like=True, tag=KIND_PEER_QUESTION):
    """What is seldom and wants an answer: `verb` and its arguments, as an operator's question to a host."""

    number: Counter
    verb: Text
    arguments: dict[str, Any]


class PeerAnswer(Struct, array_like=True, tag=KIND_PEER_ANSWER):
    """The answer to a question: plain values, or (error class, message, details), as MessagePack."""

    number: Counter
    is_error: bool
    payload: bytes


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode

decode_peer_hello = msgspec.msgpack.Decoder(PeerHello).decode
decode_peer_answer = msgspec.msgpack.Decoder(PeerWelcome | PeerRefused).decode
#: What peers accept after the handshake: kind -> decoder.
PEER_DECODERS = {
    KIND_PEER_FRAME: msgspec.msgpack.Decoder(PeerFrame).decode,
    KIND_COPY_BEGIN: msgspec.msgpack.Decoder(CopyBegin).decode,
    KIND_COPY_CHUNK: msgspec.msgpack.Decoder(CopyChunkFrame).decode,
    KIND_COPY_END: msgspec.msgpack.Decoder(CopyEnd).decode,
    KIND_COPY_ANSWER: msgspec.msgpack.Decoder(CopyAnswer).decode,
    KIND_PEER_QUESTION: msgspec.msgpack.Decoder(PeerQuestion).decode,
    KIND_PEER_ANSWER: msgspec.msgpack.Decoder(PeerAnswer).decode,
}
