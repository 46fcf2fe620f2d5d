"""Configurations: which replicas of a partition vote, which are being built, and what may follow what (I5).

A configuration is an entry of the partition's own log and takes effect when it is appended (Ongaro 2014, §4.1). Two that follow each
other differ by one replica, so that every write quorum of the one meets every write quorum of the other.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Struct

from actorgrid.errors import CorruptLogError


class Member(NamedTuple):
    """One replica: the host it is on, and which of that host's replicas of this partition it is.

    A replica whose disk went back in time never returns; what is built in its place has the next incarnation (I6).
    """

    host: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.host}/{self.incarnation}"


class Configuration(Struct, array_like=True, frozen=True):
    """Version `version` of a partition's configuration.

    :ivar voters: whose majority is the write quorum; the first is the one that should be primary when all are well
    :ivar idle: idle secondaries: they get the log, and count in no quorum (Ongaro 2014, §4.2.1)
    :ivar leaving: host whose replica goes once the one that is being built votes; nothing but a note to whoever decides about moves
    """

    version: int
    voters: tuple[Member, ...]
    idle: tuple[Member, ...] = ()
    leaving: str = ""

    def __str__(self) -> str:
        notes = [f"idle {', '.join(map(str, self.idle))}"] if self.idle else []
        notes += [f"{self.leaving} leaves"] if self.leaving else []
        return f"version {self.version}: {', '.join(map(str, self.voters))}" + "".join(f"; {note}" for note in notes)

    @property
    def write_quorum(self) -> int:
        return len(self.voters) // 2 + 1

    @property
    def members(self) -> tuple[Member, ...]:
        return self.voters + self.idle

    def on_host(self, host: str) -> Member | None:
        """The replica on `host`, or None."""
        return next((member for member in self.members if member.host == host), None)

    # -- what may follow

    def with_idle(self, member: Member, leaving: str = "") -> Configuration:
        """One more idle secondary.

        :param leaving: the host whose place it is to take; empty: none
        """
        return Configuration(self.version + 1, self.voters, (*self.idle, member), leaving)

    def promoted(self, member: Member) -> Configuration:
        """An idle secondary becomes a voter."""
        idle = tuple(other for other in self.idle if other != member)
        return Configuration(self.version + 1, (*self.voters, member), idle, self.leaving)

    def without(self, member: Member) -> Configuration:
        """One replica less."""
        voters = tuple(other for other in self.voters if other != member)
        idle = tuple(other for other in self.idle if other != member)
        # Who was to leave has left, or nothing is left that could take the place.
        is_over = member.host == self.leaving or (member in self.idle and not idle)
        return Configuration(self.version + 1, voters, idle, "" if is_over else self.leaving)

    def replaced(self, lost: Member, successor: Member) -> Configuration:
        """A replica that has lost its data stops counting; its successor on the same host is to be built."""
        smaller = self.without(lost)
        return Configuration(self.version + 1, smaller.voters, (*smaller.idle, successor), self.leaving)

    def reordered(self, first: Member) -> Configuration:
        """The same voters, with another one as the preferred primary."""
        return Configuration(self.version + 1, (first, *(other for other in self.voters if other != first)), self.idle, self.leaving)

    def refusal_of(self, new: Configuration) -> str:
        """Why `new` may not follow this one; empty if it may."""
        if new.version != self.version + 1:
            return f"version {new.version} does not follow version {self.version}"
        if len({member.host for member in new.members}) != len(new.members):
            return "two replicas would be on one host"
        before, after = dict.fromkeys(self.voters), dict.fromkeys(new.voters)
        if len(after) != len(new.voters):
            return "a replica is named twice"
        if not after:
            return "nobody would vote"
        added = [member for member in after if member not in before]
        removed = [member for member in before if member not in after]
        if len(added) + len(removed) > 1:
            names = ", ".join(map(str, (*added, *removed)))
            return f"more than one replica would change its vote at a time: {names}"
        if added and added[0] not in self.idle:
            return f"{added[0]} would vote without having been an idle secondary"
        return ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Configuration).decode


def encode_configuration(configuration: Configuration) -> bytes:
    """Its bytes in a log entry."""
    return _encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """The configuration in `data`.

    :raises CorruptLogError: it is none
    """
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        raise CorruptLogError(f"a configuration entry has the wrong form: {error}") from None


def first_configuration(partition: int, hosts: tuple[str, ...], replica_set_size: int) -> Configuration:
    """The configuration a new grid gives `partition`: a function of its arguments alone.

    Preferred primaries go round the hosts; who comes second changes from round to round, so that the primaries of a host that dies are
    spread over the others.
    """
    count = len(hosts)
    first = (partition - 1) % count
    others = [(first + offset) % count for offset in range(1, count)]
    turn = (partition - 1) // count % len(others) if others else 0
    chosen = [first, *(others[turn:] + others[:turn])][:replica_set_size]
    return Configuration(1, tuple(Member(hosts[index], 1) for index in chosen))
