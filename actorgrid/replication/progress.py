"""How far one secondary is, as its primary knows it, and how it is fed (Ongaro 2014, §3.5 and §10.2.1)."""

from __future__ import annotations

import enum

from actorgrid.replication.configuration import Member


class Pace(enum.Enum):
    """How a secondary gets the log.

    PROBE: one append at a time, until one fits. PIPELINE: appends follow each other without waiting. COPY: the log does not reach
    back far enough, a copy of the state is under way.
    """

    PROBE = enum.auto()
    PIPELINE = enum.auto()
    COPY = enum.auto()


class Progress:
    """One secondary.

    :ivar match_lsn: it has acknowledged everything up to here, durably (only grows)
    :ivar next_lsn: what it is sent next
    :ivar number: the support under which it said to be fortified in this epoch; 0: it did not
    :ivar is_awaited: of the write quorum that commits are expected of; the others may answer a little later
    :ivar chunk_lsn: end of the last chunk it was sent from the log; the next goes out when this one is acknowledged
    """

    __slots__ = (
        "built_in_life",
        "chunk_lsn",
        "is_awaited",
        "is_missing",
        "is_paused",
        "is_up",
        "match_lsn",
        "member",
        "moved_ns",
        "next_lsn",
        "number",
        "owed_lsn",
        "owed_ns",
        "pace",
        "told_lsn",
    )

    def __init__(self, member: Member, next_lsn: int, *, is_up: bool, now_ns: int) -> None:
        self.member = member
        self.match_lsn = 0
        self.next_lsn = next_lsn
        self.number = 0
        self.pace = Pace.PROBE
        self.chunk_lsn = 0
        self.told_lsn = 0
        self.is_awaited = False
        self.is_up = is_up
        self.is_paused = False
        #: It said that it does not exist: a voter like that counts for nothing.
        self.is_missing = False
        #: The life of its host in which it got its last copy from this primary; 0: it got none.
        self.built_in_life = 0
        #: When something was sent or acknowledged for the last time.
        self.moved_ns = now_ns
        #: The end of one append that was sent when all before was acknowledged, or the one before that was marked so; and when that was.
        self.owed_lsn = 0
        self.owed_ns = now_ns

    def probe_from(self, next_lsn: int) -> None:
        """Go back to one append at a time."""
        self.pace = Pace.PROBE
        self.next_lsn = next_lsn
        self.chunk_lsn = 0

    @property
    def takes_appends(self) -> bool:
        """Whether it is sent what is appended as it comes."""
        return self.pace is Pace.PIPELINE and self.is_up and not self.is_paused

    def __repr__(self) -> str:
        return f"Progress({self.member} {self.pace.name} match {self.match_lsn} next {self.next_lsn})"
