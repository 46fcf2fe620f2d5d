"""Who is alive, as one host sees it: support given and received, and who says that it is primary of what.

Liveness is a matter of host pairs, not of partitions, so that an idle partition costs nothing. The rules are those of
``spec/Leases.tla`` (named at each method); times are this host's monotonic clock.

- *Given*: a beat of host A makes this host, B, support A's incarnation for `support_ns` from its receipt. A replica on B that is
  fortified by A neither votes for another nor campaigns before that has run out. A beat that comes after it has run out begins
  another support, with a higher number.
- *Received*: an answer says under which number B supports; A counts from when it sent the beat, and `drift` less, so that A always stops
  to rely on it before B stops to keep it (I8, I15).
- *Announced*: beats say of which partitions a host is primary in which epoch. Nothing about safety hangs on it: it resets election
  timers and tells everybody where calls go.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

MS: Final = 1_000_000
S: Final = 1_000 * MS


class Times(NamedTuple):
    """The times that must stand in this order, in ns: beat < lease < election (design.md, section 14)."""

    beat_ns: int = 250 * MS
    support_ns: int = 1_500 * MS
    drift: float = 0.1
    election_low_ns: int = 2_000 * MS
    election_high_ns: int = 2_500 * MS
    #: How far apart the secondaries of a primary that is known dead try: time for one to win before the next begins.
    stagger_ns: int = 60 * MS
    resend_ns: int = 1_000 * MS
    swap_ns: int = 1_000 * MS

    @property
    def lease_ns(self) -> int:
        """What a primary counts from the sending of a beat: shorter than the support by the drift margin."""
        return int(self.support_ns * (1 - self.drift))


class HostLife(NamedTuple):
    """One run of one host's process."""

    host: str
    incarnation: int


class Given(Struct, gc=False):
    """Support given to one life of a host."""

    number: int
    until_ns: int


class Received(Struct, gc=False):
    """Support received from a host: under `number`, and counted as this host may rely on it."""

    number: int
    until_ns: int


class Announcement(Struct, gc=False):
    """What a host says it is primary of: partition -> epoch. `version` grows with every change in one life of the host."""

    incarnation: int
    version: int
    primaries: dict[int, int]


class Liveness:
    """The view of one host.

    :param incarnation: of this host; numbers of support contain it, so that those of a later life are higher
    :param quiet: whether this host may have made promises in an earlier life that still hold: then it neither votes nor
        campaigns for one `support_ns` (Restart)
    """

    def __init__(self, me: str, incarnation: int, now_ns: int, times: Times, *, quiet: bool) -> None:
        self.me = me
        self.incarnation = incarnation
        self.times = times
        self.quiet_until_ns = now_ns + times.support_ns if quiet else now_ns
        self._given: dict[HostLife, Given] = {}
        self._lives: dict[str, int] = {}
        self._last_number = incarnation << 32
        self._heard_ns: dict[str, int] = {}
        self._beaten_ns: dict[str, int] = {}
        self._received: dict[str, Received] = {}
        self._dead: dict[HostLife, None] = {}
        self._announced: dict[str, Announcement] = {}
        #: partition -> (epoch, host) of the newest primary heard of.
        self.primaries: dict[int, tuple[int, str]] = {}
        #: Counts the changes of `primaries`.
        self.primaries_version = 0

    # -- lives

    def life_of(self, host: str) -> int:
        """The newest incarnation of `host` that was heard; 0 if none."""
        return self._lives.get(host, 0)

    def heard(self, host: str, now_ns: int) -> None:
        """Something of the newest life of `host` arrived."""
        self._heard_ns[host] = now_ns

    def beaten_ns(self, host: str) -> int:
        """When the last beat of `host` arrived; 0: never. A host whose disk does not answer sends none, and may answer those of others."""
        return self._beaten_ns.get(host, 0)

    def heard_ns(self, host: str) -> int:
        """When `host` was last heard; 0: never."""
        return self._heard_ns.get(host, 0)

    def met(self, host: str, incarnation: int) -> None:
        """`host` shook hands in this life."""
        if incarnation > self._lives.get(host, 0):
            self._lives[host] = incarnation
            self._received.pop(host, None)
            self._announced.pop(host, None)

    def died(self, host: str, incarnation: int) -> None:
        """The process of this very life was seen to end by whoever supervises it. Never from silence."""
        newest = self._lives
        self._dead = {life: None for life in self._dead if life.incarnation >= newest.get(life.host, 0) or life in self._given}
        self._dead[HostLife(host, incarnation)] = None

    def is_dead(self, host: str, incarnation: int) -> bool:
        return HostLife(host, incarnation) in self._dead

    # -- support given (BeatReceived)

    def beat_received(self, host: str, incarnation: int, now_ns: int) -> int:
        """Support `host` from now on, and return the number of the support.

        0: none is given, since this life is known to be over or was followed by another.
        """
        self.met(host, incarnation)
        life = HostLife(host, incarnation)
        if incarnation < self._lives[host] or life in self._dead:
            return 0
        self._heard_ns[host] = self._beaten_ns[host] = now_ns
        given = self._given.get(life)
        if given is None or given.until_ns <= now_ns:
            self._last_number += 1
            self._given[life] = given = Given(self._last_number, 0)
            self._forget_lives(now_ns)
        given.until_ns = now_ns + self.times.support_ns
        return given.number

    def _forget_lives(self, now_ns: int) -> None:
        self._given = {life: given for life, given in self._given.items() if given.until_ns > now_ns or given.until_ns == 0}

    def support_number(self, host: str, incarnation: int, now_ns: int) -> int:
        """The number under which this host supports that life of `host` now; 0 if it does not."""
        given = self._given.get(HostLife(host, incarnation))
        return given.number if given is not None and given.until_ns > now_ns else 0

    def supports_until_ns(self, host: str, incarnation: int) -> int:
        """Until when that life of `host` is supported; 0 if it never was."""
        given = self._given.get(HostLife(host, incarnation))
        return given.until_ns if given is not None else 0

    # -- support received (SupportAnswered)

    def support_answered(self, host: str, number: int, sent_ns: int, now_ns: int) -> bool:
        """`host` answered the beat that was sent at `sent_ns`.

        :return: whether the number is another than before, so that its replicas must fortify anew
        """
        self._heard_ns[host] = now_ns
        if number == 0:
            return False
        known = self._received.get(host)
        until_ns = self._lease_end_ns(sent_ns, now_ns)
        if known is None or number > known.number:
            self._received[host] = Received(number, until_ns)
            return True
        if number == known.number and until_ns > known.until_ns:
            known.until_ns = until_ns
        return False

    def _lease_end_ns(self, sent_ns: int, now_ns: int) -> int:
        return sent_ns + self.times.lease_ns

    def received(self, host: str) -> Received | None:
        """The support that `host` gives to this one."""
        return self._received.get(host)

    # -- announcements

    def announced(self, host: str, announcement: Announcement) -> bool:
        """`host` says what it is primary of; whether anything is new in that."""
        known = self._announced.get(host)
        if known is not None and (known.incarnation, known.version) >= (announcement.incarnation, announcement.version):
            return False
        if announcement.incarnation < self._lives.get(host, 0):
            return False
        self._announced[host] = announcement
        changed = False
        for partition, epoch in announcement.primaries.items():
            changed |= self.is_primary(partition, epoch, host)
        return changed

    def is_primary(self, partition: int, epoch: int, host: str) -> bool:
        """`host` is primary of `partition` in `epoch`; whether that is news."""
        known = self.primaries.get(partition)
        if known is not None and known[0] >= epoch:
            return False
        self.primaries[partition] = (epoch, host)
        self.primaries_version += 1
        return True

    def announced_version(self, host: str) -> int:
        """The newest version heard of the newest life of `host`."""
        known = self._announced.get(host)
        return known.version if known is not None and known.incarnation == self._lives.get(host) else 0

    def vouches(self, host: str, incarnation: int, partition: int, epoch: int) -> bool:
        """Whether that life of `host` says it is primary of `partition` in `epoch` or a later one."""
        known = self._announced.get(host)
        return known is not None and known.incarnation == incarnation and known.primaries.get(partition, -1) >= epoch
