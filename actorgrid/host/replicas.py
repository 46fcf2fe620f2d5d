"""The replicas of one host: what is in its store, what takes part, what leaves duty, what is begun anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from actorgrid import ambient
from actorgrid.errors import CorruptLogError, InvariantViolation, StorageError
from actorgrid.host.bootstrap import SYSTEM_PARTITION
from actorgrid.host.commit import GroupCommit
from actorgrid.host.config import HostConfig
from actorgrid.host.copying import Copying
from actorgrid.host.partition import HostedPartition
from actorgrid.host.peers import Peers
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.replication import events as ev
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.liveness import Liveness
from actorgrid.replication.messages import Append, Message, ReplicaMissing, VoteRequest
from actorgrid.replication.replica import Rng
from actorgrid.storage.store import ACTIVE, RETIRED, Batch, ReplicaPointer, Store

logger = logging.getLogger(__name__)

#: A disk that has not answered two syncs by then is no reason not to start.
ALONE_SERVES_S: Final = 10.0


class ReplicasOwner(Protocol):
    """What the replicas need of their host."""

    def guarded(self, action: Callable[[], Any]) -> None:
        """Do `action`; what it raises ends the duty of the host."""

    def fail(self, error: StorageError) -> None:
        """The store is of no further use."""

    def primaries_changed(self) -> None:
        """Somebody is primary of something since now, or a replica is gone."""

    def leads_system_partition(self) -> None:
        """The system partition is served here since now."""


class Replicas:
    """All replicas of a host, by partition.

    :param partitions: the offices of the replicas; filled here
    :param make_office: makes one
    :param failure: done once the host has failed
    :ivar pointers: what the store says of each partition of which it ever had a replica
    :ivar beginning: partitions that are being begun anew here, with the new replica
    :ivar has_begun: the replicas here take part
    """

    def __init__(
        self,
        owner: ReplicasOwner,
        config: HostConfig,
        *,
        store: Store,
        liveness: Liveness,
        rng: Rng,
        peers: Peers,
        commit: GroupCommit,
        partitions: dict[int, HostedPartition],
        shells: dict[int, ReplicaShell],
        make_office: Callable[[ReplicaShell], HostedPartition],
        failure: asyncio.Future[BaseException],
    ) -> None:
        self.partitions = partitions
        self.shells = shells
        self.pointers: dict[int, ReplicaPointer] = {}
        self.beginning: dict[int, Member] = {}
        self.has_begun = False
        self.rejected_total = 0
        self.retired_total = 0
        self.copying = Copying(store, peers, commit, self, ambient.monotonic_ns, config.settings.copy_bytes_per_s)
        self._owner = owner
        self._config = config
        self._store = store
        self._liveness = liveness
        self._rng = rng
        self._peers = peers
        self._commit = commit
        self._make_office = make_office
        self._failure = failure
        self._loop = asyncio.get_running_loop()

    # -- start

    def recover(self) -> None:
        """Read every replica there is. One whose log cannot be trusted leaves duty and is built anew by its partition's primary.

        :raises CorruptLogError: there are no other replicas to build it from
        """
        for pointer in self._store.replica_pointers():
            self.pointers[pointer.partition] = pointer
            if pointer.state != ACTIVE:
                continue
            try:
                self._add(pointer)
            except CorruptLogError as error:
                if not self._config.has_copies:
                    raise
                self._retire(pointer, str(error))

    def _add(self, pointer: ReplicaPointer) -> ReplicaShell:
        """A replica and its office.

        :raises CorruptLogError: what is stored cannot be trusted
        """
        shell = ReplicaShell(
            pointer,
            store=self._store,
            settings=self._config.settings,
            liveness=self._liveness,
            rng=self._rng,
            peers=self._peers,
            commit=self._commit,
            owner=self,
        )
        shell.recover()
        self.shells[pointer.partition] = shell
        self.pointers[pointer.partition] = pointer
        self.partitions[pointer.partition] = self._make_office(shell)
        return shell

    def begin(self) -> None:
        """Take part."""
        self.has_begun = True
        for partition, shell in self.shells.items():
            shell.begin(self.partitions[partition])

    def begin_replicas(self) -> None:
        """The replicas that the bootstrap has created take part."""
        if not self.has_begun:
            self.recover()
            self.begin()

    async def until_alone_serves(self) -> None:
        """Wait for the partitions whose only voter is here: nobody else has a say in when they serve."""
        alone = [partition for partition in self.partitions.values() if partition.replica.configuration.voters == (partition.shell.me,)]
        deadline_s = self._loop.time() + ALONE_SERVES_S
        while not all(partition.serving for partition in alone) and self._loop.time() < deadline_s:
            if self._failure.done():
                raise self._failure.result()
            await asyncio.sleep(0.002)

    def guarded(self, action: Callable[[], Any]) -> None:
        """Do `action`; what it raises ends the duty of the host."""
        self._owner.guarded(action)

    # -- for all of them

    def step_all(self, event: ev.Event) -> None:
        """Let `event` happen to every replica."""

        def step() -> None:
            for shell in list(self.shells.values()):
                shell.step(event)

        if self.has_begun:
            self.guarded(step)

    def tick(self) -> None:
        """Let time pass for the replicas."""
        if self.has_begun:
            now_ns = ambient.monotonic_ns()
            for shell in list(self.shells.values()):
                if now_ns >= shell.core.wake_ns:
                    shell.step(ev.TimePassed())

    def repair(self) -> None:
        """Let primaries look whether a replica is to be replaced, or may vote now."""
        if self.has_begun:
            for shell in list(self.shells.values()):
                shell.repair()

    async def hand_over(self) -> None:
        """Before an orderly end: let others be primary of what this host is primary of, as far as they have everything."""
        async with asyncio.TaskGroup() as group:
            for partition in list(self.partitions.values()):
                target = partition.best_successor()
                if target is not None:
                    group.create_task(partition.hand_over(target))

    def end_duty(self, why: str) -> None:
        """Every replica leaves duty."""
        for shell in self.shells.values():
            with contextlib.suppress(InvariantViolation):  # it ends anyway, and has told its story
                shell.leave(why)

    def digests(self) -> list[dict[str, Any]]:
        """A digest of the applied state of every replica here: equal on all replicas with the same position."""
        answers = []
        for partition, shell in self.shells.items():
            self._commit.apply_now(shell)
            lsn, digest = shell.durable.digest()
            answers.append({"id": partition, "applied_lsn": lsn, "digest": digest, "role": str(shell.core.role)})
        return answers

    # -- one of them (`replica_shell.ShellOwner`, `copying.CopyingOwner`)

    def shell_of(self, partition: int) -> ReplicaShell | None:
        return self.shells.get(partition)

    def next_incarnation_of(self, partition: int) -> int:
        pointer = self.pointers.get(partition)
        return pointer.incarnation + 1 if pointer is not None else 1

    def start_copy(self, shell: ReplicaShell, to: Member) -> None:
        # Not from inside the step that wants it.
        self._loop.call_soon(self.guarded, lambda: self.copying.start(shell, to))

    def installed(self, pointer: ReplicaPointer) -> None:
        """A copy is in the store: its replica goes on from it, or begins."""
        self.pointers[pointer.partition] = pointer
        shell = self.shells.get(pointer.partition)
        if shell is not None:
            shell.installed(pointer)
        else:
            self._begin_replica(pointer)

    def _begin_replica(self, pointer: ReplicaPointer) -> None:
        """A replica is in the store that was not there before."""
        self.has_begun = True
        shell = self._add(pointer)
        shell.begin(self.partitions[pointer.partition])

    def office_closed(self, shell: ReplicaShell) -> None:
        """This replica is primary no more: the copies it was sending mean nothing."""
        self._loop.call_soon(self.guarded, lambda: self.copying.shell_closed(shell))

    def is_primary(self, partition: int, epoch: int, host: str) -> None:
        if self._liveness.is_primary(partition, epoch, host):
            self._owner.primaries_changed()
        if partition == SYSTEM_PARTITION and host == self._config.name:
            self._owner.leads_system_partition()

    def retire(self, shell: ReplicaShell, why: str) -> None:
        """A replica's data cannot be trusted: it leaves duty for good, and is built anew by its partition's primary (I6, I12)."""
        if not self._config.has_copies:
            self._owner.fail(CorruptLogError(why))
            return
        self._loop.call_soon(self.guarded, lambda: self._leave(shell, why))

    def _leave(self, shell: ReplicaShell, why: str) -> None:
        if self.shells.get(shell.partition) is not shell:
            return
        shell.leave(why)
        del self.shells[shell.partition], self.partitions[shell.partition]
        self.copying.shell_closed(shell)
        self._retire(shell.pointer, why, lambda: self._tell_members(shell))

    def _tell_members(self, shell: ReplicaShell) -> None:
        """Say that a replica is no more: a partition that nobody writes to would not find out. What is lost is said to who connects."""
        successor = self.next_incarnation_of(shell.partition)
        for member in shell.core.configuration.members:
            self._peers.send(member.host, ReplicaMissing(shell.partition, member.incarnation, shell.me.incarnation, successor))

    def _retire(self, pointer: ReplicaPointer, why: str, done: Callable[[], None] | None = None) -> None:
        logger.error("replica retired partition=%d incarnation=%d why=%s", pointer.partition, pointer.incarnation, why)
        self.retired_total += 1
        retired = ReplicaPointer(pointer.partition, pointer.incarnation, pointer.generation, RETIRED)
        self.pointers[pointer.partition] = retired
        self._commit.submit(lambda batch: self._store.put_pointer(batch, retired), done)

    def drop_replica(self, shell: ReplicaShell, why: str) -> None:
        """Remove a replica that is no member any more, with its data; its incarnation stays known (I6)."""
        pointer, store = shell.pointer, self._store
        logger.info("replica dropped partition=%d incarnation=%d why=%s", pointer.partition, pointer.incarnation, why)
        del self.shells[shell.partition]
        partition = self.partitions.pop(shell.partition)
        assert not partition.serving, f"partition {shell.partition} is served here, and is to be dropped"
        shell.leave(why)
        self.copying.shell_closed(shell)
        gone = ReplicaPointer(pointer.partition, pointer.incarnation, pointer.generation, RETIRED)
        self.pointers[pointer.partition] = gone

        def drop(batch: Batch) -> None:
            store.put_pointer(batch, gone)
            store.drop_generation(batch, pointer.partition, pointer.generation)

        self._commit.submit(drop)
        self._owner.primaries_changed()  # clients may still ask it for reads that any replica answers

    async def begin_anew(self, shell: ReplicaShell, configuration: Configuration, lsn: int, epoch: int) -> None:
        """Put a new replica in the place of `shell`, with all its data, alone in `configuration` (`recovery`); returns when it is durable.

        Once it has begun nothing stops it but the host's own end: who asked may be gone.

        :raises CorruptLogError: its log cannot be trusted, so nothing was done
        :raises StorageError: the disk failed
        """
        partition, anew = shell.partition, configuration.voters[0]
        records = shell.read_uncommitted()
        shell.leave("data loss is accepted, and the partition is begun anew")
        del self.shells[partition], self.partitions[partition]
        self.copying.shell_closed(shell)
        # From here on whoever asks hears of the new one.
        pointer = self.pointers[partition] = ReplicaPointer(partition, anew.incarnation, shell.pointer.generation, ACTIVE)
        self.beginning[partition] = anew
        over = asyncio.Event()

        def begin() -> None:
            del self.beginning[partition]
            self.guarded(lambda: self._begin_replica(pointer))
            over.set()

        def write() -> None:
            self._commit.write_now()  # what it still had under way is taken too
            self._commit.submit(lambda batch: shell.begin_anew(batch, records, pointer, configuration, lsn, epoch), begin)

        self.guarded(write)
        waiting = self._loop.create_task(over.wait())
        ends: list[asyncio.Future[Any]] = [waiting, self._failure]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not over.is_set():
            raise StorageError(f"partition {partition} could not be begun anew: {self._failure.result()}")

    def replica_bytes(self) -> int:
        """About how large one replica is."""
        return self._store.state_bytes_estimate() // max(1, len(self.shells))

    # -- messages

    def take(self, host: str, incarnation: int, messages: Iterable[Message]) -> None:
        """Messages of that life of `host`."""
        shells = self.shells
        for message in messages:
            shell = shells.get(message.partition)
            if shell is not None and message.to == shell.me.incarnation:
                if self.has_begun:
                    shell.on_message(message, host, incarnation)
            else:
                self._not_for_us(shell, message, host)

    def _not_for_us(self, shell: ReplicaShell | None, message: Message, host: str) -> None:
        """A message for a replica that is not here, or not any more (I6, I7)."""
        self.rejected_total += 1
        if not isinstance(message, Append | VoteRequest):
            return
        if shell is not None:
            if type(message) is Append and message.to > shell.me.incarnation and message.epoch >= shell.core.epoch:
                self._leave(shell, f"the primary of epoch {message.epoch} has put incarnation {message.to} in its place")
            return
        successor = self.next_incarnation_of(message.partition)
        if message.partition not in self.pointers:
            successor = max(successor, message.to + 1)  # an emptied disk does not know what was there: what is asked for may have been
        missing = ReplicaMissing(message.partition, message.sender, message.to, successor)
        self._peers.send(host, missing)

    # -- a disk that went back

    def put_all_retired(self, batch: Batch) -> None:
        """Let `batch` say that no replica of this store counts any more (I6)."""
        for pointer in self.pointers.values():
            self._store.put_pointer(batch, ReplicaPointer(pointer.partition, pointer.incarnation, pointer.generation, RETIRED))
