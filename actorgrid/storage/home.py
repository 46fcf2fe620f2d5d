"""Where one host keeps its store, and what becomes of a store that is damaged."""

from __future__ import annotations

import contextlib
import itertools
import logging
from pathlib import Path
from typing import Final

from actorgrid.errors import CorruptLogError, StorageError
from actorgrid.storage.files import sync_directory
from actorgrid.storage.store import Store, StoreIdentity

logger = logging.getLogger(__name__)

#: A store that cannot be trusted is put aside under this name, never deleted.
QUARANTINE: Final = "store.corrupt"


class StoreHome:
    """The data directory of a host. `condemn` and the methods with an underscore, but `_open_or_salvage`, are all that touches files.

    :ivar path: of the store
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "store"
        self._condemned = data_dir / (QUARANTINE + ".please")

    def open(self, identity: StoreIdentity, *, has_copies: bool) -> Store:
        """The store; a new one in the place of one that is damaged, if other hosts have what it had.

        :raises SettingsError: as `Store`
        :raises StorageError: as `Store`
        """
        try:
            if has_copies and (why := self._why_condemned()) is not None:
                raise CorruptLogError(why)
            store = self._open_or_salvage(identity, has_copies=has_copies)
        except CorruptLogError as error:
            if not has_copies:
                raise
            aside = self._free_name_aside()
            logger.error(
                "store is damaged, it is put aside and its replicas are built anew path=%s aside=%s error=%s", self.path, aside, error
            )
            self._put_aside(aside)
            store = self._open_store(identity, salvage=False)
        if store.is_new:
            # RocksDB syncs the names in the store; the store's own name is ours to sync, or a power loss may take all of it (fsync(2)).
            self._sync_names()
        return store

    def _open_or_salvage(self, identity: StoreIdentity, *, has_copies: bool) -> Store:
        """The store, up to the first damage in its write-ahead log.

        What was synced has changed then, or is gone. Peers remember how far this store was, and say so (I6); where nothing that they
        rely on is lost, it goes on. Without peers damage is refused.
        """
        try:
            return self._open_store(identity, salvage=False)
        except CorruptLogError as error:
            if not has_copies:
                raise
            logger.warning("write-ahead log is damaged, what is before the damage is taken path=%s error=%s", self.path, error)
            return self._open_store(identity, salvage=True)

    def condemn(self, why: str) -> None:
        """Let the next `open` put this store aside, if there are copies: what is damaged is not read twice."""
        with contextlib.suppress(OSError):
            self._condemned.write_text(why)

    def _why_condemned(self) -> str | None:
        """What `condemn` was told since a store was put aside last; None: nothing."""
        return self._condemned.read_text() or "it was found to be damaged" if self._condemned.exists() else None

    def _open_store(self, identity: StoreIdentity, *, salvage: bool) -> Store:
        return Store(self.path, identity, salvage=salvage)

    def _free_name_aside(self) -> Path:
        names = (self.path.with_name(f"{QUARANTINE}.{number}") for number in itertools.count(1))
        return next(each for each in names if not each.exists())

    def _put_aside(self, aside: Path) -> None:
        """Give the store the name `aside`; nothing is condemned any more."""
        if self.path.exists():  # else a crash came between the two lines, the last time
            self.path.rename(aside)
        self._condemned.unlink(missing_ok=True)

    def _sync_names(self) -> None:
        for directory in (self.path.parent, self.path.parent.parent):
            try:
                sync_directory(directory)
            except OSError as error:
                raise StorageError(f"cannot sync {directory}: {error.strerror or error}") from None
