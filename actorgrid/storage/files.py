"""What RocksDB does not do itself: a look at its files before it opens them, and the sync of a directory.

RocksDB's log reader (of the version in rocksdict 0.3.29) never returns from a record whose type says that it belongs to a reused file,
in a write-ahead log or a manifest whose files are never reused: one flipped bit, and the opening of the store hangs with the
interpreter lock held, so that nothing can even report it. Every other change of those files it finds by its own checksums.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from actorgrid.errors import CorruptLogError

_BLOCK_BYTES: Final = 32 * 1024
_HEADER_BYTES: Final = 7  # checksum (4), length (2, little endian), type (1)
#: Full, first, middle and last part of a record in a reused file.
_REUSED_TYPES: Final = (5, 6, 7, 8)


def refuse_what_hangs(store: Path) -> None:
    """Walk over the records of write-ahead logs and manifests, about 1 us for each.

    :raises CorruptLogError: a record has a type that was never written, and that would keep RocksDB from returning
    """
    for pattern in ("MANIFEST-*", "*.log"):
        for path in sorted(store.glob(pattern)):
            offset = _reused_record(path)
            if offset >= 0:
                raise CorruptLogError(f"cannot open {store}: the record at byte {offset} of {path.name} has a type that was never written")


def _reused_record(path: Path) -> int:
    """Where the first record of a reused file is, -1 if there is none."""
    offset = 0
    with path.open("rb") as file:
        while True:
            left = _BLOCK_BYTES - offset % _BLOCK_BYTES
            if left < _HEADER_BYTES:  # a block's end that no header fits in is padding
                offset += left
                left = _BLOCK_BYTES
            # Not a memory map: an error of the disk would be a signal then.
            header = os.pread(file.fileno(), _HEADER_BYTES, offset)
            if len(header) < _HEADER_BYTES:
                return -1
            size, kind = header[4] | header[5] << 8, header[6]
            if kind in _REUSED_TYPES:
                return offset
            # Zeros, as some file systems leave them at the end: RocksDB skips them by blocks.
            offset += left if size == kind == 0 else _HEADER_BYTES + size


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable.

    :raises OSError: the disk says no
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
