"""About how large the state of one replica is, kept while it is applied, almost without reading it.

A put says how large the new value is, and not what it takes the place of: to know that, the old one must be read, which costs more than
writing the new one, and a disk access where it is cold. So a sample of the keys stands for all small values, each for `ONE_OF` of them: of
N of them the standard deviation is that of ``sqrt(ONE_OF / N)`` of their size. Large values, of which one can matter, are kept by name, as
far as `LARGE_MAX` goes. A key is in the sample or not for ever, so that what was counted when it came is what is taken off when it goes.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from actorgrid.storage import keys
from actorgrid.storage.store import Batch, Store

#: A power of two.
ONE_OF: Final = 16
LARGE_BYTES: Final = 64 * 1024
LARGE_MAX: Final = 256
#: What is stored may be off by so much, so that it need not be written each time.
STORED_WITHIN_BYTES: Final = 64 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, dict[bytes, int]]).decode


class StateSize:
    """The size of what is under `prefix`: state and idempotency records, keys and values, before compression."""

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store = store
        self._prefix = prefix
        self._is_known = False  # not of a replica of a time when it was not kept
        self._small = self._stored = 0
        self._large: dict[bytes, int] = {}  # by key without the prefix
        self._large_bytes = 0

    @property
    def total(self) -> int | None:
        """The estimate; None: it is not known."""
        return max(0, self._small) + self._large_bytes if self._is_known else None

    def load(self, *, is_empty: bool) -> None:
        """Begin with what is stored.

        :param is_empty: nothing was applied yet
        """
        stored = self._store.get(self._prefix + keys.META_BYTES)
        self._is_known = stored is not None or is_empty
        self._small, self._large = _decode(stored) if stored is not None else (0, {})
        self._stored = self._small
        self._large_bytes = sum(self._large.values())

    def apply(self, batch: Batch, changes: dict[bytes, bytes | None]) -> None:
        """Count `changes`, which `batch` makes; the store does not have them yet. About 0.3 us each."""
        if not self._is_known:
            return
        get, cut, large = self._store.get, len(self._prefix), self._large
        is_other = False
        for key, value in changes.items():
            suffix = key[cut:]
            was_large = large.pop(suffix, 0)
            new_bytes = len(key) + len(value) if value is not None else 0
            if value is not None and len(value) >= LARGE_BYTES and len(large) < LARGE_MAX:
                large[suffix] = new_bytes
                self._large_bytes += new_bytes
                is_other, new_bytes = True, 0
            if was_large:
                self._large_bytes -= was_large
                is_other = True
            if not zlib.crc32(suffix) % ONE_OF:
                old = get(key) if not was_large else None
                self._small += ONE_OF * (new_bytes - (len(key) + len(old) if old is not None else 0))
        if is_other or abs(self._small - self._stored) > STORED_WITHIN_BYTES:
            self.put(batch)

    def put(self, batch: Batch) -> None:
        """Let `batch` store it as it is."""
        if self._is_known:
            self._stored = self._small
            batch.put(self._prefix + keys.META_BYTES, _encode((self._small, self._large)))


class SizeCount:
    """Counts what comes under a prefix that nothing was under, exactly; for copies."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._small = 0
        self._large: dict[bytes, int] = {}

    def add(self, suffix: bytes, value: bytes) -> None:
        """One key that was not there."""
        size = len(self._prefix) + len(suffix) + len(value)
        if len(value) >= LARGE_BYTES and len(self._large) < LARGE_MAX:
            self._large[suffix] = size
        else:
            self._small += size

    def put(self, batch: Batch) -> None:
        """Let `batch` store what was counted."""
        batch.put(self._prefix + keys.META_BYTES, _encode((self._small, self._large)))
