"""A host's part in placement: it reports, carries out orders, and is the manager while the system partition's primary is here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from actorgrid import ambient
from actorgrid.errors import ActorGridError, DeadlineExceededError, HostUnavailableError, RequestError
from actorgrid.host.bootstrap import SYSTEM_PARTITION
from actorgrid.host.manager import VERBS as MANAGER_VERBS
from actorgrid.host.manager import Manager
from actorgrid.host.orders import Orders, OrdersOwner
from actorgrid.host.partition import wall_clock_ms
from actorgrid.host.peers import Peers
from actorgrid.host.questions import Questions
from actorgrid.host.recovery import QUESTIONS as RECOVERY_QUESTIONS
from actorgrid.host.recovery import Recovery, RecoveryOwner
from actorgrid.host.reports import Capacity, HostReport, Reporter
from actorgrid.host.roster import Roster, parse_hosts
from actorgrid.wire.messages import HostInfo
from placement import Limits

logger = logging.getLogger(__name__)

#: What the manager gets to answer an operator who asked another host.
OPERATE_TIMEOUT_S: Final = 8.0
LEAVE_LOOK_S: Final = 0.05
#: What operators may ask of any host.
VERBS: Final = (*MANAGER_VERBS, "recover")


class PlacingOwner(Protocol):
    """What placement needs of its host."""

    state: str

    def primary_host_of(self, partition: int) -> str:
        """The host of the newest primary that was heard of; empty if none was."""


class PlacedReplicas(OrdersOwner, RecoveryOwner, Protocol):
    """What placement needs of the replicas of its host."""

    def replica_bytes(self) -> int:
        """About how large one replica is."""


class Placing:
    """Reports, orders, questions and the manager of one host.

    :param capacity: what this host may be given
    :param roster: the hosts of the grid
    :param failed: what to do if an order breaks an invariant
    """

    def __init__(
        self,
        owner: PlacingOwner,
        replicas: PlacedReplicas,
        peers: Peers,
        *,
        me: str,
        node: str,
        zone: str,
        capacity: Capacity,
        roster: Roster,
        replica_set_size: int,
        partition_count: int,
        limits: Limits,
        failed: Callable[[Exception], None],
    ) -> None:
        self.partitions = replicas.partitions
        self.questions = Questions(peers, self._answer)
        self._owner = owner
        self._replicas = replicas
        self._me = me
        self._roster = roster
        self._failed = failed
        self._reporter = Reporter(me, node, zone, capacity)
        self._orders = Orders(replicas, self.questions)
        self._manager = Manager(self, me, limits, replica_set_size=replica_set_size, partition_count=partition_count, date_ms=wall_clock_ms)
        self.recovery = Recovery(replicas, me, lambda: [info.name for info in roster.infos], peers.connected, self.ask_host)
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
        await self.recovery.close()
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
        if verb in RECOVERY_QUESTIONS:
            return await self.recovery.answer(verb, arguments)
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
            self.partitions.values(),
            roster_version=self._roster.version,
            bytes_each=self._replicas.replica_bytes(),
            state=owner.state,
        )

    async def ask_host(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        if host != self._me:
            return await self.questions.ask(host, verb, arguments, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(host, verb, arguments)
        except TimeoutError:
            raise DeadlineExceededError(f"{verb} took more than {timeout_s:g} s") from None

    async def leave(self, node: str, grace_s: float) -> bool:
        """Ask for the intent ``restart`` of this host's own node, and wait until it is safe to go; whether it is."""
        deadline_s = ambient.monotonic() + grace_s
        arguments = {"node": node, "intent": "restart", "by": self._me, "deadline_s": grace_s}
        verb, state, why = "drain", "", ""
        while ambient.monotonic() < deadline_s and state != "done":
            try:
                async with asyncio.timeout(deadline_s - ambient.monotonic()):
                    row = await self.operate(verb, arguments)
                verb, state, why = "drain_status", row["state"], ""
                if state == "none":  # somebody has taken it back: then it ends as it is
                    break
            except RequestError as error:  # more is wanted of the node already, and whoever wants that looks after it
                why = str(error)
                break
            except (ActorGridError, TimeoutError) as error:
                why = str(error)
            await asyncio.sleep(LEAVE_LOOK_S)
        logger.info(
            "host leaves node=%s is_safe=%s waited_s=%.2f why=%s", node, state == "done", grace_s - deadline_s + ambient.monotonic(), why
        )
        return state == "done"

    # -- for operators

    async def operate(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer an operator, or let the manager do it, wherever it is.

        :raises HostUnavailableError: nobody knows where it is
        :raises ActorGridError: what the manager answered
        """
        if verb == "recover":
            return await self.recovery.recover(arguments)
        manager = self._owner.primary_host_of(SYSTEM_PARTITION)
        if not manager:
            raise HostUnavailableError("the system partition has no primary, so there is no placement manager now", retry_after_s=0.2)
        return await self.ask_host(manager, "operate", {"verb": verb, "arguments": arguments}, OPERATE_TIMEOUT_S)

    @property
    def moves_total(self) -> int:
        """Orders given as manager in this life."""
        return self._manager.moves.total

    @staticmethod
    def knows(verb: str) -> bool:
        """Whether `verb` is one that `operate` answers."""
        return verb in VERBS
