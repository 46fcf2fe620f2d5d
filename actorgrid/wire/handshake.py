"""The rules of the handshake, without sockets: who may talk to whom, in which version.

The first frame of a connection is a `Hello`; nothing else is decoded before it was accepted (I18).
"""

from __future__ import annotations

import msgspec

from actorgrid.errors import AccessDeniedError, ProtocolError
from actorgrid.wire import messages
from actorgrid.wire.messages import Hello

ROLES = (messages.ROLE_CLIENT, messages.ROLE_HOST, messages.ROLE_OPERATOR)


def read_hello(payload: bytes) -> Hello:
    """Decode the first frame of a stranger.

    :raises ProtocolError: it is no `Hello` of this protocol
    """
    try:
        hello = messages.decode_hello(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the first frame is no handshake: {error}") from None
    if hello.magic != messages.MAGIC:
        raise ProtocolError(f"the first frame is no handshake of this protocol (it begins with {hello.magic!r:.40})")
    return hello


def accept_hello(hello: Hello, cluster_id: str) -> int:
    """The protocol version both sides speak: the newest that both know.

    :raises ProtocolError: no common version, an unknown role, or a client id of the wrong length
    :raises AccessDeniedError: the peer means another grid
    """
    version = min(hello.version_newest, messages.PROTOCOL_VERSION)
    if version < max(hello.version_oldest, messages.PROTOCOL_VERSION_OLDEST):
        raise ProtocolError(
            f"no common protocol version: this host speaks {messages.PROTOCOL_VERSION_OLDEST}..{messages.PROTOCOL_VERSION}, "
            f"the peer {hello.version_oldest}..{hello.version_newest}"
        )
    if hello.role not in ROLES:
        raise ProtocolError(f"role {hello.role!r:.40} is none of {', '.join(ROLES)}")
    if len(hello.client_id) != 16:
        raise ProtocolError(f"client id of {len(hello.client_id)} bytes, expected 16")
    if hello.cluster_id and hello.cluster_id != cluster_id:
        raise AccessDeniedError(f"this is grid {cluster_id}, the peer asked for grid {hello.cluster_id}")
    return version
