"""The memory of a host's process in huge pages, so that a process that wakes up finds it again sooner.

A host touches a little memory all over its heap with each call: sessions, tails of logs, RocksDB's buffers. In pages of 4 KiB nearly every
touch behind another process begins with a miss of the processor's address cache, and on a virtual machine each miss walks two tables.
Linux puts memory into pages of 2 MiB where somebody asks for it, and Python does not ask. So a thread looks now and then for stretches of
the heap that are in use as a whole, and has the kernel collapse them one at a time (``MADV_COLLAPSE``, Linux 6.1).

Nothing is asked for memory that is still to come (``MADV_HUGEPAGE``): the kernel would make room for a huge page while a call waits for
it, and would back sparse memory as a whole. And what is freed is kept for the next who asks: RocksDB's buffers fill up, go, and come again,
and were handed back to the system and collapsed anew each time.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

PIECE_BYTES: Final = 2 << 20
PAGE_BYTES: Final = 4096
#: So many of a piece's 512 pages are in use, or it is left as it is: the process grows by a sixteenth at most.
PRESENT_MIN: Final = 480
#: A collapse takes some milliseconds, in which whoever touches that piece waits. Between two the thread rests so many times as long.
REST: Final = 20
MADV_COLLAPSE: Final = 25
#: malloc keeps so much free memory at its end; what is larger than `MMAP_BYTES` (the largest that glibc takes) goes back when it is freed.
KEPT_BYTES: Final = 256 << 20
MMAP_BYTES: Final = 32 << 20
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
MAPS: Final = Path("/proc/self/maps")
PAGEMAP: Final = Path("/proc/self/pagemap")
TRANSPARENT: Final = Path("/sys/kernel/mm/transparent_hugepage")
#: The bit of a page that is there is the highest of its eight bytes.
_NOT_PRESENT: Final = bytes(range(0x80))


class HugePages:
    """Every `look_s` seconds moves what is in use of this process's heap into huge pages; 0: never."""

    def __init__(self, look_s: float) -> None:
        self._look_s = look_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="actorgrid huge pages", daemon=True)

    def start(self) -> None:
        """Begin, where the system has huge pages and its administrator allows them; else say why not."""
        if not self._look_s:
            return
        reason = why_not()
        if reason:
            logger.info("memory stays in small pages: %s", reason)
        else:
            _keep_freed_memory()
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def look(self) -> tuple[int, int]:
        """One look at all memory.

        :returns: how many pieces of 2 MiB are in huge pages now; and of how many full ones the kernel would not have it
        :raises OSError: the process may not look at its own memory
        """
        done = refused = 0
        collapse = _collapse()
        for address in full_pieces():
            began_s = time.monotonic()
            if collapse(address):
                done += 1
            else:
                refused += 1
            if self._stopping.wait(REST * (time.monotonic() - began_s)):
                break
        return done, refused

    def _run(self) -> None:
        while not self._stopping.wait(self._look_s):
            try:
                done, refused = self.look()
            except OSError as error:
                logger.warning("memory stays in small pages: %s", error)
                return
            if refused and not done:
                logger.info("memory stays in small pages: the kernel collapses none of %d pieces of 2 MiB", refused)
                return


def why_not() -> str:
    """Why this process cannot have huge pages, or nothing."""
    try:
        enabled = (TRANSPARENT / "enabled").read_text()
        bytes_of_one = int((TRANSPARENT / "hpage_pmd_size").read_text())
        with PAGEMAP.open("rb"):
            pass
    except (OSError, ValueError) as error:
        return f"not on this system ({error})"
    if "[never]" in enabled:
        return f"{TRANSPARENT / 'enabled'} says never"
    if bytes_of_one != PIECE_BYTES or os.sysconf("SC_PAGE_SIZE") != PAGE_BYTES:
        return f"a huge page has {bytes_of_one} bytes here, and a small one {os.sysconf('SC_PAGE_SIZE')}"
    return ""


def full_pieces() -> Iterator[int]:
    """Addresses of all aligned 2 MiB of this process's heap that are in use as a whole, in huge pages already or not."""
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for start, stop in heap(MAPS.read_text()):
            for address in range(-(-start // PIECE_BYTES) * PIECE_BYTES, stop - PIECE_BYTES + 1, PIECE_BYTES):
                entries = os.pread(pagemap.fileno(), PIECE_BYTES // PAGE_BYTES * 8, address // PAGE_BYTES * 8)
                if len(entries[7::8].translate(None, _NOT_PRESENT)) >= PRESENT_MIN:
                    yield address


def heap(maps: str) -> Iterator[tuple[int, int]]:
    """Stretches of private memory that belong to no file, of ``/proc/self/maps``. Threads' stacks are among them, hardly used."""
    for line in maps.splitlines():
        span, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            start, stop = span.split("-")
            yield int(start, 16), int(stop, 16)


def _keep_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def _collapse() -> Callable[[int], bool]:
    """Of an address: the 2 MiB there go into one huge page. What is there does not change, whatever it is by now."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def collapse(address: int) -> bool:
        return bool(libc.madvise(address, PIECE_BYTES, MADV_COLLAPSE) == 0)

    return collapse
