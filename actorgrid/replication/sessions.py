"""Exactly once: what a partition remembers about requests, and what it decides when one arrives (I9, I10).

A session is the memory of one client. Its records are made and freed only by applying log entries, so that every replica has the
same ones (I11); the client frees them by saying how far it has answers. What is running at the moment is the primary's own
knowledge and is kept beside the records in ``running``; the host puts its turns there.

Sessions leave by a rule without clocks: when more than ``sessions_max`` clients or ``bytes_max`` of results are remembered, the one
whose last entry is oldest is forgotten, and the highest such position is kept as ``evicted_lsn``. A client that is not remembered may
have been forgotten. Its request says from which position on it can have been executed (``since_lsn``): nothing forgotten lies there
unless ``since_lsn < evicted_lsn``, and then the request is refused rather than run a second time. A session that begins anew keeps the
``evicted_lsn`` of that moment as its ``floor_lsn``: what its client may have sent in a life before that is refused for good.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

from actorgrid.replication.entry import NO_CLIENT, ClientMark, LogRecord
from actorgrid.replication.session_record import SessionImage, SessionRecord, decode_image, encode_image

RecordKey = int | tuple[int, tuple[int, ...]]
"""Number of a client's own call, or (number, path) of a nested one."""


class Decision(enum.Enum):
    """What to do with a request that has no record.

    ``STALE``: its client said it had the answer. ``FORGOTTEN``: it may have been executed under a session that is no more.
    """

    NEW = enum.auto()
    STALE = enum.auto()
    FORGOTTEN = enum.auto()


class Session:
    """What is remembered of one client in one partition."""

    __slots__ = (
        "bytes",
        "floor_lsn",
        "heard",
        "heard_anywhere",
        "last_lsn",
        "lowest",
        "lowest_anywhere",
        "nested",
        "order",
        "records",
        "running",
    )

    def __init__(self, floor_lsn: int = 0) -> None:
        #: Nothing of this client that was executed up to here is remembered, so a request from before is not executed.
        self.floor_lsn = floor_lsn
        #: Counts the table's marks: sessions are forgotten in this order, also after a restart.
        self.order = 0
        #: Size of the results kept.
        self.bytes = 0
        self.lowest = 0
        self.lowest_anywhere = 0
        self.records: dict[int, SessionRecord] = {}
        self.nested: dict[tuple[int, tuple[int, ...]], SessionRecord] = {}
        self.last_lsn = 0
        #: What the client said itself, ahead of what the log says: the primary's own knowledge, not part of the replicated state.
        self.heard = 0
        self.heard_anywhere = 0
        #: Requests being executed, by record key: the host's own objects.
        self.running: dict[RecordKey, Any] = {}

    def find(self, key: RecordKey) -> SessionRecord | None:
        return self.records.get(key) if type(key) is int else self.nested.get(key)  # type: ignore[arg-type]

    def decide(self, key: RecordKey, lowest: int, lowest_anywhere: int, since_lsn: int) -> Decision:
        """Whether a request without record and not running may be executed.

        The client's own word counts as soon as it is heard: what it said to be answered is never run again.
        """
        if since_lsn < self.floor_lsn:
            return Decision.FORGOTTEN
        if lowest > self.heard:
            self.heard = lowest
        if lowest_anywhere > self.heard_anywhere:
            self.heard_anywhere = lowest_anywhere
        if type(key) is int:
            return Decision.STALE if key < self.heard or key < self.lowest else Decision.NEW
        number = key[0]  # type: ignore[index]
        return Decision.STALE if number < self.heard_anywhere or number < self.lowest_anywhere else Decision.NEW

    @property
    def record_count(self) -> int:
        # Not __len__: a session without records would be false, and taken for none by every ``or``.
        return len(self.records) + len(self.nested)


class SessionTable:
    """The sessions of one partition.

    :param sessions_max: clients remembered; the same on every replica of the grid, since it decides what is forgotten (I11)
    :param bytes_max: size of the results remembered, over all clients; so is this
    """

    def __init__(self, sessions_max: int, bytes_max: int = 1 << 62) -> None:
        self.sessions_max = sessions_max
        self.bytes_max = bytes_max
        self.bytes = 0
        self.evicted_lsn = 0
        self._marks = 0
        self._forgotten_total = 0
        self._sessions: dict[bytes, Session] = {}
        #: Clients that are only running something, with no entry yet: not part of the replicated state.
        self._unlogged: dict[bytes, Session] = {}
        self._changed: dict[bytes, None] = {}
        self._forgotten: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[tuple[bytes, Session]]:
        return iter(self._sessions.items())

    def get(self, client_id: bytes) -> Session | None:
        """The session of a client that has entries here."""
        return self._sessions.get(client_id)

    def open(self, client_id: bytes, since_lsn: int) -> Session | None:
        """The session of a client, a new one if it never had one; None if it may have been forgotten (see the module)."""
        session = self._sessions.get(client_id) or self._unlogged.get(client_id)
        if session is None:
            if since_lsn < self.evicted_lsn:
                return None
            if len(self._unlogged) > self.sessions_max:
                self._unlogged = {c: s for c, s in self._unlogged.items() if s.running}
            session = self._unlogged[client_id] = Session(self.evicted_lsn)
        return session

    def forget_running(self) -> None:
        """The replica is primary no more: what was being executed is known to nobody, and a retry begins anew."""
        self._unlogged.clear()
        for session in self._sessions.values():
            session.running.clear()

    # -- applying entries: a function of (table, entry) alone

    def apply(self, record: LogRecord) -> list[Session]:
        """Apply a committed record: remember the answers of its entries.

        :return: the sessions of ``record.clients``, in that order
        """
        clients, lsn, last_lsn = record.clients, record.first_lsn, record.last_lsn
        forgotten_before = self._forgotten_total
        sessions = [self._mark(mark, last_lsn) for mark in clients]
        all_are_kept = self._forgotten_total == forgotten_before  # else one was perhaps forgotten for a later client of this record
        for entry in record.entries:
            client = entry.client
            if client != NO_CLIENT and entry.key is None:
                session, result = sessions[client], entry.result
                session.bytes += len(result)
                if all_are_kept or clients[client].client_id in self._sessions:
                    self.bytes += len(result)
                remembered = SessionRecord(entry.digest, entry.status, result, lsn)
                if entry.path:
                    session.nested[entry.number, entry.path] = remembered
                else:
                    session.records[entry.number] = remembered
            lsn += 1
        while self.bytes > self.bytes_max and len(self._sessions) > 1:
            self._forget_oldest()
        return sessions

    def _mark(self, mark: ClientMark, lsn: int) -> Session:
        """The client has an entry at or before `lsn`: note how far it is, and free what it has answers to."""
        client_id, lowest, lowest_anywhere = mark.client_id, mark.lowest, mark.lowest_anywhere
        session = self._sessions.get(client_id)
        if session is None:
            session = self._unlogged.pop(client_id, None) or Session()
            session.floor_lsn = self.evicted_lsn  # not that of `open`: a function of the log alone
            self._sessions[client_id] = session
            self._forgotten.pop(client_id, None)
        else:
            # Dictionaries keep order of insertion: the first session is always the one whose last entry is oldest.
            del self._sessions[client_id]
            self._sessions[client_id] = session
        session.last_lsn = lsn
        self._marks += 1
        session.order = self._marks
        if lowest > session.lowest:
            session.lowest = lowest
        if lowest_anywhere > session.lowest_anywhere:
            session.lowest_anywhere = lowest_anywhere
        freed = _free_below(session, lowest, lowest_anywhere)
        session.bytes -= freed
        self.bytes -= freed
        self._changed[client_id] = None
        while len(self._sessions) > self.sessions_max:
            self._forget_oldest()
        return session

    def _forget_oldest(self) -> None:
        oldest = next(iter(self._sessions))
        session = self._sessions.pop(oldest)
        self._forgotten_total += 1
        self.bytes -= session.bytes
        self.evicted_lsn = max(self.evicted_lsn, session.last_lsn)
        self._changed.pop(oldest, None)
        self._forgotten[oldest] = None
        if session.running:
            # What is being executed is still known here, and must be found by its retries.
            remnant = Session(self.evicted_lsn)
            remnant.heard, remnant.heard_anywhere, remnant.running = session.heard, session.heard_anywhere, session.running
            self._unlogged[oldest] = remnant

    # -- durable form: the log from the last checkpoint on, and one image per client

    def take_checkpoint(self) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """(client id, image) of sessions changed since the last checkpoint, and the clients forgotten since."""
        images = [(client_id, _image_of(self._sessions[client_id])) for client_id in self._changed]
        forgotten = list(self._forgotten)
        self._changed.clear()
        self._forgotten.clear()
        return images, forgotten

    def load_image(self, client_id: bytes, image: bytes) -> None:
        """Take one image of a checkpoint; when all are in, call `loaded`."""
        decoded = decode_image(image)
        session = Session(decoded.floor_lsn)
        session.order = decoded.order
        session.lowest, session.lowest_anywhere, session.last_lsn = decoded.lowest, decoded.lowest_anywhere, decoded.last_lsn
        session.records = dict(decoded.records)
        session.nested = {(number, path): record for number, path, record in decoded.nested}
        session.bytes = sum(len(record.result) for records in (session.records, session.nested) for record in records.values())
        self.bytes += session.bytes
        self._sessions[client_id] = session

    def loaded(self, evicted_lsn: int) -> None:
        """All images are in: restore the order in which sessions are forgotten."""
        self.evicted_lsn = evicted_lsn
        self._sessions = dict(sorted(self._sessions.items(), key=lambda item: item[1].order))
        self._marks = max((session.order for session in self._sessions.values()), default=0)


def _free_below(session: Session, lowest: int, lowest_anywhere: int) -> int:
    """Free what the client has answers to; the size of the results freed."""
    freed = 0
    # Records are in order of execution, nearly that of numbers: stopping at the first one still wanted keeps this cheap, and what it
    # leaves behind is freed by a later call. One iterator for all of them: each new one would step over every place that is free already.
    records = session.records
    gone = []
    for number, record in records.items():
        if number >= lowest:
            break
        freed += len(record.result)
        gone.append(number)
    for number in gone:
        del records[number]
    nested = session.nested
    if nested:
        gone_nested = []
        for key, record in nested.items():
            if key[0] >= lowest_anywhere:
                break
            freed += len(record.result)
            gone_nested.append(key)
        for key in gone_nested:
            del nested[key]
    return freed


def _image_of(session: Session) -> bytes:
    return encode_image(
        SessionImage(
            session.order,
            session.floor_lsn,
            session.lowest,
            session.lowest_anywhere,
            session.last_lsn,
            list(session.records.items()),
            [(number, path, record) for (number, path), record in session.nested.items()],
        )
    )
