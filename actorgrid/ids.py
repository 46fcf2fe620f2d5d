"""The identities of the grid: what each number and string means, and the one place that hashes an actor to a partition.

An actor's *address* is ``type + "\\0" + id``. It is the key of the hash, of the wire and of storage, so
that no layer builds it twice. Partition ids start at 1; 0 is kept for the system partition.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

from xxhash import xxh3_64_intdigest

from actorgrid.errors import InvalidArgumentError

HostName = NewType("HostName", str)  #: letters, digits, ``-``; unique in the grid, stays over restarts
PartitionId = NewType("PartitionId", int)  #: 1 .. partition count; 0 is the system partition
Epoch = NewType("Epoch", int)  #: >= 1 once a replica has started
Lsn = NewType("Lsn", int)  #: position in one partition's log; the first entry has 1
Incarnation = NewType("Incarnation", int)  #: counts the lives of a replica or the starts of a host
ClientId = NewType("ClientId", bytes)  #: 16 random bytes
Address = NewType("Address", str)  #: ``type\0id``

CLIENT_ID_BYTES = 16
ACTOR_ID_BYTES_MAX = 1024  #: so that a storage key stays small beside its value


class RequestId(NamedTuple):
    """One logical call, the same in every retry.

    ``path`` is empty for a call of a client. A call made inside a turn has the client and number of the call at the root
    of the chain, and as path the counters of the calls that led to it: the third call made by the turn of client call 7 is
    ``(client, 7, (2,))``.
    """

    client: ClientId
    number: int
    path: tuple[int, ...] = ()


def make_address(actor_type: str, actor_id: str) -> Address:
    """The address of an actor.

    :raises InvalidArgumentError: the id is no string, empty, longer than 1,024 bytes of UTF-8, or holds a NUL or a lone surrogate
    """
    if type(actor_id) is not str:
        raise InvalidArgumentError(f"actor id of {actor_type}: expected a str, got {type(actor_id).__name__}: {actor_id!r:.80}")
    try:
        size = len(actor_id) if actor_id.isascii() else len(actor_id.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"actor id of {actor_type}: {actor_id!r:.80} is not valid Unicode (lone surrogate)") from None
    if not 1 <= size <= ACTOR_ID_BYTES_MAX:
        raise InvalidArgumentError(f"actor id of {actor_type}: expected 1..{ACTOR_ID_BYTES_MAX} bytes of UTF-8, got {size}")
    if "\0" in actor_id:
        raise InvalidArgumentError(f"actor id of {actor_type}: {actor_id!r:.80} holds a NUL character, which is not allowed")
    return Address(f"{actor_type}\0{actor_id}")


def show_address(address: str) -> str:
    """``Type/id``, for people."""
    return address.replace("\0", "/", 1)


def hash64(address: str) -> int:
    """Position of an actor in the hash space, 0 .. 2**64 - 1 (XXH3-64 of the address in UTF-8)."""
    return xxh3_64_intdigest(address.encode())


def partition_of(address: str, partition_count: int) -> PartitionId:
    """The partition whose contiguous range of the hash space holds `address`; ranges are equal in size to within one.

    >>> {partition_of(f"Account\\0{i}", 64) for i in range(2000)} == set(range(1, 65))
    True
    """
    return PartitionId(1 + (hash64(address) * partition_count >> 64))


def partitions_of(addresses: list[str], partition_count: int) -> list[int]:
    """`partition_of` each, for less where they are many.

    >>> partitions_of(["Account\\0alice"], 64) == [partition_of("Account\\0alice", 64)]
    True
    """
    return [1 + (xxh3_64_intdigest(address.encode()) * partition_count >> 64) for address in addresses]
