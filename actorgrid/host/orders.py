"""Carries out what placement orders of this host: builds, swaps and removals as a partition's primary, drops as the holder of a replica.

Every order names the configuration version it was decided on. What does not fit any more is refused, with the reason, and decided anew.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from actorgrid.errors import ReconfigurationPendingError, RequestError
from actorgrid.host.partition import HostedPartition
from actorgrid.host.questions import Questions
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.host.reports import configuration_epoch
from actorgrid.replication.configuration import Configuration, Member

#: What a change of a configuration gets to be committed, and what the host that is to build gets to answer.
CHANGE_TIMEOUT_S: Final = 3.0
ASK_TIMEOUT_S: Final = 1.0
LOOK_S: Final = 0.002


class OrdersOwner(Protocol):
    """What orders need of their host."""

    partitions: dict[int, HostedPartition]

    def next_incarnation_of(self, partition: int) -> int:
        """The lowest replica incarnation that may be built here."""

    def drop_replica(self, shell: ReplicaShell, why: str) -> None:
        """Remove a replica that is no member any more, with its data."""


class Orders:
    """Carries out orders; each method answers a verb of the same name.

    All raise `RequestError` for what can never be, `ReconfigurationPendingError` for what does not fit how things are now.
    """

    def __init__(self, owner: OrdersOwner, questions: Questions) -> None:
        self._owner = owner
        self._questions = questions

    async def carry_out(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do what `verb` says.

        :raises RequestError: there is no such verb, or an argument is missing or wrong
        """
        partition = _int(arguments, "partition")
        match verb:
            case "next_incarnation":
                return {"incarnation": self._owner.next_incarnation_of(partition)}
            case "build":
                return await self._build(self._led(partition, arguments), _str(arguments, "host"), _str(arguments, "instead_of"))
            case "swap":
                return await self._swap(self._led(partition, arguments), _str(arguments, "host"))
            case "remove":
                member = Member(_str(arguments, "host"), _int(arguments, "incarnation"))
                return await self._remove(self._led(partition, arguments), member)
            case "drop":
                return self._drop(partition, arguments)
            case _:
                raise RequestError(f"unknown order {verb!r}; known are next_incarnation, build, swap, remove, drop")

    def _led(self, number: int, arguments: dict[str, Any]) -> HostedPartition:
        """The partition, if this host serves it under the very configuration that the order was decided on."""
        partition = self._owner.partitions.get(number)
        if partition is None or not partition.serving or partition.is_handing_over:
            raise ReconfigurationPendingError(f"partition {number} is not served here")
        core, version = partition.replica, _int(arguments, "version")
        if core.configuration.version != version or core.log.configuration_lsn > core.committed_lsn or partition.shell.wanted:
            raise ReconfigurationPendingError(
                f"partition {number} has configuration {core.configuration.version}, the order was decided on {version}"
            )
        return partition

    async def _build(self, partition: HostedPartition, host: str, instead_of: str) -> dict[str, Any]:
        before = partition.replica.configuration
        if before.on_host(host) is not None:
            raise ReconfigurationPendingError(f"host {host} has a replica of partition {partition.id} already")
        answer = await self._questions.ask(host, "next_incarnation", {"partition": partition.id}, ASK_TIMEOUT_S)
        if partition.replica.configuration is not before or not partition.serving:
            raise ReconfigurationPendingError(f"partition {partition.id} has changed meanwhile")
        return await self._change(partition, before.with_idle(Member(host, _int(answer, "incarnation")), instead_of))

    async def _remove(self, partition: HostedPartition, member: Member) -> dict[str, Any]:
        before = partition.replica.configuration
        if member not in before.members:
            raise ReconfigurationPendingError(f"{member} is no member of partition {partition.id}")
        if member == partition.shell.me:
            raise ReconfigurationPendingError(f"{member} is the primary of partition {partition.id}")
        if member in before.voters:
            # The order was decided on a report; this is how it is now.
            stay = [each for each in before.voters if each != member]
            in_sync = sum(each == partition.shell.me or self._is_in_sync(partition, each) for each in stay)
            if in_sync < (len(stay) if self._is_in_sync(partition, member) else len(stay) // 2 + 1):
                raise ReconfigurationPendingError(f"without {member} only {in_sync} of {len(stay)} replicas would be in sync")
        return await self._change(partition, before.without(member))

    @staticmethod
    def _is_in_sync(partition: HostedPartition, member: Member) -> bool:
        progress = partition.replica.progress.get(member)
        return progress is not None and partition.replica.is_caught_up(progress)

    async def _change(self, partition: HostedPartition, configuration: Configuration) -> dict[str, Any]:
        """Propose `configuration`, and wait until it is committed."""
        shell, core = partition.shell, partition.replica
        shell.refused_why = ""
        shell.want(configuration)
        try:
            async with asyncio.timeout(CHANGE_TIMEOUT_S):
                while core.configuration.version < configuration.version or core.log.configuration_lsn > core.committed_lsn:
                    if not partition.serving or (shell.refused_why and not shell.wanted):
                        raise ReconfigurationPendingError(
                            f"partition {partition.id}: {shell.refused_why or 'its primary has changed meanwhile'}"
                        )
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise ReconfigurationPendingError(
                f"configuration {configuration.version} of partition {partition.id} was not committed within {CHANGE_TIMEOUT_S:g} s"
            ) from None
        return {"version": core.configuration.version}

    async def _swap(self, partition: HostedPartition, host: str) -> dict[str, Any]:
        member = partition.replica.configuration.on_host(host)
        if member is None or member not in partition.replica.configuration.voters:
            raise ReconfigurationPendingError(f"host {host} has no voter of partition {partition.id}")
        if not partition.shell.may_lead(member):
            raise ReconfigurationPendingError(f"host {host} has just come back")
        if not await partition.hand_over(member):
            raise ReconfigurationPendingError(f"partition {partition.id} was not handed over to {member}")
        return {"primary": host}

    def _drop(self, number: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Remove a replica that a committed configuration of the partition does not name."""
        partition = self._owner.partitions.get(number)
        incarnation, epoch, version = (_int(arguments, name) for name in ("incarnation", "epoch", "version"))
        if partition is None or partition.shell.me.incarnation != incarnation:
            return {"dropped": False}
        core = partition.replica
        knows_later = core.configuration.version > version and configuration_epoch(core) >= epoch
        if partition.serving or core.epoch > epoch or knows_later:
            raise ReconfigurationPendingError(f"the replica of partition {number} knows more than who ordered to drop it")
        self._owner.drop_replica(partition.shell, f"configuration {version} of epoch {epoch} does not name it")
        return {"dropped": True}


def _int(arguments: dict[str, Any], name: str) -> int:
    value = arguments.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestError(f"{name} must be a number of 0 or more, got {value!r:.100}")
    return value


def _str(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, got {value!r:.100}")
    return value
