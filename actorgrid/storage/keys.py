"""Storage keys. Every key of a replica begins with partition and generation, so that dropping it is a range delete.

A *generation* is one body of data: each copy that is installed has a new one, also if it is the same replica (the same incarnation)
that goes on with it.

==========  ==============================================  ===========================================
family      key after the 8-byte prefix                     value
==========  ==============================================  ===========================================
default     ``m`` + name                                    meta, see below
default     ``s`` + address + ``\\0`` + suffix               actor state, see `actorgrid.actor.fields`
default     ``c`` + client id                               image of a client's session
default     ``k`` + address + ``\\0`` + idempotency key      record of an idempotency key
default     ``x`` + expiry in ms (8 bytes) + the ``k`` key  when that record may go
log         lsn of the record's last entry (8 bytes)        log record
==========  ==============================================  ===========================================

What belongs to the host and to no replica is under a prefix that no replica has, `HOST`.
"""

from __future__ import annotations

from typing import Final

PREFIX_BYTES: Final = 8
META, STATE, SESSION, IDEMPOTENCY, EXPIRY = b"m", b"s", b"c", b"k", b"x"
#: (epoch, voted for) as MessagePack: a promise of this replica, never copied.
META_EPOCH: Final = META + b"epoch"
#: (lsn, epoch) as MessagePack, of the position before the first one that is still in the log. Never copied.
META_LOG_START: Final = META + b"log_start"
#: applied_lsn (8 bytes) and the time in ms of the record it is the end of (8 bytes).
META_APPLIED: Final = META + b"applied"
#: (lsn of the checkpoint, evicted_lsn) as MessagePack.
META_SESSIONS: Final = META + b"sessions"
#: (lsn of its entry, configuration) as MessagePack: the one in force at applied_lsn.
META_CONFIGURATION: Final = META + b"configuration"
#: About how large state and idempotency records are, see `actorgrid.storage.size`. Never copied: the target counts what it gets.
META_BYTES: Final = META + b"bytes"

HOST: Final = b"\xff" * PREFIX_BYTES
#: Whose data this is.
IDENTITY_KEY: Final = HOST + b"identity"
#: The store's own name, drawn when it was made: another one of the same host, grid and size is still another one.
STORE_ID_KEY: Final = HOST + b"store_id"
#: How often this store was opened for duty: the host's incarnation.
INCARNATION_KEY: Final = HOST + b"incarnation"
#: Counts the batches with promises. In both families, so that it is no higher than what either of them has (see `Store.position`).
POSITION_KEY: Final = HOST + b"position"
#: Number of the last batch. In both families, so that each family's tables say from where on they lack what the write-ahead log has.
BATCH_KEY: Final = HOST + b"batch"
#: What this host knows of a grid that is being bootstrapped.
BOOTSTRAP_KEY: Final = HOST + b"bootstrap"
#: The hosts of the grid, as this one heard of them last.
ROSTER_KEY: Final = HOST + b"roster"
#: + host name: how far that host's store was when it was last heard of.
PEER_PREFIX: Final = HOST + b"peer/"
#: + partition (4 bytes): the replica of that partition.
POINTER_PREFIX: Final = HOST + b"replica/"
#: + partition, generation (4 bytes each): a copy that is being received, and does not count yet.
COPYING_PREFIX: Final = HOST + b"copying/"


def replica_prefix(partition: int, generation: int) -> bytes:
    """What all keys of one body of data of one partition begin with."""
    return partition.to_bytes(4, "big") + generation.to_bytes(4, "big")


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


def pointer_key(partition: int) -> bytes:
    """Where it is noted which replica of `partition` is here."""
    return POINTER_PREFIX + partition.to_bytes(4, "big")


def copying_key(partition: int, generation: int) -> bytes:
    """Where it is noted that `generation` is a copy that is not complete."""
    return COPYING_PREFIX + replica_prefix(partition, generation)
