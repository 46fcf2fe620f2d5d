"""``python -m tests.disks.host_without_sync CONFIG.json``: a host with a bug that can be switched on: it says "synced" and has not.

The bug is on while the file that ``ACTORGRID_TEST_SKIP_SYNC`` names is there; without that variable this program refuses to start. It
exists so that the power-loss tests can fail.
"""

from __future__ import annotations

import os
from pathlib import Path

from actorgrid.host.__main__ import main
from actorgrid.storage.store import Store

SWITCH = "ACTORGRID_TEST_SKIP_SYNC"


def plant(switch: Path) -> None:
    """Let every store of this process skip its syncs while `switch` exists."""
    sync_now = Store.sync_now

    def sync_now_or_not(self: Store) -> None:
        if switch.exists():
            self._refuse_if_failed()
        else:
            sync_now(self)

    Store.sync_now = sync_now_or_not  # type: ignore[method-assign]


if __name__ == "__main__":
    plant(Path(os.environ[SWITCH]))
    main()
