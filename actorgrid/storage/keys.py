"""Storage keys. Every key of a replica begins with partition and replica incarnation, so that dropping it is a range delete.

==========  ==============================================  ===========================================
family      key after the 8-byte prefix                     value
==========  ==============================================  ===========================================
default     ``m`` + name                                    meta: epoch, applied_lsn, ...
default     ``s`` + address + ``\\0`` + suffix               actor state, see `actorgrid.actor.fields`
default     ``c`` + client id                               image of a client's session
default     ``k`` + address + ``\\0`` + idempotency key      record of an idempotency key
default     ``x`` + expiry in ms (8 bytes) + the ``k`` key  when that record may go
log         lsn of the record's last entry (8 bytes)        log record
==========  ==============================================  ===========================================
"""

from __future__ import annotations

from typing import Final

PREFIX_BYTES: Final = 8
META, STATE, SESSION, IDEMPOTENCY, EXPIRY = b"m", b"s", b"c", b"k", b"x"
META_EPOCH: Final = META + b"epoch"
META_APPLIED: Final = META + b"applied"
META_SESSIONS: Final = META + b"sessions"

#: Belongs to no partition: whose data this is.
IDENTITY_KEY: Final = b"\xff" * PREFIX_BYTES + b"identity"
#: How often this store was opened for duty: the host's incarnation.
INCARNATION_KEY: Final = b"\xff" * PREFIX_BYTES + b"incarnation"


def replica_prefix(partition: int, incarnation: int) -> bytes:
    """What all keys of one replica begin with."""
    return partition.to_bytes(4, "big") + incarnation.to_bytes(4, "big")


def after(prefix: bytes) -> bytes:
    """The first key that no longer begins with `prefix`."""
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big")


def state_key(address: str, suffix: bytes = b"") -> bytes:
    """Where a part of an actor's state lies, after the replica's prefix."""
    return STATE + address.encode() + b"\0" + suffix


def idempotency_key(address: str, key: str) -> bytes:
    """Where the record of an idempotency key lies, after the replica's prefix. An address holds exactly one NUL, so this is unambiguous."""
    return IDEMPOTENCY + address.encode() + b"\0" + key.encode()


def expiry_key(expiry_ms: int, record_key: bytes) -> bytes:
    """Where it is noted that the idempotency record under `record_key` may go after `expiry_ms`."""
    return EXPIRY + expiry_ms.to_bytes(8, "big") + record_key


def lsn_key(lsn: int) -> bytes:
    """Eight bytes, in the order of the log."""
    return lsn.to_bytes(8, "big")
