"""What happens to the data directory of a host that is down: emptied, cut, or put back as it was some time ago."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests import wal_files


def empty(data_dir: Path) -> str:
    """A new disk: nothing is left, no mark and no store.

    :return: what was done, for the log of faults
    """
    files = [path for path in data_dir.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in data_dir.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert size > 0, f"{data_dir} was empty before"
    return f"emptied: {len(files)} files, {size} bytes"


def cut(data_dir: Path, rng: random.Random) -> str:
    """The end of the write-ahead log is gone: its newest file is shorter by a random part, or all its files are missing.

    A host with peers takes what is left, and only a comparison with what they remember tells whether that is enough.

    :return: what was done, for the log of faults
    """
    store = data_dir / "store"
    return wal_files.delete(store) if rng.random() < 0.4 else wal_files.cut(store, rng)


def copy(data_dir: Path, to: Path) -> str:
    """Keep the directory as it is now.

    :return: what was done, for the log of faults
    """
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(data_dir, to, symlinks=True)
    return f"kept a copy of {sum(path.stat().st_size for path in to.rglob('*') if path.is_file())} bytes"


def put_back(data_dir: Path, kept: Path) -> str:
    """The directory is again as it was when `kept` was made by `copy`, as after a restore from a backup.

    :return: what was done, for the log of faults
    """
    assert kept.is_dir(), f"{kept} was never made"
    shutil.rmtree(data_dir)
    shutil.copytree(kept, data_dir, symlinks=True)
    return "put back an older copy"
