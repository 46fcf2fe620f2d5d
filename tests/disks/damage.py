"""What disks do to a store: bytes that flip, files that go, space that ends, calls that fail or take long.

Everything but the last is done to the data directory of a host that is down. Each function says what it did, for the log of faults.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from actorgrid.replication.entry import HEAD_BYTES
from actorgrid.storage.database import RocksDatabase
from tests.disks.fuse import unmount

_libc = ctypes.CDLL(None, use_errno=True)
BALLAST: Final = "ballast"


# -- bytes


def _flip(path: Path, low: int, high: int, rng: random.Random) -> str:
    offset = rng.randrange(low, high)
    bit = rng.randrange(8)
    with path.open("rb+") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
    return f"flipped bit {bit} of byte {offset} of {path.stat().st_size} of {path.name}"


def flip_in_tables(store: Path, rng: random.Random) -> str:
    """One bit in each: what is in some of them may have been dropped since, and is never read."""
    tables = sorted(store.glob("*.sst"))
    assert tables, f"no table under {store}"
    # The first half of a table is data blocks, which are read when somebody asks for what is in them.
    return "; ".join(_flip(table, 0, table.stat().st_size // 2, rng) for table in tables)


def flip_in_manifest(store: Path, rng: random.Random) -> str:
    path = max(store.glob("MANIFEST-*"))
    return _flip(path, 0, path.stat().st_size, rng)


def flip_in_log_record(store: Path, partition: int, rng: random.Random) -> str:
    """One bit of one record of the replicated log, behind RocksDB's back: its own checksum is right."""
    database = RocksDatabase(store, salvage=False)
    prefix, records = partition.to_bytes(4, "big"), {}
    cursor = database.log_cursor()
    cursor.seek(prefix)
    while cursor.valid() and cursor.key()[:4] == prefix:
        records[cursor.key()] = cursor.value()
        cursor.next()
    del cursor
    assert records, f"no log record of partition {partition}"
    key = rng.choice(list(records))
    value = bytearray(records[key])
    offset, bit = rng.randrange(HEAD_BYTES, len(value)), rng.randrange(8)
    value[offset] ^= 1 << bit
    batch = database.new_batch()
    batch.put(key, bytes(value), database.log_handle)
    database.write(batch)
    database.close()
    return f"flipped bit {bit} of byte {offset} of {len(value)} of the log record {key.hex()} of partition {partition}"


# -- whole directories


def swap(a: Path, b: Path) -> None:
    """What is in one directory is in the other."""
    aside = a.with_name(a.name + ".swapped")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


# -- space


@contextlib.contextmanager
def small_disk(path: Path, size_mib: int = 96) -> Iterator[None]:
    """A file system of that size at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    if _libc.mount(b"tmpfs", bytes(path), b"tmpfs", ctypes.c_ulong(0), f"size={size_mib}m".encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount at {path}")
    try:
        yield
    finally:
        unmount(path)


def fill_up(path: Path) -> int:
    """Take all the space there is; returns how much that was."""
    taken = 0
    with (path / BALLAST).open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            while True:
                try:
                    taken += file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
    return taken


def give_space(path: Path) -> None:
    """Give back what `fill_up` took."""
    (path / BALLAST).unlink()


# -- calls


def reason_no_strace() -> str:
    """Why no system call can be tampered with here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-e", "trace=pwritev2", "-e", "inject=pwritev2:error=EIO:when=1", "true"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    return "" if probe.returncode == 0 else f"strace does not work: {probe.stderr.decode(errors='replace')[:200]}"


class Tampered:
    """The calls of a running process are tampered with while this context is open.

    :param what: as after ``strace -e inject=``, for example ``pwritev2:error=EIO:when=1``
    """

    def __init__(self, pid: int, what: str, log: Path) -> None:
        self._log = log
        self._command = [
            "strace",
            "-f",
            "-ttt",
            "-p",
            str(pid),
            "-o",
            str(log),
            "-e",
            f"trace={what.split(':')[0]}",
            "-e",
            f"inject={what}",
        ]

    def __enter__(self) -> Tampered:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        deadline, said = time.monotonic() + 10, b""
        while b"attached" not in said:  # it says so once all threads are
            said += self._process.stderr.read() or b""
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"strace cannot attach: {said.decode(errors='replace')[:300]}")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout=10)
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def hits(self) -> list[str]:
        """Calls that were tampered with so far."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if "INJECTED" in line or "DELAYED" in line]
