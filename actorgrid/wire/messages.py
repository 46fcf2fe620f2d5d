"""What travels: every message as a typed, length-bounded MessagePack array. `docs/wire.md` is the prose; this is the truth.

A frame's payload is an array whose first element is the message's kind, a small integer, so that the payload's second byte
tells the kind and one typed decoder is chosen before anything is decoded. Before the handshake only `Hello` is accepted (I18).

Decoders here validate; they build no object outside this module, and never more than the frame's length in memory.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

PROTOCOL_VERSION = 2
PROTOCOL_VERSION_OLDEST = 1
MAGIC = "actorgrid"

KIND_HELLO, KIND_WELCOME, KIND_REFUSED = 1, 2, 3
KIND_CALLS, KIND_REPLIES = 4, 5
KIND_GET_MAP, KIND_MAP = 6, 7
KIND_ADMIN, KIND_ADMIN_REPLY = 8, 9
KIND_PING, KIND_PONG, KIND_GOODBYE = 10, 11, 12
KIND_BATCHES, KIND_BATCH_REPLIES = 13, 14

#: Both sides speak of batches from this version on.
BATCHES_SINCE = 2
#: Reads in one batch.
BATCH_ITEMS_MAX = 4096

ROLE_CLIENT, ROLE_HOST, ROLE_OPERATOR = "client", "host", "operator"

STATUS_OK, STATUS_ERROR = 0, 1

Name = Annotated[str, Meta(max_length=256)]
AddressText = Annotated[str, Meta(min_length=1, max_length=1600)]
Counter = Annotated[int, Meta(ge=0)]
ClientIdBytes = Annotated[bytes, Meta(max_length=16)]


class Hello(Struct, array_like=True, tag=KIND_HELLO, gc=False, forbid_unknown_fields=False):
    """First frame of a connection, from whoever opened it."""

    magic: Name
    version_oldest: Counter
    version_newest: Counter
    cluster_id: Name  #: empty: "whichever grid this is"
    role: Name
    client_id: ClientIdBytes
    credential: Annotated[bytes, Meta(max_length=2048)] = b""


class HostInfo(Struct, array_like=True, gc=False, frozen=True):
    """Where a host is reached."""

    name: Name
    address: Name
    port: Annotated[int, Meta(ge=0, le=65535)]


class MapMessage(Struct, array_like=True, tag=KIND_MAP):
    """The partition map as one host knows it.

    For partition i (1-based) ``primaries[i - 1]`` is the index of its primary in ``hosts``, or -1 where this host knows of none. Of two
    maps neither need be the newer one as a whole: partitions are compared one by one, by epoch. ``version`` only says how new the list
    of hosts is and, in maps without epochs, the whole map.
    """

    version: Counter
    cluster_id: Name
    hosts: Annotated[list[HostInfo], Meta(max_length=65536)]
    primaries: Annotated[list[int], Meta(max_length=1_048_576)]
    #: Epoch in which partition i got its primary; 0 or left out: not known.
    epochs: Annotated[list[Counter], Meta(max_length=1_048_576)] = []
    #: Indexes into ``hosts`` of the replicas of partition i that are not its primary.
    secondaries: Annotated[list[Annotated[list[int], Meta(max_length=256)]], Meta(max_length=1_048_576)] = []


class Welcome(Struct, array_like=True, tag=KIND_WELCOME):
    """The host's answer to `Hello`: from here on both sides speak `version`."""

    version: Counter
    cluster_id: Name
    host: Name
    incarnation: Counter
    frame_bytes_max: Counter
    map: MapMessage
    #: Committed log position of each partition whose primary is here: the ``since_lsn`` of calls first sent from now on.
    positions: dict[int, int] = {}


class Refused(Struct, array_like=True, tag=KIND_REFUSED):
    """An error that ends the connection."""

    error: Name
    message: Annotated[str, Meta(max_length=65536)]
    details: dict[str, Any] = {}


class CallExtra(Struct, omit_defaults=True, gc=False):
    """What only some calls carry, as a map."""

    number: Counter | None = None  #: request number where it is not the correlation number (calls between hosts)
    path: Annotated[tuple[Counter, ...], Meta(max_length=64)] = ()
    chain: Annotated[tuple[AddressText, ...], Meta(max_length=64)] = ()  #: actors that wait for this call, outermost first
    key: Annotated[str, Meta(max_length=512)] | None = None  #: idempotency key
    again: bool = False  #: this request, or the one at the root of its chain, may have been executed before
    any_replica: bool = False  #: a read that a secondary may answer too, from what it has applied


class Call(Struct, array_like=True, gc=False):
    """One call. ``args`` is an array of the positional arguments, decoded later by the method's own typed decoder."""

    correlation: Counter
    address: AddressText
    method: Name
    timeout_ms: Counter
    args: Raw
    extra: CallExtra | None = None


class CallGroup(Struct, array_like=True, gc=False):
    """Calls to one partition under one client id.

    ``lowest`` is the lowest number still unanswered among the client's calls to this partition, ``lowest_anywhere`` among
    all its calls; ``since_lsn`` is a position of the partition's log that the client knew before it first sent any of them.
    """

    partition: Counter
    client_id: ClientIdBytes  #: empty: the client id of the handshake
    lowest: Counter
    lowest_anywhere: Counter
    since_lsn: Counter
    calls: list[Call]


class Calls(Struct, array_like=True, tag=KIND_CALLS, gc=False):
    """All calls of one tick to one host."""

    groups: list[CallGroup]


class Reply(Struct, array_like=True, gc=False):
    """``payload`` is the result if ``status`` is 0, else an `ErrorPayload`."""

    correlation: Counter
    status: int
    payload: Raw
    lsn: Counter = 0  #: position of the log that the result reflects; only for calls with ``any_replica``


class ErrorPayload(Struct, array_like=True):
    """An error: class name, message, attributes; see `actorgrid.errors`."""

    error: Name
    message: str
    details: dict[str, Any] = {}


class Replies(Struct, array_like=True, tag=KIND_REPLIES, gc=False):
    """All answers of one tick to one peer."""

    replies: list[Reply]


class Batch(Struct, array_like=True, gc=False):
    """Reads of one method, of many actors of one partition, that ask the primary and have neither key nor chain.

    ``number`` is the correlation of the batch as a whole. Those of the items follow: the read of ``addresses[i]`` has the request number
    ``number + 1 + i``.
    """

    number: Counter
    partition: Counter
    lowest_anywhere: Counter  #: this and ``since_lsn`` as in `CallGroup`
    since_lsn: Counter
    method: Name
    timeout_ms: Counter
    addresses: Annotated[list[AddressText], Meta(min_length=1, max_length=BATCH_ITEMS_MAX)]
    args: list[Raw]  #: one for each item, or a single one that is the same for all; each as in `Call`


class Batches(Struct, array_like=True, tag=KIND_BATCHES, gc=False):
    """All batches of one tick to one host."""

    batches: list[Batch]


class BatchReply(Struct, array_like=True, gc=False):
    """Answers to items of a batch: to a run of them that begins at ``offset``, or one error for all that have no answer yet.

    ``payload`` is an array of results if ``status`` is 0, except that those at the places ``errors`` are an `ErrorPayload`; otherwise it is
    an `ErrorPayload` itself.
    """

    number: Counter  #: that of the batch
    status: int
    offset: Counter
    payload: Raw
    errors: Annotated[list[Counter], Meta(max_length=BATCH_ITEMS_MAX)] = []


class BatchReplies(Struct, array_like=True, tag=KIND_BATCH_REPLIES, gc=False):
    """All answers of one tick to batches of one peer."""

    replies: list[BatchReply]


class GetMap(Struct, array_like=True, tag=KIND_GET_MAP):
    """Asks for the map; answered by `MapMessage`."""

    known_version: Counter


class Admin(Struct, array_like=True, tag=KIND_ADMIN):
    """A question of an operator's tool, answered by `AdminReply` with the same correlation."""

    correlation: Counter
    verb: Name
    arguments: dict[str, Any] = {}


class AdminReply(Struct, array_like=True, tag=KIND_ADMIN_REPLY):
    """Answer to `Admin`: status and payload as in `Reply`."""

    correlation: Counter
    status: int
    payload: Raw


class Ping(Struct, array_like=True, tag=KIND_PING):
    """Are you there? Answered by `Pong` with the same token."""

    token: Counter


class Pong(Struct, array_like=True, tag=KIND_PONG):
    """Yes."""

    token: Counter


class Goodbye(Struct, array_like=True, tag=KIND_GOODBYE):
    """The host is stopping: ask the map again and go elsewhere."""

    reason: Annotated[str, Meta(max_length=4096)]


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode

decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_handshake_answer = msgspec.msgpack.Decoder(Welcome | Refused).decode
decode_error = msgspec.msgpack.Decoder(ErrorPayload).decode

#: What a host accepts after the handshake, and what a client does: kind -> decoder.
HOST_DECODERS = {
    KIND_CALLS: msgspec.msgpack.Decoder(Calls).decode,
    KIND_GET_MAP: msgspec.msgpack.Decoder(GetMap).decode,
    KIND_ADMIN: msgspec.msgpack.Decoder(Admin).decode,
    KIND_PING: msgspec.msgpack.Decoder(Ping).decode,
    KIND_PONG: msgspec.msgpack.Decoder(Pong).decode,
    KIND_BATCHES: msgspec.msgpack.Decoder(Batches).decode,
}
CLIENT_DECODERS = {
    KIND_REPLIES: msgspec.msgpack.Decoder(Replies).decode,
    KIND_MAP: msgspec.msgpack.Decoder(MapMessage).decode,
    KIND_ADMIN_REPLY: msgspec.msgpack.Decoder(AdminReply).decode,
    KIND_PING: msgspec.msgpack.Decoder(Ping).decode,
    KIND_PONG: msgspec.msgpack.Decoder(Pong).decode,
    KIND_GOODBYE: msgspec.msgpack.Decoder(Goodbye).decode,
    KIND_REFUSED: msgspec.msgpack.Decoder(Refused).decode,
    KIND_BATCH_REPLIES: msgspec.msgpack.Decoder(BatchReplies).decode,
}
decode_each = msgspec.msgpack.Decoder(list[Raw]).decode
