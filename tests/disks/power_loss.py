"""A file system that loses what was not synced when its power goes: real processes write to it as to any other.

``python -m tests.disks.power_loss MOUNTPOINT`` serves one such disk; it takes commands as lines of JSON on standard input and answers
each on standard output (`LossyDisk` is the other end). SIGKILL of a process alone tests nothing about syncing, since the kernel keeps
what it wrote; here, after ``lose``, only this is left:

- of a file: what it held at its last fsync or fdatasync; of what was written since, whatever the `Survival` says;
- of a directory: the names it held at its last fsync, and of the changes since then the first few, as many as chance wants. A new file
  whose name was not synced is gone, however often the file itself was (POSIX promises no more). With ``--ordered`` syncing anything
  makes all names durable that were given before, as the journals of ext4 and XFS do.

The disk is in the memory of the process that serves it and lives as long as that; mounting it again is the power coming back.

Invariants: a synced byte, or name, is never lost; nothing changes between ``lose`` and the next mount.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import select
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

from tests.disks.fuse import ROOT_INO, Attributes, Mount, unmount

PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
ANSWER_WITHIN_S: Final = 20.0
#: A disk with a cache that must be flushed; long enough that under load something is always waiting for a sync.
SYNC_S: Final = 0.002
ROOT: Final = Path(__file__).parent.parent.parent

#: What becomes of writes since the last sync of their file. ``nothing``: all are lost. ``prefix``: the first few are there, the last of
#: these cut at any byte. ``pages``: of each file's dirty pages any may be there and any may not, as a disk writes them in its own order;
#: the last one that is there may be torn at a sector; a page that is not there is as it was, or zeros where the file has grown.
Survival = Literal["nothing", "prefix", "pages"]
SURVIVALS: Final[tuple[Survival, ...]] = ("nothing", "prefix", "pages")


class _File:
    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.live = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, what was written), or (size, None): truncated to that
        self.durable_changes = 0  # how many were pending once and are durable
        self.time_ns = time.monotonic_ns()

    @property
    def pending_bytes(self) -> int:
        return sum(len(data) for _, data in self.pending if data is not None)

    def begin_sync(self) -> Callable[[], None]:
        changes = self.durable_changes + len(self.pending)
        return lambda: self._sync(changes)

    def _sync(self, changes: int) -> None:
        count = max(0, changes - self.durable_changes)
        for offset, data in self.pending[:count]:
            _apply(self.durable, offset, data)
        del self.pending[:count]
        self.durable_changes += count


class _Directory:
    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.live: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.pending: list[dict[str, int | None]] = []  # names given and taken, each element at once
        self.time_ns = time.monotonic_ns()

    def change(self, names: dict[str, int | None]) -> None:
        self._take(self.live, names)
        self.pending.append(names)
        self.time_ns = time.monotonic_ns()

    def begin_sync(self) -> Callable[[], None]:
        self.sync(len(self.pending))
        return lambda: None

    def sync(self, count: int) -> None:
        """Make the first `count` changes durable."""
        for names in self.pending[:count]:
            self._take(self.durable, names)
        del self.pending[:count]

    @staticmethod
    def _take(entries: dict[str, int], names: dict[str, int | None]) -> None:
        for name, ino in names.items():
            if ino is None:
                entries.pop(name, None)
            else:
                entries[name] = ino


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class LossyTree:
    """The disk: a `tests.disks.fuse.Tree` with `lose`.

    :param ordered: syncing anything makes all earlier changes of names durable
    :param sync_s: how long a sync takes; what is written meanwhile waits for the next one
    :ivar syncs: how many were begun
    """

    def __init__(self, *, ordered: bool = False, sync_s: float = 0.0) -> None:
        self.syncs = 0
        self._sync_s = sync_s
        self._ordered = ordered
        self._nodes: dict[int, _File | _Directory] = {ROOT_INO: _Directory(stat.S_IFDIR | 0o755)}
        self._last_ino = ROOT_INO

    # -- looking

    def _file(self, ino: int) -> _File:
        node = self._nodes[ino]
        if isinstance(node, _Directory):
            raise OSError(errno.EISDIR, "directory")
        return node

    def _directory(self, ino: int) -> _Directory:
        node = self._nodes[ino]
        if isinstance(node, _File):
            raise OSError(errno.ENOTDIR, "no directory")
        return node

    def lookup(self, parent: int, name: str) -> int:
        ino = self._directory(parent).live.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, name)
        return ino

    def attributes(self, ino: int) -> Attributes:
        node = self._nodes[ino]
        return Attributes(ino, node.mode, len(node.live) if isinstance(node, _File) else PAGE_BYTES, node.time_ns)

    def entries(self, ino: int) -> list[tuple[str, int]]:
        return list(self._directory(ino).live.items())

    def read(self, ino: int, offset: int, size: int) -> bytes:
        return bytes(self._file(ino).live[offset : offset + size])

    # -- changing

    def create(self, parent: int, name: str, mode: int) -> int:
        directory = self._directory(parent)
        if name in directory.live:
            raise OSError(errno.EEXIST, name)
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise OSError(errno.EOPNOTSUPP, "only files and directories")
        self._last_ino += 1
        self._nodes[self._last_ino] = _Directory(mode) if stat.S_ISDIR(mode) else _File(mode)
        directory.change({name: self._last_ino})
        return self._last_ino

    def unlink(self, parent: int, name: str) -> None:
        node = self._nodes[self.lookup(parent, name)]
        if isinstance(node, _Directory) and node.live:
            raise OSError(errno.ENOTEMPTY, name)
        self._directory(parent).change({name: None})

    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        ino = self.lookup(parent, name)
        replaced = self._directory(new_parent).live.get(new_name)
        if replaced is not None and isinstance(self._nodes[replaced], _Directory) and self._directory(replaced).live:
            raise OSError(errno.ENOTEMPTY, new_name)
        if parent == new_parent:
            self._directory(parent).change({name: None, new_name: ino})
        else:
            self._directory(new_parent).change({new_name: ino})
            self._directory(parent).change({name: None})

    def write(self, ino: int, offset: int, data: bytes) -> None:
        file = self._file(ino)
        _apply(file.live, offset, data)
        file.pending.append((offset, data))
        file.time_ns = time.monotonic_ns()

    def truncate(self, ino: int, size: int) -> None:
        file = self._file(ino)
        _apply(file.live, size, None)
        file.pending.append((size, None))

    def chmod(self, ino: int, mode: int) -> None:
        node = self._nodes[ino]
        node.mode = stat.S_IFMT(node.mode) | mode & 0o7777

    def begin_sync(self, ino: int) -> tuple[float, Callable[[], None]]:
        self.syncs += 1
        if self._ordered:
            for node in self._nodes.values():
                if isinstance(node, _Directory):
                    node.sync(len(node.pending))
        return self._sync_s, self._nodes[ino].begin_sync()

    # -- losing

    def lose(self, survival: Survival, rng: random.Random) -> Counter[str]:
        """The power goes. What is left is all there is from now on.

        :return: ``dropped_bytes``, ``kept_bytes`` of what was not synced; the same of write-ahead logs alone as ``wal_...``;
            ``dropped_names``, ``kept_names``: changes of directories
        """
        counts: Counter[str] = Counter()
        for ino, name in self._reachable():
            node = self._nodes[ino]
            if isinstance(node, _Directory):
                keep = rng.randint(0, len(node.pending))
                counts["kept_names"] += keep
                counts["dropped_names"] += len(node.pending) - keep
                node.sync(keep)
                node.pending.clear()
                node.live = dict(node.durable)
            else:
                pending = node.pending_bytes
                dropped = self._lose_file(node, survival, rng)
                for prefix in ("", "wal_") if name.isdigit() else ("",):
                    counts[prefix + "dropped_bytes"] += dropped
                    counts[prefix + "kept_bytes"] += pending - dropped
        kept = {ino for ino, _ in self._reachable()}
        self._nodes = {ino: node for ino, node in self._nodes.items() if ino in kept}
        return counts

    def _reachable(self) -> list[tuple[int, str]]:
        """Everything that has a name, durable or not, directories before what is in them."""
        found = {ROOT_INO: ""}
        queue = [ROOT_INO]
        for ino in queue:
            node = self._nodes[ino]
            if isinstance(node, _Directory):
                names = [*node.live.items(), *node.durable.items()]
                names += [(name, child) for change in node.pending for name, child in change.items() if child is not None]
                for name, child in names:
                    if child not in found:
                        found[child] = name
                        queue.append(child)
        return list(found.items())

    @staticmethod
    def _lose_file(file: _File, survival: Survival, rng: random.Random) -> int:
        """Returns how many of the bytes written since the last sync are gone."""
        pending = file.pending_bytes
        kept = 0
        if survival == "prefix":
            count = rng.randint(0, len(file.pending))
            for offset, data in file.pending[:count]:
                _apply(file.durable, offset, data)
                kept += len(data or b"")
            for offset, data in file.pending[count : count + 1]:
                if data:
                    torn = rng.randrange(len(data))
                    _apply(file.durable, offset, data[:torn])
                    kept += torn
        elif survival == "pages":
            kept = _keep_pages(file, rng)
        file.pending.clear()
        file.live = bytearray(file.durable)
        return pending - kept

    def totals(self) -> dict[str, int]:
        files = [node for node in self._nodes.values() if isinstance(node, _File)]
        return {
            "syncs": self.syncs,
            "files": len(files),
            "bytes": sum(len(file.live) for file in files),
            "unsynced_bytes": sum(file.pending_bytes for file in files),
        }


def _keep_pages(file: _File, rng: random.Random) -> int:
    """Let any of the dirty pages be on the disk; returns how many of the bytes written since the last sync are."""
    dirty: Counter[int] = Counter()
    for offset, data in file.pending:
        if data is not None:
            for page in range(offset // PAGE_BYTES, -(-(offset + len(data)) // PAGE_BYTES)):
                start, stop = max(offset, page * PAGE_BYTES), min(offset + len(data), (page + 1) * PAGE_BYTES)
                dirty[page] += stop - start
    chance = rng.random()
    survivors = sorted(page for page in dirty if rng.random() < chance and page * PAGE_BYTES < len(file.live))
    kept = 0
    for page in survivors:
        content = bytes(file.live[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
        if page == survivors[-1] and rng.random() < 0.5:
            content = content[: rng.randint(1, PAGE_BYTES // SECTOR_BYTES) * SECTOR_BYTES]
        _apply(file.durable, page * PAGE_BYTES, content)
        kept += min(dirty[page], len(content))
    if file.pending and len(file.durable) < len(file.live) and rng.random() < 0.5:
        # The new size is there and the bytes are not.
        _apply(file.durable, rng.randint(len(file.durable), len(file.live)), None)
    return kept


# -- the process that serves a disk


def _serve(path: Path, tree: LossyTree) -> None:
    mount: Mount | None = None
    commands = sys.stdin.fileno()
    buffered = b""
    try:
        while True:
            wait_s = mount.finish_syncs() if mount is not None else None
            ready, _, _ = select.select([commands, *([mount.fd] if mount is not None else [])], [], [], wait_s)
            if mount is not None and mount.fd in ready and not mount.serve_one():
                mount.close()
                mount = None
            if commands not in ready:
                continue
            data = os.read(commands, 65536)
            if not data:
                return
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                answer: dict[str, Any] = {}
                if command["do"] == "mount":
                    assert mount is None, "mounted already"
                    mount = Mount(tree, path)
                elif command["do"] == "lose":
                    if mount is not None:
                        mount.close()
                        mount = None
                    answer = dict(tree.lose(command["survival"], random.Random(command["seed"])))
                elif command["do"] == "totals":
                    answer = tree.totals()
                sys.stdout.write(json.dumps(answer) + "\n")
                sys.stdout.flush()
    finally:
        if mount is not None:
            mount.close()


class LossyDisk:
    """One disk, served by a process of its own; a context manager. The power is on after entering.

    :param path: where it is mounted; made if it is not there
    """

    def __init__(self, path: Path, *, ordered: bool = False, sync_s: float = SYNC_S) -> None:
        self.path = path
        self._options = ["--sync-s", str(sync_s), *(["--ordered"] if ordered else [])]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.disks.power_loss", str(self.path), *self._options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.power_on()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # it unmounts and ends
            try:
                process.wait(timeout=ANSWER_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=ANSWER_WITHIN_S)
            assert process.stdout is not None
            process.stdout.close()
        with contextlib.suppress(OSError):
            unmount(self.path)

    def power_on(self) -> None:
        """Mount what is on the disk."""
        self._ask(do="mount")

    def totals(self) -> dict[str, int]:
        """``syncs``, ``files``, ``bytes``, ``unsynced_bytes``."""
        return self._ask(do="totals")

    def _ask(self, **command: Any) -> dict[str, int]:
        self._tell(**command)
        return self._answer()

    def _tell(self, **command: Any) -> None:
        assert self._process is not None, "use it as a context manager"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, int]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], ANSWER_WITHIN_S)[0]:
            raise TimeoutError(f"the disk at {self.path} does not answer")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the disk at {self.path} ended with {process.wait(timeout=5)}")
        answer: dict[str, int] = json.loads(line)
        return answer


def power_off(disks: Iterable[LossyDisk], survival: Survival, seed: object) -> list[Counter[str]]:
    """All of these disks lose what is not synced, at once, and are gone: whoever still has files open gets errors. See `LossyTree.lose`."""
    disks = list(disks)
    for number, disk in enumerate(disks):
        disk._tell(do="lose", survival=survival, seed=f"{seed}/{number}")
    return [Counter(disk._answer()) for disk in disks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--ordered", action="store_true", help="syncing anything makes all earlier changes of names durable")
    parser.add_argument("--sync-s", type=float, default=SYNC_S, help="how long a sync takes")
    options = parser.parse_args()
    _serve(options.mountpoint, LossyTree(ordered=options.ordered, sync_s=options.sync_s))


if __name__ == "__main__":
    main()
