"""Memory in huge pages: which pieces of a process are taken, that a real kernel takes them, and that whatever is missing is borne."""

from __future__ import annotations

import logging
import mmap
import re
import threading
from pathlib import Path

import pytest

from actorgrid.host import huge_pages
from actorgrid.host.huge_pages import PIECE_BYTES, HugePages, full_pieces, heap, why_not

MAPS = """\
00400000-0041f000 r--p 00000000 fe:00 787 /usr/bin/python3.11
00941000-00a7f000 rw-p 00541000 fe:00 787 /usr/bin/python3.11
21d96000-23001000 rw-p 00000000 00:00 0 [heap]
7fee800e6000-7fee827fd000 rw-p 00000000 00:00 0 
7fee827fd000-7fee84000000 ---p 00000000 00:00 0 
7fee90000000-7fee90400000 rw-s 00000000 00:01 1029 /dev/zero (deleted)
7ffd5a5c8000-7ffd5a5e9000 rw-p 00000000 00:00 0 [stack]
"""  # noqa: W291 - so the kernel writes it


def need_huge_pages() -> None:
    if reason := why_not():
        pytest.skip(f"no huge pages here: {reason}")


def huge_kib(address: int) -> int:
    """KiB in huge pages of the mapping that `address` is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError(f"nothing is mapped at {address:#x}")


def full_mapping(pieces: int) -> mmap.mmap:
    """Private memory with so many aligned 2 MiB at least, all of it in use."""
    found = mmap.mmap(-1, (pieces + 1) * PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found.write(b"x" * len(found))
    return found


def test_the_heap_is_private_memory_that_no_file_and_no_stack_owns():
    assert list(heap(MAPS)) == [(0x21D96000, 0x23001000), (0x7FEE800E6000, 0x7FEE827FD000)]


def test_memory_in_use_is_in_huge_pages_after_a_look_and_as_it_was():
    need_huge_pages()
    before = set(full_pieces())
    memory = full_mapping(3)
    found = sorted(set(full_pieces()) - before)
    assert len(found) >= 3
    assert all(address % PIECE_BYTES == 0 for address in found)
    done, refused = HugePages(1.0).look()
    if not done:
        pytest.skip(f"this kernel collapses nothing ({refused} refused)")
    assert huge_kib(found[0]) >= PIECE_BYTES // 1024
    assert memory[:] == b"x" * len(memory)


def test_memory_that_is_hardly_used_is_left_alone():
    need_huge_pages()
    before = set(full_pieces())
    memory = mmap.mmap(-1, 8 * PIECE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(memory), 2 * mmap.PAGESIZE):  # every other page
        memory[offset] = 1
    assert len(set(full_pieces()) - before) <= 1  # the test's own small objects


def test_a_thread_looks_again_and_again_and_ends_when_told(monkeypatch: pytest.MonkeyPatch):
    need_huge_pages()
    looked_twice = threading.Event()
    looks = []

    def look() -> tuple[int, int]:
        looks.append(threading.current_thread())
        if len(looks) == 2:
            looked_twice.set()
        return 1, 0

    pages = HugePages(0.01)
    monkeypatch.setattr(pages, "look", look)
    pages.start()
    assert looked_twice.wait(10)
    assert pages._thread.is_alive()
    assert set(looks) == {pages._thread}
    pages.stop()
    assert not pages._thread.is_alive()


@pytest.mark.parametrize(
    ("enabled", "size", "reason"),
    [
        ("always madvise [never]\n", "2097152\n", "says never"),
        ("always [madvise] never\n", "33554432\n", "33554432 bytes"),
        (None, None, "not on this system"),
        ("always [madvise] never\n", "many\n", "not on this system"),
    ],
)
def test_where_there_are_none_it_is_said_and_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, enabled: str | None, size: str | None, reason: str
):
    if enabled is not None and size is not None:
        (tmp_path / "enabled").write_text(enabled)
        (tmp_path / "hpage_pmd_size").write_text(size)
    monkeypatch.setattr(huge_pages, "TRANSPARENT", tmp_path)
    pages = HugePages(1.0)
    with caplog.at_level(logging.INFO):
        pages.start()
    assert reason in caplog.text
    assert not pages._thread.is_alive()


def test_it_can_be_switched_off(caplog: pytest.LogCaptureFixture):
    pages = HugePages(0.0)
    with caplog.at_level(logging.INFO):
        pages.start()
    assert not pages._thread.is_alive()
    assert caplog.text == ""


def test_a_kernel_that_refuses_everything_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    need_huge_pages()
    asked = []
    monkeypatch.setattr(huge_pages, "_collapse", lambda: lambda address: asked.append(address) is not None)
    memory = full_mapping(2)
    pages = HugePages(0.01)
    with caplog.at_level(logging.INFO):
        pages.start()
        pages._thread.join(timeout=10)
    assert not pages._thread.is_alive()
    assert len(asked) >= 2
    assert "the kernel collapses none of" in caplog.text
    assert memory[0] == ord("x")
