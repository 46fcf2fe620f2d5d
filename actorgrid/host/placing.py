"""A host's part in placement: it reports, carries out orders, and is the manager while the system partition's primary is here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from actorgrid.errors import DeadlineExceededError, HostUnavailableError, RequestError
from actorgrid.host.bootstrap import SYSTEM_PARTITION
from actorgrid.host.manager import VERBS, Manager
from actorgrid.host.orders import Orders
from actorgrid.host.partition import HostedPartition, wall_clock_ms
from actorgrid.host.peers import Peers
from actorgrid.host.questions import Questions
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.host.reports import HostReport, Reporter
from actorgrid.host.roster import Roster, parse_hosts
from actorgrid.wire.messages import HostInfo
from placement import Limits

#: What the manager gets to answer an operator who asked another host.
OPERATE_TIMEOUT_S: Final = 8.0


class PlacingOwner(Protocol):
    """What placement needs of its host."""

    partitions: dict[int, HostedPartition]
    state: str

    def next_incarnation_of(self, partition: int) -> int:
        """The lowest replica incarnation that may be built here."""

    def drop_replica(self, shell: ReplicaShell, why: str) -> None:
        """Remove a replica that is no member any more, with its data."""

    def replica_bytes(self) -> int:
        """About how large one replica is."""

    def primary_host_of(self, partition: int) -> str:
        """The host of the newest primary that was heard of; empty if none was."""


class Placing:
    """Reports, orders, questions and the manager of one host.

    :param roster: the hosts of the grid
    :param failed: what to do if an order breaks an invariant
    """

    def __init__(
        self,
        owner: PlacingOwner,
        peers: Peers,
        *,
        me: str,
        node: str,
        zone: str,
        roster: Roster,
        replica_set_size: int,
        partition_count: int,
        limits: Limits,
        failed: Callable[[Exception], None],
    ) -> None:
        self.partitions = owner.partitions
        self.questions = Questions(peers, self._answer)
        self._owner = owner
        self._me = me
        self._roster = roster
        self._failed = failed
        self._reporter = Reporter(me, node, zone)
        self._orders = Orders(owner, self.questions)
        self._manager = Manager(self, me, limits, replica_set_size=replica_set_size, partition_count=partition_count, date_ms=wall_clock_ms)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Be the manager, whenever the system partition's primary is here."""
        self._task = asyncio.get_running_loop().create_task(self._manager.run(), name="placement manager")

    async def stop(self) -> None:
        """Give and take no more orders."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self.questions.close()

    async def _answer(self, host: str, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer a question of `host`, which may be this one."""
        if verb == "report":
            return msgspec.to_builtins(self.own_report())
        if verb == "roster":
            version = arguments.get("version")
            if not isinstance(version, int):
                raise RequestError(f"version must be a number, got {version!r:.100}")
            return {"adopted": self._roster.adopt(version, parse_hosts(arguments.get("hosts")))}
        if verb == "operate":
            return await self._manager.operate(str(arguments.get("verb")), dict(arguments.get("arguments", {})))
        try:
            return await self._orders.carry_out(verb, arguments)
        except AssertionError as error:  # a broken invariant of a replica: this host does no more harm
            self._failed(error)
            raise HostUnavailableError(f"{verb}: {error}") from None

    # -- for the manager (`manager.ManagerOwner`)

    def host_infos(self) -> list[HostInfo]:
        return self._roster.infos

    def own_report(self) -> HostReport:
        owner = self._owner
        return self._reporter.report(
            owner.partitions.values(),
            roster_version=self._roster.version,
            bytes_each=owner.replica_bytes(),
            is_stopping=owner.state == "stopping",
        )

    async def ask_host(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        if host != self._me:
            return await self.questions.ask(host, verb, arguments, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(host, verb, arguments)
        except TimeoutError:
            raise DeadlineExceededError(f"{verb} took more than {timeout_s:g} s") from None

    # -- for operators

    async def operate(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer an operator, or let the manager do it, wherever it is.

        :raises HostUnavailableError: nobody knows where it is
        :raises ActorGridError: what the manager answered
        """
        manager = self._owner.primary_host_of(SYSTEM_PARTITION)
        if not manager:
            raise HostUnavailableError("the system partition has no primary, so there is no placement manager now", retry_after_s=0.2)
        return await self.ask_host(manager, "operate", {"verb": verb, "arguments": arguments}, OPERATE_TIMEOUT_S)

    @property
    def moves_total(self) -> int:
        """Orders given as manager in this life."""
        return self._manager.moves_total

    @staticmethod
    def knows(verb: str) -> bool:
        """Whether `verb` is one that the manager answers."""
        return verb in VERBS
