"""A look at the write-ahead log of a host that is down, for tests that damage it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from actorgrid.storage import wal
from actorgrid.storage.database import WAL_DIRECTORY


def copied(running: Path, copy: Path) -> Path:
    """The files of a store or log in use, as a crash would leave them at this moment; but for one that is just being made."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(running, copy, ignore=shutil.ignore_patterns("*" + wal._UNFINISHED))
    return copy


def files(store: Path) -> list[Path]:
    """All its files, those that wait for their next use among them."""
    return sorted(path for path in (store / WAL_DIRECTORY).iterdir() if path.name.isdigit())


def newest(store: Path) -> Path:
    """The segment that was written to last."""
    return _newest(store).path


def _newest(store: Path) -> wal._Segment:
    found = []
    for path in files(store):
        with path.open("rb") as file:
            segment = wal._segment_of(file.read(wal._HEADER.size + wal._CHECKSUM_BYTES), path)
        if segment is not None:
            found.append(segment)
    return max(found)


def frames(store: Path) -> list[tuple[int, int]]:
    """Where each frame of the newest segment begins and ends, in bytes."""
    segment = _newest(store)
    data = segment.path.read_bytes()
    found, offset = [], wal.BLOCK_BYTES
    while (frame := wal._frame_at(data, offset, segment.salt)) is not None:
        found.append((offset, frame.end))
        offset = wal._round_up(frame.end, wal._FRAME_ALIGNMENT)
    return found


def end(store: Path) -> int:
    """Where the last frame of the newest segment ends."""
    return frames(store)[-1][1]


def tear(path: Path, size: int) -> None:
    """What a crash leaves of a segment of which it kept `size` bytes from being written: they are there, and zeros behind them."""
    length = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(size)
        file.truncate(max(length, size))


def flip(store: Path, rng: random.Random, *, but_the_last: int = 0) -> str:
    """One bit somewhere in the frames of the newest segment; `but_the_last` of them stay whole."""
    path, found = newest(store), frames(store)
    begin, stop = rng.choice(found[: len(found) - but_the_last])
    offset, bit = rng.randrange(begin, stop), rng.randrange(8)
    with path.open("rb+") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    return f"flipped bit {bit} of byte {offset} of {found[-1][1]} of {path.name}"


def delete(store: Path) -> str:
    """All of it is gone."""
    found = files(store)
    for path in found:
        path.unlink()
    return f"deleted the write-ahead log, {len(found)} files"


def cut(store: Path, rng: random.Random) -> str:
    """The newest segment ends within what was written to it."""
    path, size = newest(store), end(store)
    left = rng.randrange(size // 10, size * 9 // 10)
    with path.open("rb+") as file:
        file.truncate(left)
    return f"cut {path.name} to {left} bytes of {size}"
