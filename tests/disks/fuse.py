"""The kernel's side of a FUSE file system: requests of ``/dev/fuse`` in, calls of a `Tree`'s methods, answers out.

This speaks the kernel's own protocol (``include/uapi/linux/fuse.h``, version 7.31; later kernels accept it), so neither libfuse nor a
binding is needed: only root, ``/dev/fuse`` and mount(2). One thread, one request after the other: whoever serves it decides what
happens between two requests.

The kernel writes through: a write is answered before the call of the process returns, and nothing of it is left in the kernel that has
not been here. What it caches for reading goes with the mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

WRITE_BYTES_MAX: Final = 128 * 1024
ROOT_INO: Final = 1

_MAJOR, _MINOR = 7, 31
_BIG_WRITES = 1 << 5
_MS_NOSUID, _MS_NODEV, _MNT_DETACH = 2, 4, 2
_FOR_EVER_S = 1 << 31
_SET_MODE, _SET_SIZE = 1 << 0, 1 << 3

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_HEAD = struct.Struct("<QII")
_OPEN = struct.Struct("<QII")
_READ = struct.Struct("<QQII")
_SETATTR = struct.Struct("<IIQQQQQQIIIII")
_STATFS = struct.Struct("<QQQQQIIII24x")
_DIRENT = struct.Struct("<QQII")
_INIT = struct.Struct("<IIIIHHIIHHI28x")

_libc = ctypes.CDLL(None, use_errno=True)


class Attributes(NamedTuple):
    """What is known of a file or directory."""

    ino: int
    mode: int
    size: int
    time_ns: int


class Tree(Protocol):
    """A file system. Methods raise `OSError` with the errno that the caller is to get."""

    def lookup(self, parent: int, name: str) -> int: ...
    def attributes(self, ino: int) -> Attributes: ...
    def create(self, parent: int, name: str, mode: int) -> int: ...
    def unlink(self, parent: int, name: str) -> None: ...
    def rename(self, parent: int, name: str, new_parent: int, new_name: str) -> None: ...
    def entries(self, ino: int) -> list[tuple[str, int]]: ...
    def read(self, ino: int, offset: int, size: int) -> bytes: ...
    def write(self, ino: int, offset: int, data: bytes) -> None: ...
    def truncate(self, ino: int, size: int) -> None: ...
    def begin_sync(self, ino: int) -> tuple[float, Callable[[], None]]:
        """How many seconds a sync takes, and what makes durable what was there when it began; called once they are over."""
        ...

    def chmod(self, ino: int, mode: int) -> None: ...


def reason_unusable() -> str:
    """Why no FUSE file system can be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


class Mount:
    """`tree`, mounted at `path`. Call `serve_one` whenever `fd` is readable; `close` takes it away, whoever still has files open there."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self.tree = tree
        self.path = path
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={WRITE_BYTES_MAX}"
        arguments = (b"actorgrid-test-disk", bytes(path), b"fuse", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV), options.encode())
        if _libc.mount(*arguments) != 0:
            os.close(self.fd)
            raise OSError(ctypes.get_errno(), f"cannot mount at {path}: {os.strerror(ctypes.get_errno())}")
        self._syncs: list[tuple[float, int, Callable[[], None]]] = []  # (when it is done, whose answer, what then)
        self._handlers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: lambda ino, body: self._attr(ino),
            4: self._setattr,
            8: self._mknod,
            9: self._mkdir,
            10: self._unlink,
            11: self._unlink,
            12: lambda ino, body: self._rename(ino, body, 8),
            14: lambda ino, body: _OPEN.pack(0, 0, 0),
            15: self._read,
            16: self._write,
            17: lambda ino, body: _STATFS.pack(1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 19, 4096, 255, 4096, 0),
            18: lambda ino, body: b"",
            26: self._init,
            27: lambda ino, body: _OPEN.pack(0, 0, 0),
            28: self._readdir,
            29: lambda ino, body: b"",
            35: self._create,
            45: lambda ino, body: self._rename(ino, body, 16),
        }

    def close(self) -> None:
        """Unmount. Whoever has files open there gets errors from now on."""
        if self.fd >= 0:
            unmount(self.path)
            os.close(self.fd)
            self.fd = -1

    def serve_one(self) -> bool:
        """Answer the next request; False if the kernel has let go of the mount."""
        try:
            request = os.read(self.fd, WRITE_BYTES_MAX + 4096)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: it was taken back
                return True
            if error.errno == errno.ENODEV:
                return False
            raise
        _, opcode, unique, ino, *_ = _IN.unpack_from(request)
        if opcode in (2, 36, 42):  # forget, interrupt, many forgets: nothing is answered
            return True
        if opcode in (20, 30):  # fsync, fsyncdir
            seconds, done = self.tree.begin_sync(ino)
            self._syncs.append((time.monotonic() + seconds, unique, done))
            self.finish_syncs()
            return True
        handler = self._handlers.get(opcode)
        failed, payload = 0, b""
        if handler is None:
            failed = errno.ENOSYS
        else:
            try:
                payload = handler(ino, request[_IN.size :])
            except OSError as error:
                failed = error.errno or errno.EIO
        self._answer(unique, failed, payload)
        return True

    def _answer(self, unique: int, failed: int, payload: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):  # whoever asked is gone
            os.write(self.fd, _OUT.pack(_OUT.size + len(payload), -failed, unique) + payload)

    def finish_syncs(self) -> float | None:
        """Answer the syncs whose time has come; seconds until the next one's, None if none is under way."""
        now = time.monotonic()
        due = [each for each in self._syncs if each[0] <= now]
        self._syncs = [each for each in self._syncs if each[0] > now]
        for _, unique, done in due:
            done()
            self._answer(unique, 0, b"")
        return min((at for at, _, _ in self._syncs), default=now) - now if self._syncs else None

    # -- requests

    def _init(self, ino: int, body: bytes) -> bytes:
        readahead = struct.unpack_from("<I", body, 8)[0]
        return _INIT.pack(_MAJOR, _MINOR, readahead, _BIG_WRITES, 16, 12, WRITE_BYTES_MAX, 1, WRITE_BYTES_MAX // 4096, 0, 0)

    def _attr_of(self, ino: int) -> bytes:
        known = self.tree.attributes(ino)
        seconds, nanoseconds = divmod(known.time_ns, 1_000_000_000)
        blocks = -(-known.size // 512)
        links = 2 if stat.S_ISDIR(known.mode) else 1
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        return _ATTR.pack(known.ino, known.size, blocks, *times, known.mode, links, 0, 0, 0, 4096, 0)

    def _attr(self, ino: int) -> bytes:
        return _ATTR_HEAD.pack(_FOR_EVER_S, 0, 0) + self._attr_of(ino)

    def _entry(self, ino: int) -> bytes:
        return _ENTRY.pack(ino, 0, _FOR_EVER_S, _FOR_EVER_S, 0, 0) + self._attr_of(ino)

    def _lookup(self, ino: int, body: bytes) -> bytes:
        return self._entry(self.tree.lookup(ino, _name(body)))

    def _setattr(self, ino: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, _, _, _, _, _, mode, _ = _SETATTR.unpack_from(body)
        if valid & _SET_SIZE:
            self.tree.truncate(ino, size)
        if valid & _SET_MODE:
            self.tree.chmod(ino, mode)
        return self._attr(ino)

    def _mknod(self, ino: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self._entry(self.tree.create(ino, _name(body[16:]), mode))

    def _mkdir(self, ino: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body)[0]
        return self._entry(self.tree.create(ino, _name(body[8:]), stat.S_IFDIR | mode & 0o7777))

    def _create(self, ino: int, body: bytes) -> bytes:
        mode = struct.unpack_from("<I", body, 4)[0]
        return self._entry(self.tree.create(ino, _name(body[16:]), stat.S_IFREG | mode & 0o7777)) + _OPEN.pack(0, 0, 0)

    def _unlink(self, ino: int, body: bytes) -> bytes:
        self.tree.unlink(ino, _name(body))
        return b""

    def _rename(self, ino: int, body: bytes, names_at: int) -> bytes:
        new_parent = struct.unpack_from("<Q", body)[0]
        if names_at == 16 and struct.unpack_from("<I", body, 8)[0]:
            raise OSError(errno.EINVAL, "no exchange of names")
        name, new_name, _ = body[names_at:].split(b"\0", 2)
        self.tree.rename(ino, name.decode(), new_parent, new_name.decode())
        return b""

    def _read(self, ino: int, body: bytes) -> bytes:
        _, offset, size, _ = _READ.unpack_from(body)
        return self.tree.read(ino, offset, size)

    def _write(self, ino: int, body: bytes) -> bytes:
        _, offset, size, _ = _READ.unpack_from(body)
        self.tree.write(ino, offset, body[40 : 40 + size])
        return struct.pack("<II", size, 0)

    def _readdir(self, ino: int, body: bytes) -> bytes:
        _, offset, size, _ = _READ.unpack_from(body)
        found = b""
        for number, entry in enumerate(self._dirents(ino), 1):
            if number > offset:
                if len(found) + len(entry) > size:
                    break
                found += entry
        return found

    def _dirents(self, ino: int) -> Iterator[bytes]:
        for number, (name, child) in enumerate(self.tree.entries(ino), 1):
            encoded = name.encode()
            kind = self.tree.attributes(child).mode >> 12
            yield _DIRENT.pack(child, number, len(encoded), kind) + encoded + bytes(-len(encoded) % 8)


def unmount(path: Path) -> None:
    """Take whatever is mounted at `path` away, also if it is in use; nothing happens if there is nothing."""
    if _libc.umount2(bytes(path), _MNT_DETACH) != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise OSError(ctypes.get_errno(), f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")


def _name(body: bytes) -> str:
    return body[: body.index(b"\0")].decode()
