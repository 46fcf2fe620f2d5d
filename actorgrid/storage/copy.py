"""A copy of a replica's applied state, in chunks, from the host that has it to the one that is to have it (I13).

The source reads a `View`: what is written while the copy goes on is not in it. The target writes what comes under a generation of its
own, which is noted as half-built until `CopyTarget.install` makes it the replica, in one batch, after everything was verified. An older
replica in the same place, a voter that fell too far behind, goes on with its own generation until then. A restart drops what is
half-built.

Chunks come from another host and are believed only as far as they are checked: numbers, checksums, the digest over all of them, the
order of the keys and their kinds. Keys are relative to the target's own prefix, so nothing can be written elsewhere; epoch, vote and
the bounds of the log are not copied, they are the target's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest, xxh3_128

from actorgrid.errors import CorruptLogError, InvariantViolation
from actorgrid.replication.configuration import Configuration
from actorgrid.replication.entry import read_head
from actorgrid.storage import keys
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.size import SizeCount
from actorgrid.storage.store import ACTIVE, RETIRED, Batch, ReplicaPointer, Store

#: A chunk is about this large; a larger value is alone in its chunk.
COPY_CHUNK_BYTES: Final = 256 * 1024
#: Small pairs cost time and not bytes: about 2 ms of the loop for each chunk, at either end.
COPY_CHUNK_PAIRS_MAX: Final = 2048

COPIED_META: Final = (keys.META_APPLIED, keys.META_CONFIGURATION, keys.META_SESSIONS)
_COPIED_KINDS: Final = (keys.STATE[0], keys.SESSION[0], keys.IDEMPOTENCY[0])
_COUNTED: Final = (keys.STATE, keys.IDEMPOTENCY, keys.EXPIRY)
_EXPIRY_KEY_BYTES: Final = len(keys.EXPIRY) + 8  # then the key it speaks of

_encode = msgspec.msgpack.Encoder().encode
_decode_pairs = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]]).decode
_decode_epoch = msgspec.msgpack.Decoder(tuple[int, str]).decode


class CopyChunk(Struct, array_like=True, gc=False, frozen=True):
    """Chunk `number`, from 1 on. `data`: pairs of (key behind the prefix, value) as MessagePack; `checksum`: its XXH3-64."""

    number: int
    data: bytes
    checksum: int


class CopySummary(Struct, array_like=True, frozen=True):
    """What the chunks were, all of them, and of which position.

    :ivar bytes: of the chunks' data
    :ivar digest: XXH3-128 over the chunks' data, one after the other, in hex
    :ivar configuration: the one in force at `lsn`; its entry is at `configuration_lsn`
    """

    chunks: int
    pairs: int
    bytes: int
    digest: str
    lsn: int
    epoch_at_lsn: int
    configuration: Configuration
    configuration_lsn: int


class _Totals:
    """What both ends count."""

    def __init__(self) -> None:
        self.chunks = 0
        self.pairs = 0
        self.bytes = 0
        self._hashed = xxh3_128()

    def count(self, data: bytes, pairs: int) -> None:
        self.chunks += 1
        self.pairs += pairs
        self.bytes += len(data)
        self._hashed.update(data)

    def as_tuple(self) -> tuple[int, int, int, str]:
        return self.chunks, self.pairs, self.bytes, self._hashed.hexdigest()


class CopySource:
    """Everything `replica` has applied, as it is now. Everything committed must be applied, and a checkpoint of it written
    (`ReplicaStore.checkpoint_now`, `Store.write`), in this very tick. To be closed.

    :ivar bytes_total_estimate: about how much there is; a guess
    """

    def __init__(self, replica: ReplicaStore, chunk_bytes: int = COPY_CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._prefix = replica.prefix
        self._totals = _Totals()
        self._summary: CopySummary | None = None
        self._lsn = replica.applied_lsn
        self._epoch_at_lsn = replica.epoch_at(replica.applied_lsn)
        self._configuration, self._configuration_lsn = replica.configuration, replica.configuration_lsn
        size = replica.size.total
        self.bytes_total_estimate = (
            size if size is not None else replica.store.state_bytes_estimate() // max(1, len(replica.store.replica_pointers()))
        )
        self._view = replica.store.view()
        try:
            for name in (keys.META_APPLIED, keys.META_SESSIONS):
                assert _lsn_in(name, self._view.get(self._prefix + name)) == self._lsn, f"no checkpoint at {self._lsn} is written"
        except BaseException:
            self.close()
            raise
        self._pairs = self._copied()
        self._held = next(self._pairs, None)

    def _copied(self) -> Iterator[tuple[bytes, bytes]]:
        prefix = self._prefix
        cut = len(prefix)
        for key, value in self._view.scan(prefix, keys.after(prefix)):
            suffix = key[cut:]
            if suffix[:1] != keys.META or suffix in COPIED_META:
                yield suffix, value

    def next_chunk(self) -> CopyChunk | None:
        """The next chunk; None after the last. Reads in the caller's thread, about 1 us for each pair.

        :raises StorageError: the disk cannot be read, or this was closed
        """
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        while self._held is not None:
            size += len(self._held[0]) + len(self._held[1])
            if pairs and (size > self._chunk_bytes or len(pairs) == COPY_CHUNK_PAIRS_MAX):
                break
            pairs.append(self._held)
            self._held = next(self._pairs, None)
        totals = self._totals
        if pairs:
            data = _encode(pairs)
            totals.count(data, len(pairs))
            return CopyChunk(totals.chunks, data, xxh3_64_intdigest(data))
        if self._summary is None:
            self._summary = CopySummary(
                *totals.as_tuple(), self._lsn, self._epoch_at_lsn, self._configuration, self._configuration_lsn
            )  # fmt: skip
            self.close()
        return None

    @property
    def summary(self) -> CopySummary:
        """What the chunks were, after the last one."""
        assert self._summary is not None, "not all chunks were taken"
        return self._summary

    def close(self) -> None:
        """Let go of what the copy was read from; once more does no harm."""
        self._view.close()


class CopyTarget:
    """A copy for the replica `replica_incarnation` of `partition` on this host: give it every chunk, then `install` or `abandon` it.

    :ivar generation: where it is written
    :raises InvariantViolation: that incarnation has lost its right to vote here, or an older one is to take the place of a newer one (I6)
    """

    def __init__(self, store: Store, partition: int, replica_incarnation: int) -> None:
        self.partition = partition
        self.incarnation = replica_incarnation
        self._store = store
        self._check_pointer()
        self.generation = store.new_generation(partition)
        self._prefix = keys.replica_prefix(partition, self.generation)
        self._totals = _Totals()
        self._last_key = b""
        self._meta: dict[bytes, bytes] = {}
        self._size = SizeCount(self._prefix)
        self._is_over = False

    def _check_pointer(self) -> ReplicaPointer | None:
        pointer = self._store.replica_pointer(self.partition)
        if pointer is not None and (
            pointer.incarnation > self.incarnation or (pointer.incarnation == self.incarnation and pointer.state == RETIRED)
        ):
            raise InvariantViolation("I6", f"a copy is for incarnation {self.incarnation}, and here is {pointer}")
        return pointer

    @property
    def chunks(self) -> int:
        """How many chunks were taken; the next one has the number after this."""
        return self._totals.chunks

    @property
    def bytes(self) -> int:
        """Size of the data taken."""
        return self._totals.bytes

    def add(self, chunk: CopyChunk) -> None:
        """Verify and write the next chunk, unsynced. A chunk that is refused changes nothing.

        :raises CorruptLogError: it is not the next one, not what was sent, or not what a copy may hold
        :raises StorageError: the outcome is unknown
        """
        assert not self._is_over, "installed or abandoned"
        if chunk.number != self.chunks + 1:
            raise self._corrupt(f"chunk {chunk.number} came where {self.chunks + 1} was expected")
        if xxh3_64_intdigest(chunk.data) != chunk.checksum:
            raise self._corrupt(f"checksum of chunk {chunk.number} of {len(chunk.data)} bytes is wrong")
        try:
            pairs = _decode_pairs(chunk.data)
        except msgspec.MsgspecError as error:
            raise self._corrupt(f"chunk {chunk.number} has the right checksum and the wrong form: {error}") from None
        last_key = self._last_key
        for key, _ in pairs:
            if key <= last_key or not _may_be_copied(key):
                raise self._corrupt(f"chunk {chunk.number} has the key {key!r:.80} after {last_key!r:.80}")
            last_key = key
        batch = self._store.batch()
        if self.chunks == 0:
            self._store.put_half_built(batch, self.partition, self.generation)
        prefix = self._prefix
        for key, value in pairs:
            batch.put(prefix + key, value)
            if key[:1] in _COUNTED:
                self._size.add(key, value)
            elif key[:1] == keys.META:
                self._meta[key] = value
        self._store.write(batch)
        self._last_key = last_key
        self._totals.count(chunk.data, len(pairs))

    def install(self, batch: Batch, summary: CopySummary, epoch: int, voted_for: str) -> ReplicaPointer:
        """Verify the whole, and let `batch` make it the replica, in place of what was there. It counts when `batch` is durable; the
        old `ReplicaStore` must not be used any more, not even for this batch. A copy that is refused can only be abandoned.

        :param epoch: what the replica has promised, as `ReplicaStore.save_epoch` would be told
        :raises CorruptLogError: something is missing or other than it was sent
        :raises InvariantViolation: it would take back what the old replica has promised or acknowledged (I1, I2, I3)
        """
        assert not self._is_over, "installed or abandoned"
        counted = self._totals.as_tuple()
        said = (summary.chunks, summary.pairs, summary.bytes, summary.digest)
        if counted != said:
            raise self._corrupt(f"(chunks, pairs, bytes, digest) are {counted}, and {said} were sent")
        meta = {name: _lsn_in(name, self._meta.get(name)) for name in (keys.META_APPLIED, keys.META_SESSIONS)}
        if any(lsn != summary.lsn for lsn in meta.values()):
            raise self._corrupt(f"it is said to be of position {summary.lsn}, and holds {meta}")
        configuration = _encode((summary.configuration_lsn, summary.configuration))
        if self._meta.get(keys.META_CONFIGURATION) != configuration or summary.configuration_lsn > summary.lsn:
            raise self._corrupt(f"it does not hold the configuration of {summary.configuration_lsn}: {summary.configuration}")
        old = self._check_pointer()
        if epoch < summary.epoch_at_lsn:
            raise InvariantViolation("I1", f"a copy of epoch {summary.epoch_at_lsn} is installed in epoch {epoch}")
        if old is not None and old.state == ACTIVE and old.incarnation == self.incarnation:
            self._check_promises(old, summary, epoch)
        if old is not None:
            self._store.drop_generation(batch, self.partition, old.generation)
        pointer = ReplicaPointer(self.partition, self.incarnation, self.generation, ACTIVE)
        self._store.put_pointer(batch, pointer)
        self._store.forget_half_built(batch, self.partition, self.generation)
        batch.put(self._prefix + keys.META_EPOCH, _encode((epoch, voted_for)))
        self._size.put(batch)
        if summary.lsn:
            batch.put(self._prefix + keys.META_LOG_START, _encode((summary.lsn, summary.epoch_at_lsn)))
        self._is_over = True
        return pointer

    def _check_promises(self, old: ReplicaPointer, summary: CopySummary, epoch: int) -> None:
        """The same replica goes on with other data: it must not lose what it has said (as far as that is written)."""
        prefix = keys.replica_prefix(self.partition, old.generation)
        stored = self._store.get(prefix + keys.META_EPOCH)
        promised = _decode_epoch(stored)[0] if stored is not None else 0
        if epoch < promised:
            raise InvariantViolation("I1", f"a copy is installed in epoch {epoch}, and epoch {promised} was promised")
        applied_lsn = _lsn_in(keys.META_APPLIED, self._store.get(prefix + keys.META_APPLIED))
        if applied_lsn > summary.lsn:
            raise InvariantViolation("I3", f"a copy of position {summary.lsn} would replace what is applied up to {applied_lsn}")
        # Ongaro 2014, §5.1: a log that has the copy's last position in the copy's epoch has everything the copy has, and is kept.
        for _, data in self._store.scan_log(prefix + keys.lsn_key(summary.lsn), keys.after(prefix)):
            try:
                head = read_head(data)
            except CorruptLogError as error:
                raise self._corrupt(f"the log that it is to replace has a bad record at {summary.lsn} or behind: {error}") from None
            if summary.lsn and head.first_lsn <= summary.lsn and head.epoch == summary.epoch_at_lsn:
                raise InvariantViolation("I2", f"a copy of position {summary.lsn} would replace a log that has it and more: {head}")
            break

    def abandon(self, batch: Batch) -> None:
        """Let `batch` drop everything that was taken; once more does no harm."""
        if not self._is_over:
            self._is_over = True
            self._store.drop_generation(batch, self.partition, self.generation)
            self._store.forget_half_built(batch, self.partition, self.generation)

    def _corrupt(self, what: str) -> CorruptLogError:
        return CorruptLogError(f"copy of partition {self.partition}: {what}")


def _may_be_copied(key: bytes) -> bool:
    kind = key[0]
    if kind == keys.META[0]:
        return key in COPIED_META
    if kind == keys.EXPIRY[0]:
        return key[_EXPIRY_KEY_BYTES : _EXPIRY_KEY_BYTES + 1] == keys.IDEMPOTENCY
    return kind in _COPIED_KINDS


def _lsn_in(name: bytes, stored: bytes | None) -> int:
    """The position in a meta value; 0 if there is none, -1 if it has the wrong form."""
    if stored is None:
        return 0
    if name == keys.META_APPLIED:
        return int.from_bytes(stored[:8], "big") if len(stored) == 16 else -1
    try:
        return msgspec.msgpack.decode(stored, type=tuple[int, int])[0]
    except msgspec.MsgspecError:
        return -1
