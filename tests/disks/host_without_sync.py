"""``python -m tests.disks.host_without_sync CONFIG.json``: a host with a bug that can be switched on: it says "synced" and has not.

The bug is on while the file that ``ACTORGRID_TEST_SKIP_SYNC`` names is there; without that variable this program refuses to start. It
exists so that the power-loss tests can fail.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from actorgrid.host.__main__ import main
from actorgrid.storage.wal import WriteAheadLog

SWITCH = "ACTORGRID_TEST_SKIP_SYNC"


def plant(switch: Path) -> None:
    """Let every store of this process write without any sync while `switch` exists."""
    write = WriteAheadLog._write

    def write_only(self: WriteAheadLog, buffer: mmap.mmap, size: int) -> None:
        if not switch.exists():
            write(self, buffer, size)
            return
        with self._used[-1].path.open("rb+", buffering=0) as file:
            file.seek(self._offset)
            file.write(buffer[:size])

    WriteAheadLog._write = write_only  # type: ignore[method-assign]


if __name__ == "__main__":
    plant(Path(os.environ[SWITCH]))
    main()
