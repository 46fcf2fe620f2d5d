"""The loss of a write quorum for good, and the operator's decision to go on with what is left (design.md, section 9).

A partition that has lost its quorum stops and never guesses. Only ``recover`` with its data loss accepted begins it anew: from the one
replica that has the most, alone, under a higher data-loss number (`actorgrid.replication.lineage`). No manager is needed for that, the
system partition may be the one that is lost: the host that is asked looks at all replicas that answer, and decides.

What belongs to a lower lineage leaves duty when it hears of the higher one. Every host that has replicas of one tells all it is connected
to, until they say that they have heard it; who has just started votes for nobody for longer than that takes.
Replicas that were only cut off, and have their quorum elsewhere, serve on until then. That is why it is refused while too many answer,
and why the answer names who does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

import msgspec

from actorgrid import ambient
from actorgrid.errors import ActorGridError, HostUnavailableError, ProtocolError, RequestError
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.lineage import LOTS, LSN_GAP, data_loss_number, first_epoch_after_loss, lineage

logger = logging.getLogger(__name__)

LOOK_TIMEOUT_S: Final = 2.0
BEGIN_TIMEOUT_S: Final = 5.0
PARTITIONS_MAX: Final = 65_537

AskHost = Callable[[str, str, dict[str, Any], float], Awaitable[Any]]


class Standing(msgspec.Struct, array_like=True):
    """How far one replica is.

    :ivar epoch: that it is in; only `last_epoch`, that of its data, says which lineage it is of: any epoch may be heard of and adopted
    :ivar voters: by the newest configuration in its log
    """

    partition: int
    incarnation: int
    epoch: int
    last_epoch: int
    last_lsn: int
    serves: bool
    version: int
    voters: list[Member]


class RecoveryOwner(Protocol):
    """What recovery needs of its host."""

    shells: dict[int, ReplicaShell]
    has_begun: bool
    beginning: dict[int, Member]  # partitions that are being begun anew here, with the new replica

    def next_incarnation_of(self, partition: int) -> int:
        """The lowest replica incarnation that may be built here."""

    async def begin_anew(self, shell: ReplicaShell, configuration: Configuration, lsn: int, epoch: int) -> None:
        """Put a new replica in the place of `shell`, with its data; who is cancelled while waiting for it stops nothing."""

    def retire(self, shell: ReplicaShell, why: str) -> None:
        """This replica leaves duty for good."""


class Recovery:
    """Looks, decides, and carries out, for one host.

    :param hosts: the names of all hosts of the grid, as they are now
    :param connected: those that a connection stands to
    :param ask_host: asks one of them, this one too
    """

    def __init__(
        self, owner: RecoveryOwner, me: str, hosts: Callable[[], Iterable[str]], connected: Callable[[], Iterable[str]], ask_host: AskHost
    ) -> None:
        self._owner = owner
        self._me = me
        self._hosts = hosts
        self._connected = connected
        self._ask_host = ask_host
        self._told: dict[str, dict[int, int]] = {}  # by host: the lineages that it has heard of on this connection
        self._telling: dict[str, asyncio.Task[None]] = {}

    # -- for the operator

    async def recover(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Begin partitions anew that have lost their write quorum; or, without ``accept_data_loss``, only say what would be done.

        ``partitions``: their numbers, or empty for all that have lost it. The answer has a row for each.

        :raises RequestError: the arguments are wrong
        """
        wanted = arguments.get("partitions", [])
        if not isinstance(wanted, list) or len(wanted) > PARTITIONS_MAX or not all(type(each) is int and each >= 0 for each in wanted):
            raise RequestError(f"partitions must be a list of partition numbers, got {wanted!r:.100}")
        accepted = arguments.get("accept_data_loss", False) is True
        found, silent = await self._look()
        by_partition: dict[int, list[tuple[str, Standing]]] = {partition: [] for partition in wanted}
        for host, standing in found:
            if not wanted or standing.partition in by_partition:
                by_partition.setdefault(standing.partition, []).append((host, standing))
        rows = []
        for partition, standings in sorted(by_partition.items()):
            why_not = _why_not(partition, standings)
            if not why_not:
                rows.append(await self._recover_one(partition, standings, accepted=accepted))
            elif wanted:
                rows.append({"partition": partition, "state": "refused", "why": why_not})
        return {"partitions": rows, "silent_hosts": silent, "accepted": accepted}

    async def _look(self) -> tuple[list[tuple[str, Standing]], list[str]]:
        """The replicas of all hosts that answer, and the hosts that do not."""
        names = list(self._hosts())
        asked = {name: asyncio.create_task(self._standings_of(name)) for name in names}
        await asyncio.wait(asked.values())
        found: list[tuple[str, Standing]] = []
        silent = []
        for name, task in asked.items():
            standings = task.result()
            if standings is None:
                silent.append(name)
            else:
                found += [(name, standing) for standing in standings]
        return found, silent

    async def _standings_of(self, host: str) -> list[Standing] | None:
        try:
            answer = await self._ask_host(host, "standings", {}, LOOK_TIMEOUT_S)
            return msgspec.convert(answer, list[Standing])
        except (ActorGridError, msgspec.ValidationError) as error:
            logger.warning("its replicas are not known host=%s error=%s", host, error)
            return None

    async def _recover_one(self, partition: int, standings: list[tuple[str, Standing]], *, accepted: bool) -> dict[str, Any]:
        host, best = max(standings, key=lambda pair: _rank(*pair))
        left = {(name, standing.incarnation) for name, standing in standings}
        row: dict[str, Any] = {
            "partition": partition,
            "state": "possible",
            "host": host,
            "last_lsn": best.last_lsn,
            "lost": [f"{name}/{incarnation}" for name, incarnation in best.voters if (name, incarnation) not in left],
            "others": {name: standing.last_lsn for name, standing in standings if name != host},
        }
        if not accepted:
            return row
        arguments = {
            "partition": partition,
            "incarnation": best.incarnation,
            "epoch": max(standing.epoch for _, standing in standings),
            "last_lsn": best.last_lsn,
            "version": max(standing.version for _, standing in standings) + 1,
        }
        try:
            answer = await self._ask_host(host, "begin_anew", arguments, BEGIN_TIMEOUT_S)
        except ActorGridError as error:
            return row | {"state": "failed", "why": str(error)}
        return row | {"state": "recovered", "data_loss_number": data_loss_number(int(answer["epoch"]))}

    # -- for the host that coordinates

    async def answer(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer a question of the host that coordinates, or of one that knows of a loss.

        :raises RequestError: it does not fit what is here
        :raises HostUnavailableError: this host has just started, and does not know yet what it has
        """
        owner = self._owner
        if not owner.has_begun and owner.shells:
            raise HostUnavailableError(f"host {self._me} is starting", retry_after_s=0.1)
        if verb == "standings":
            # What is being begun anew counts as served: nobody else may begin it too.
            begun = [Standing(number, new.incarnation, 0, 0, 0, True, 0, [new]) for number, new in owner.beginning.items()]
            return [msgspec.to_builtins(each) for each in (*map(_standing_of, owner.shells.values()), *begun)]
        if verb == "begun_anew":
            return self._hear(arguments)
        try:
            partition, epoch, incarnation, last_lsn, version = (
                int(arguments[name]) for name in ("partition", "epoch", "incarnation", "last_lsn", "version")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"{verb}: its arguments have the wrong form: {error!r}") from None
        shell = owner.shells.get(partition)
        if shell is None or shell.me.incarnation != incarnation or shell.core.last_lsn < last_lsn or shell.core.epoch > epoch:
            raise RequestError(f"the replica of partition {partition} on {self._me} is not any more what was seen of it")
        core = shell.core
        if core.serving:
            raise RequestError(f"partition {partition} is served by {self._me}")
        member = Member(self._me, owner.next_incarnation_of(partition))
        anew = first_epoch_after_loss(epoch, int.from_bytes(ambient.random_bytes(2), "big") % LOTS)
        logger.error(
            "data loss accepted partition=%d data_loss_number=%d begins_with=%s of=%s last_lsn=%d",
            partition, data_loss_number(anew), member, core.configuration, core.last_lsn,
        )  # fmt: skip
        await owner.begin_anew(shell, Configuration(version, (member,)), core.last_lsn + LSN_GAP, anew)
        return {"epoch": anew}

    def _hear(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Somebody has partitions of these lineages: what is here of lower ones leaves duty."""
        try:
            lineages = msgspec.convert(arguments.get("lineages"), dict[int, int], strict=False)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"begun_anew: its arguments have the wrong form: {error}") from None
        for partition, told in lineages.items():
            shell = self._owner.shells.get(partition)
            if shell is not None and _lineage_of(shell) < told:
                self._owner.retire(shell, f"the partition was begun anew without it, in lineage {told:#x}")
        return {}

    # -- who comes back is told

    def tick(self) -> None:
        """Tell the hosts that are connected what they have not heard yet of the lineages here. To be called several times a second."""
        own = {partition: found for partition, shell in self._owner.shells.items() if (found := _lineage_of(shell))}
        if not own:
            return
        for host in self._connected():
            told = self._told.get(host, {})
            news = {partition: found for partition, found in own.items() if told.get(partition) != found}
            if news and host not in self._telling:
                self._telling[host] = asyncio.create_task(self._tell(host, news), name=f"tell {host} of data loss")

    async def _tell(self, host: str, news: dict[int, int]) -> None:
        try:
            await self._ask_host(host, "begun_anew", {"lineages": news}, LOOK_TIMEOUT_S)
        except ActorGridError as error:  # the next tick tries again
            logger.info("not told of data loss yet host=%s error=%s", host, error)
        else:
            self._told.setdefault(host, {}).update(news)
        finally:
            del self._telling[host]

    def peer_lost(self, host: str) -> None:
        """The connection to `host` has ended: it may be another process next time, with an older disk."""
        self._told.pop(host, None)

    async def close(self) -> None:
        """Tell nobody any more."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


#: What hosts ask each other.
QUESTIONS: Final = ("standings", "begin_anew", "begun_anew")


def _lineage_of(shell: ReplicaShell) -> int:
    return lineage(shell.core.log.last_epoch)


def _standing_of(shell: ReplicaShell) -> Standing:
    core = shell.core
    configuration = core.configuration
    return Standing(
        shell.partition,
        shell.me.incarnation,
        core.epoch,
        core.log.last_epoch,
        core.last_lsn,
        core.serving,
        configuration.version,
        list(configuration.voters),
    )


def _rank(host: str, standing: Standing) -> tuple[int, bool, int, int, str]:
    """The higher, the more it has: as in an election (Ongaro 2014, §3.6.1), but voters before those that were being built."""
    is_voter = (host, standing.incarnation) in standing.voters
    return lineage(standing.last_epoch), is_voter, standing.last_epoch, standing.last_lsn, host


def _why_not(partition: int, standings: list[tuple[str, Standing]]) -> str:
    """Why this partition may not be begun anew; empty if it may."""
    if not standings:
        return f"no host that answers has a replica of partition {partition}: nothing is left to begin with"
    serving = next((host for host, standing in standings if standing.serves), None)
    if serving is not None:
        return f"partition {partition} is served by {serving}"
    # The newest configuration that anybody knows: an older one may name replicas that left long ago.
    newest = max((standing for _, standing in standings), key=lambda standing: (lineage(standing.last_epoch), standing.version))
    up = sum((host, standing.incarnation) in newest.voters for host, standing in standings)
    quorum = len(newest.voters) // 2 + 1
    if up >= quorum:
        return f"{up} of {len(newest.voters)} replicas of partition {partition} answer, a write quorum: it comes back by itself"
    return ""
