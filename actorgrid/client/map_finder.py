"""Asks hosts what they know of the partition map: at most one question in flight, and never the same silent host for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actorgrid.settings import ClientSettings
from actorgrid.wire.framing import frame
from actorgrid.wire.messages import GetMap, encode

if TYPE_CHECKING:
    from actorgrid.client.link import Link

#: A host that has not answered by then is busy or stuck; another one is asked.
_ANSWER_TIMEOUT_S = 0.25
#: A failover is over within tens of milliseconds on the other hosts: to ask less often than this would be what the caller waits for.
_PAUSE_MAX_S = 0.1
#: After so long without a question, past failures say nothing.
_FORGET_S = 5.0


class MapFinder:
    """Decides whom to ask for the map, and when.

    Whoever needs newer entries calls `ask` as often as it likes; questions are spaced by a backoff, from 5..10 ms to `_PAUSE_MAX_S`
    with the default settings, that ends when something new comes.
    """

    def __init__(self, settings: ClientSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._asked: Link | None = None
        self._next_at = 0.0
        self._fruitless = 0
        self._turn = 0

    def is_due(self, now: float) -> bool:
        """Whether `ask` would ask: no question is in flight, and none came to nothing a moment ago."""
        return now >= self._next_at

    def ask(self, links: Sequence[Link], known_version: int, now: float, *, prefer: Link | None = None) -> None:
        """Ask one of `links` unless a question is in flight or one came to nothing a moment ago.

        Where no host is connected, connecting to one is the question: its `Welcome` carries the map.

        :param prefer: a host that likely knows more, such as the one that has just refused a call
        """
        if now < self._next_at or not links:
            return
        if now > self._next_at + _FORGET_S:
            self._fruitless = 0
        self._turn += 1
        order = [links[(self._turn + i) % len(links)] for i in range(len(links))]
        writable = [link for link in order if link.is_writable]
        link = prefer if prefer is not None and prefer.is_writable and self._fruitless == 0 else next(iter(writable), None)
        if link is None or (len(writable) == 1 and self._fruitless > 1):
            # Nobody is connected, or the only one that is does not know more: go and find another.
            for other in order:
                if other.connection is None and not other.is_connecting:
                    other.ensure_connected()
                    break
        if link is not None and link.connection is not None:
            link.connection.write([frame(encode(GetMap(known_version)))])
            self._asked = link
            self._next_at = now + _ANSWER_TIMEOUT_S
        else:
            self._next_at = now + self._pause_s()
        self._fruitless += 1

    def on_answer(self, now: float, *, is_newer: bool) -> None:
        """A map came, asked for or not; `is_newer`: it told something that was not known."""
        self._asked = None
        if is_newer:
            self._fruitless = 0
            self._next_at = 0.0
        else:
            self._next_at = now + self._pause_s()

    def on_lost(self, link: Link) -> None:
        """A connection has ended: what the hosts did not know a moment ago, they may know now."""
        if self._asked is None or self._asked is link:
            self._asked = None
            self._fruitless = 0
            self._next_at = 0.0

    def _pause_s(self) -> float:
        doubled = self._settings.retry_first_s * 2.0 ** min(self._fruitless, 30)
        return min(doubled, self._settings.retry_max_s, _PAUSE_MAX_S) * self._rng.uniform(0.5, 1.0)
