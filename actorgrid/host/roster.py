"""Which hosts the grid has, as one host knows them, and how a new one becomes known.

The manager keeps the list in the system partition and sends it to every host whose list is older; a host remembers the newest one it had.
Until there is one (version 0), the hosts are those that this one was told at start. Addresses that a host was told at start are newer than
remembered ones: a grid that is started again may have other ports.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from actorgrid import ambient
from actorgrid.ambient import new_client_id
from actorgrid.client.admin import ask
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError, RequestError
from actorgrid.settings import WireSettings
from actorgrid.wire.messages import HostInfo

logger = logging.getLogger(__name__)

JOIN_FIRST_S: Final = 0.25
JOIN_MAX_S: Final = 2.0
JOIN_TIMEOUT_S: Final = 5.0


class StoredRoster(Struct, array_like=True):
    """The durable form, and what the manager sends."""

    version: int
    hosts: list[HostInfo]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(StoredRoster).decode


class RosterOwner(Protocol):
    """What hears of changes."""

    def roster_changed(self, stored: bytes) -> None:
        """Another list counts from now on; remember it."""


class Roster:
    """The hosts of the grid.

    :param told: the hosts that this one was told at start, itself among them
    :param stored: what `RosterOwner.roster_changed` was given last, or None
    :ivar version: of the manager's list; 0: there is none yet
    :ivar hosts: by name
    """

    def __init__(self, me: str, told: Iterable[HostInfo], stored: bytes | None, owner: RosterOwner) -> None:
        self._me = me
        self._rng = ambient.new_random()  # jitter
        self._told = {info.name: info for info in told}
        self._owner = owner
        self.version = 0
        self.hosts = dict(self._told)
        if stored is not None:
            known = _decode(stored)
            self.version = known.version
            self.hosts = {info.name: self._told.get(info.name, info) for info in known.hosts}

    @property
    def others(self) -> list[HostInfo]:
        """All but this host."""
        return [info for info in self.hosts.values() if info.name != self._me]

    @property
    def infos(self) -> list[HostInfo]:
        """All hosts, this one included whether it is known to the others or not."""
        me = self._told[self._me]
        infos = [me if info.name == me.name else info for info in self.hosts.values()]
        return infos if me.name in self.hosts else [*infos, me]

    def adopt(self, version: int, hosts: list[HostInfo]) -> bool:
        """The manager's list came; whether it is newer than the one known.

        :raises RequestError: it has no hosts, or names one twice
        """
        if version <= self.version:
            return False
        by_name = {info.name: info for info in hosts}
        if not by_name or len(by_name) < len(hosts):
            raise RequestError(f"a list of hosts without hosts, or with one twice: {', '.join(info.name for info in hosts):.300}")
        logger.info("hosts of the grid version=%d hosts=%s", version, ",".join(by_name))
        self.version, self.hosts = version, by_name
        self._owner.roster_changed(_encode(StoredRoster(version, hosts)))
        return True

    async def join(
        self,
        *,
        cluster_id: str,
        node: str,
        zone: str,
        wire: WireSettings,
        is_alone: Callable[[], bool],
        credentials: Credentials | None = None,
    ) -> None:
        """Ask the other hosts to let this one be of the grid: once in every life, and again when none of them speaks with it. Never ends.

        A host that was forgotten is not told so, and what it remembers names it still.
        """
        me = self._told[self._me]
        arguments = {"host": me.name, "address": me.address, "port": me.port, "node": node, "zone": zone}
        is_in = False
        delay_s = JOIN_FIRST_S
        while True:
            await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            if is_in and not is_alone():
                delay_s = JOIN_MAX_S
                continue
            delay_s = min(2 * delay_s, JOIN_MAX_S)
            is_in = False
            for info in {**self.hosts, **self._told}.values():
                if info.name == self._me:
                    continue
                try:
                    answer = await ask(
                        info.address,
                        info.port,
                        "join",
                        arguments,
                        client_id=new_client_id(),
                        cluster_id=cluster_id,
                        wire=wire,
                        timeout_s=JOIN_TIMEOUT_S,
                        credentials=credentials,
                    )
                    self.adopt(int(answer["version"]), parse_hosts(answer["hosts"]))
                except (ActorGridError, LookupError, TypeError, ValueError) as error:
                    logger.debug("not joined yet asked=%s error=%s", info.name, error)
                else:
                    is_in = True
                    break
            if not self.others:
                is_in = True  # a grid of one host has nobody to ask


def parse_hosts(value: Any) -> list[HostInfo]:
    """Hosts in the arguments of an order.

    :raises RequestError: they are none
    """
    try:
        return msgspec.convert(value, list[HostInfo])
    except msgspec.ValidationError as error:
        raise RequestError(f"hosts do not have their form: {error}") from None
