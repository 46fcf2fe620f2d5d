"""A host: one process that holds replicas of many partitions, runs their actors and serves their callers.

This file puts the parts together and takes them apart again; each part knows its own business:

===============  ==========================================================
`listening`      the socket, TLS, and what failed handshakes cost
`server`         connections of callers: handshake, frames, answers
`rights`         who may do what
`http`           operators' verbs over HTTP
`peers`          connections to the other hosts, and the beats on them
`replicas`       all replicas of this host
`replica_shell`  one replica: what its core wants, done
`partition`      what a primary has besides: admission, log, answers
`copying`        copies of whole partitions, out and in
`bootstrap`      the beginning of a grid
`roster`         which hosts the grid has
`placing`        reports, orders and the placement manager: `questions`, `reports`, `orders`, `manager`
`recovery`       what is left of a partition that has lost its quorum for good
`runner`         turns
`residents`      which activations stay in memory
`load`           what actors say of their own load
`labels`         what labels of nodes may look like
`commit`         group commit to the store
`outgoing`       calls that actors make, offloaded work
`watchdog`       turns that block the loop
===============  ==========================================================

The same class runs inside a Ray actor, in tests and without either.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from actorgrid import ambient
from actorgrid.actor.registry import ActorRegistry
from actorgrid.ambient import new_client_id
from actorgrid.client.caller import Caller
from actorgrid.credentials import ANYBODY, Gate, Identity, server_context
from actorgrid.errors import CorruptLogError, InvariantViolation, SettingsError, StorageError
from actorgrid.host import rights
from actorgrid.host.bootstrap import SYSTEM_PARTITION, Bootstrap
from actorgrid.host.commit import GroupCommit
from actorgrid.host.config import HostConfig
from actorgrid.host.listening import Penalties, listen
from actorgrid.host.offload import Offloader, ProcessOffloader
from actorgrid.host.outgoing import OutgoingCalls
from actorgrid.host.partition import HostedPartition
from actorgrid.host.peers import PeerConnection, Peers
from actorgrid.host.placing import VERBS, Placing
from actorgrid.host.replica_shell import ReplicaShell
from actorgrid.host.replicas import Replicas
from actorgrid.host.reports import Capacity
from actorgrid.host.residents import Residents
from actorgrid.host.roster import Roster
from actorgrid.host.runner import Runner
from actorgrid.host.server import ConnectionCounters, HostConnection, unknown_verb
from actorgrid.host.supervision import BlindSupervisor, LocalSupervisor, Supervisor
from actorgrid.host.watchdog import Watchdog
from actorgrid.replication import events as ev
from actorgrid.replication.frames import CopyAnswer, CopyBegin, CopyChunkFrame, CopyEnd, PeerAnswer, PeerQuestion, StoreMark
from actorgrid.replication.liveness import Liveness, Times
from actorgrid.replication.messages import Message
from actorgrid.replication.replica import Role
from actorgrid.settings import ClientSettings
from actorgrid.storage.home import StoreHome
from actorgrid.storage.store import Batch, PeerMark, Store, StoreIdentity
from actorgrid.wire import messages
from actorgrid.wire.framing import frame
from placement import Limits

if TYPE_CHECKING:
    from actorgrid.host.http import HttpServer

logger = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 0.25
#: How often replicas are asked whether their time has come.
TICK_S: Final = 0.02
COPY_TICK_S: Final = 1.0
#: How often primaries look whether a replica is to be replaced or may vote now.
REPAIR_TICK_S: Final = 0.05
#: How often others are told of data loss. Well below the time that a host keeps quiet after its start.
RECOVERY_TICK_S: Final = 0.2
#: How often connections are looked through for credentials that count no more.
CREDENTIALS_LOOK_S: Final = 5.0
#: Changes of the map within so long are pushed to clients together.
PUSH_DELAY_S: Final = 0.002
SETTINGS_ADDRESS: Final = "actorgrid.System\0settings"
SWEEP_OVER_LIMIT_S: Final = 0.01
STOP_GRACE_S: Final = 3.0
HAND_OVER_GRACE_S: Final = 1.5
#: Clients whose progress is remembered; beyond that the longest unheard go. They lose nothing but an early release of records.
WATERMARKS_MAX: Final = 100_000


class Host:
    """One host. `start` it once; when it has failed or stopped, make a new one.

    :param supervisor: who sees processes of other hosts die; by default the kernel's own word on this machine
    :param home: where the store is; by default the data directory
    :param watchdog: who looks for turns that block the loop; by default a thread
    """

    def __init__(
        self,
        config: HostConfig,
        *,
        offloader: Offloader | None = None,
        supervisor: Supervisor | None = None,
        home: StoreHome | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.config = config
        self.cluster_id = config.cluster_id
        self.partitions: dict[int, HostedPartition] = {}
        self.shells: dict[int, ReplicaShell] = {}
        self.watermarks: dict[bytes, int] = {}
        self.state = "starting"
        self._offloader: Offloader = offloader or ProcessOffloader(config.app_path)
        self._supervisor: Supervisor = supervisor or (LocalSupervisor() if config.watches_processes else BlindSupervisor())
        self._home = home or StoreHome(config.data_dir)
        self._watchdog = watchdog or Watchdog(config.settings.loop_block_report_s, config.settings.loop_block_limit_s)
        self._http: HttpServer | None = None
        self._rng = ambient.new_random()  # election timeouts
        self._incarnation = 0
        self._counters = ConnectionCounters()
        self._connections: dict[HostConnection, None] = {}
        self._store: Store | None = None
        self.gate = Gate(config.credentials, config.cluster_id)
        self.penalties = Penalties()
        self._credentials_looked_at_s = 0.0
        self._server: Any = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._push_scheduled = False
        self._join_task: asyncio.Task[None] | None = None

    # -- life

    async def start(self) -> None:
        """Load the app, open the store, recover every replica, listen, and meet the other hosts.

        When it returns, this host listens, and serves what needs no other host. A new host has nothing until the grid is begun (`init`),
        or until the primaries of its partitions fill it.

        :raises SettingsError: the app, the data directory or the port is wrong; everything found is named
        :raises StorageError: the store cannot be read
        """
        config, settings = self.config, self.config.settings
        self._loop = loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[BaseException] = loop.create_future()
        self.registry = ActorRegistry.load(config.app, config.app_path)
        loop.set_default_executor(
            concurrent.futures.ThreadPoolExecutor(settings.blocking_threads_max, thread_name_prefix="actorgrid blocking")
        )
        identity = StoreIdentity(config.cluster_id, config.name, config.partition_count)
        self._store = store = self._home.open(identity, has_copies=config.has_copies)
        try:
            self._incarnation = store.next_incarnation()
            store.sync_now()
            self.runner = Runner(loop, settings, config.wire, self._watchdog)
            self.residents = Residents(settings)
            self.liveness = Liveness(config.name, self._incarnation, ambient.monotonic_ns(), Times(), quiet=not store.is_new)
            self._commit = GroupCommit(loop, store, self.fail, self._put_marks)
            self._caller = Caller(
                client_id=new_client_id(),
                settings=ClientSettings(in_flight_max=min(settings.host_queue_max, 1_048_576)),
                wire=config.wire,
                rng=ambient.new_random(),  # jitter of retries
                role=messages.ROLE_HOST,
                cluster_id=config.cluster_id,
                credentials=config.credentials,
            )
            self._outgoing = OutgoingCalls(loop, config.partition_count, self.partitions, self.watermarks, self._caller, self._offloader)
            marks = {name: StoreMark(mark.incarnation, mark.position, mark.store_id) for name, mark in store.peer_marks().items()}
            self.roster = Roster(config.name, config.hosts, store.roster(), self)
            infos = {info.name: info for info in config.hosts}
            self._peers = Peers(
                loop=loop,
                owner=self,
                cluster_id=config.cluster_id,
                me=infos[config.name],
                others=self.roster.others,
                own_mark=self._own_mark,
                marks=marks,
                liveness=self.liveness,
                supervisor=self._supervisor,
                beat_s=self.liveness.times.beat_ns / 1e9,
                credentials=config.credentials,
            )
            self._commit.send_now = self._peers.flush_now
            self.replicas = Replicas(
                self,
                config,
                store=store,
                liveness=self.liveness,
                rng=self._rng,
                peers=self._peers,
                commit=self._commit,
                partitions=self.partitions,
                shells=self.shells,
                make_office=self._make_office,
                failure=self._failure,
            )
            self._bootstrap = Bootstrap(
                cluster_id=config.cluster_id,
                me=config.name,
                hosts=config.hosts,
                partition_count=config.partition_count,
                replica_set_size=config.replica_set_size,
                store=store,
                commit=self._commit,
                settings=settings,
                wire=config.wire,
                credentials=config.credentials,
                owner=self.replicas,
            )
            self._placing = Placing(
                self,
                self.replicas,
                self._peers,
                me=config.name,
                node=config.node,
                zone=config.zone,
                capacity=Capacity(config.labels, config.weight, config.replicas_max),
                roster=self.roster,
                replica_set_size=config.replica_set_size,
                partition_count=config.partition_count,
                limits=Limits(
                    replica_restart_wait_s=settings.replica_restart_wait_s,
                    quiet_s=settings.placement_quiet_s,
                    copy_bytes_per_s=settings.copy_bytes_per_s,
                ),
                failed=self._fail_by_bug,
            )
            self.replicas.recover()
            await self._listen()
            await self._listen_for_http()
        except BaseException as error:
            self._condemn_if_damaged(error)
            await self._take_apart()
            raise
        self._watchdog.start()
        self.state = "serving"
        self._peers.start()
        self._caller.set_map(self.map_message())
        if self.shells:
            self.replicas.begin()
        self._sweep()
        self._tick()
        self._tick_copies()
        self._tick_repairs()
        self._tick_recovery()
        self._placing.start()
        self._join_task = loop.create_task(self._join(), name="join")
        await self.replicas.until_alone_serves()
        logger.info(
            "host listens name=%s address=%s:%d pid=%d incarnation=%d replicas=%d actors=%s",
            config.name, config.address, self.port, os.getpid(), self._incarnation, len(self.shells), ",".join(self.registry.names),
        )  # fmt: skip

    def _make_office(self, shell: ReplicaShell) -> HostedPartition:
        store = self._store
        assert store is not None
        return HostedPartition(
            shell,
            self.config.partition_count,
            self.primary_of,
            store,
            self.registry,
            self.config.settings,
            self.runner,
            self._commit,
            self._outgoing,
            self.residents,
        )

    async def _join(self) -> None:
        config = self.config
        await self.roster.join(
            cluster_id=config.cluster_id,
            node=config.node,
            zone=config.zone,
            wire=config.wire,
            is_alone=self._peers.is_alone,
            credentials=config.credentials,
        )

    def roster_changed(self, stored: bytes) -> None:
        """The grid has other hosts now."""
        store = self._store
        if store is None or self._failure.done():
            return
        self._commit.submit(lambda batch: store.put_roster(batch, stored))
        self._peers.set_others(self.roster.others)
        self.primaries_changed()

    async def _listen(self) -> None:
        config = self.config
        self._server = await listen(
            lambda: HostConnection(self, config.wire, config.settings.connections_max, self._counters, self._connections),
            config.listen_address,
            config.port,
            context=server_context(config.credentials) if config.credentials is not None else None,
            penalties=self.penalties,
            handshake_timeout_s=config.wire.handshake_timeout_s,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def leave(self) -> None:
        """Before an orderly end of the process: let the rest of the grid do without it, at most for ``stop_grace_s``.

        Its node gets the intent ``restart``: primaries go, and no more nodes leave at a time than every partition can spare. The intent
        ends when this host is back. Meanwhile everything is served as ever; `stop` is the next thing to do.
        """
        if self.state != "serving" or not self.replicas.has_begun or len(self.roster.infos) == 1:
            return
        self.state = "leaving"
        await self._placing.leave(self.config.node, self.config.settings.stop_grace_s)

    async def _listen_for_http(self) -> None:
        offset = self.config.settings.http_port_offset
        if not offset:
            return
        if self.port + offset > 65_535:
            raise SettingsError(f"http_port_offset {offset} puts the HTTP port of {self.config.name} beyond 65535")
        from actorgrid.host.http import HttpServer  # its library takes a quarter of a second to load, and few hosts need it

        self._http = HttpServer(self, self.config.credentials)
        await self._http.start(self.config.listen_address, self.port + offset)

    async def stop(self) -> None:
        """Finish what runs (for a short while), make everything durable, say goodbye to the peers, close."""
        if self.state in ("stopped", "stopping"):
            return
        self.state = "stopping"
        if self._server is not None:
            self._server.close()
        deadline_s = self._loop.time() + STOP_GRACE_S
        await self._stop_placing()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_GRACE_S):
                await self.replicas.hand_over()
        await self._finish_turns(deadline_s)
        for partition in self.partitions.values():
            if partition.serving:
                for activation in list(partition.activations.values()):
                    if "on_deactivate" in activation.actor_type.hooks:
                        partition.deactivate(activation)
        await self._finish_turns(deadline_s)
        self._end_duty("the host is stopping")
        for connection in list(self._connections):
            connection.say_goodbye(f"host {self.config.name} is stopping")
        await self._take_apart()
        self.state = "stopped"

    async def _stop_placing(self) -> None:
        if hasattr(self, "_placing"):
            await self._placing.stop()
        task, self._join_task = self._join_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _finish_turns(self, deadline_s: float) -> None:
        """Wait until nothing runs and all that ran is in the state, at most until `deadline_s`, but half a second for the commit."""
        while self.runner.admitted + self.runner.uncommitted > 0 and self._loop.time() < deadline_s and not self._failure.done():
            await asyncio.sleep(0.005)
        await self._commit.drain(max(0.5, deadline_s - self._loop.time()))

    def _end_duty(self, why: str) -> None:
        if hasattr(self, "replicas"):
            self.replicas.end_duty(why)

    async def _take_apart(self) -> None:
        self._end_duty("the host is stopping")
        for timer in self._timers.values():
            timer.cancel()
        await self._stop_placing()
        if self._http is not None:
            await self._http.stop()
        if self._server is not None:
            self._server.close()
        if hasattr(self, "_peers"):
            await self._peers.stop()
        for connection in list(self._connections):
            connection.close()
        self._watchdog.stop()
        if hasattr(self, "replicas"):
            self.replicas.copying.close()
        if hasattr(self, "_commit"):
            self._commit.stop()
        if hasattr(self, "_caller"):
            await self._caller.close()
        self._supervisor.close()
        await self._offloader.close()
        await asyncio.sleep(0)
        store, self._store = self._store, None
        if store is not None:
            self.partitions.clear()
            self.shells.clear()
            await asyncio.to_thread(store.close)

    def fail(self, error: StorageError) -> None:
        """The store is of no further use: every replica leaves duty, and nothing more is accepted (I12)."""
        if self._failure.done():
            return
        self.state = "failed"
        logger.error("host leaves duty name=%s error=%s", self.config.name, error)
        self._condemn_if_damaged(error)
        self._failure.set_result(error)
        self._commit.stop()
        self._end_duty(str(error))
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.say_goodbye(f"host {self.config.name} lost its store: {error}")

    def _condemn_if_damaged(self, error: BaseException) -> None:
        """A store in which damage was read, by whom and when ever, is put aside by the next start, instead of failing that too."""
        if isinstance(error, CorruptLogError) and self.config.has_copies:
            self._home.condemn(str(error))

    def _fail_by_bug(self, error: Exception) -> None:
        logger.error("host leaves duty by a bug", exc_info=error)
        self.fail(StorageError(f"{type(error).__name__}: {error}"))

    async def run_until_failed(self) -> BaseException:
        """Wait until a storage error has ended this host's duty; the process should end then and be started anew.

        :return: the error
        """
        return await asyncio.shield(self._failure)

    def _sweep(self) -> None:
        """Housekeeping, a little at a time; in quick succession while activations take more memory than they may (I16)."""
        every_s = SWEEP_EVERY_S if not self.residents.over_limit else SWEEP_OVER_LIMIT_S
        self._timers["sweep"] = self._loop.call_later(every_s, self._sweep)
        self.residents.sweep(ambient.monotonic())
        for report in self.runner.report_stuck_anew():
            logger.warning("turn waits method=%(method)s actor=%(actor)s for_s=%(waiting_s)s", report)
        while len(self.watermarks) > WATERMARKS_MAX:
            del self.watermarks[next(iter(self.watermarks))]
        if not self.gate.is_open:
            self._close_lapsed()

    def _close_lapsed(self) -> None:
        """End connections whose credential has expired or was withdrawn; who has a new one comes back with it."""
        now_s = ambient.monotonic()
        if now_s < self._credentials_looked_at_s + CREDENTIALS_LOOK_S:
            return
        self._credentials_looked_at_s = now_s
        for connection in [each for each in self._connections if each.role and not self.gate.still_counts(each.identity)]:
            logger.warning("credential lapsed peer=%s identity=%s", connection.peer, connection.identity)
            connection.say_goodbye(f"the credential of {connection.identity.name} has expired or was withdrawn")
            connection.close()

    def _tick(self) -> None:
        """Let time pass for the replicas."""
        self._timers["tick"] = self._loop.call_later(TICK_S, self._tick)
        self.guarded(self.replicas.tick)

    def _tick_copies(self) -> None:
        self._timers["copies"] = self._loop.call_later(COPY_TICK_S, self._tick_copies)
        self.guarded(self.replicas.copying.tick)

    def _tick_recovery(self) -> None:
        self._timers["recovery"] = self._loop.call_later(RECOVERY_TICK_S, self._tick_recovery)
        if self.replicas.has_begun:
            self.guarded(self._placing.recovery.tick)

    def _tick_repairs(self) -> None:
        self._timers["repairs"] = self._loop.call_later(REPAIR_TICK_S, self._tick_repairs)
        self.guarded(self.replicas.repair)

    def guarded(self, action: Callable[[], Any]) -> None:
        """Do what replicas want; a broken invariant ends the duty of the host, before it does harm."""
        if self._failure.done() or self._store is None:
            return
        try:
            action()
        except StorageError as error:
            self.fail(error)
        except (InvariantViolation, AssertionError, LookupError, TypeError, ValueError) as error:
            self._fail_by_bug(error)

    # -- for the replicas (`replicas.ReplicasOwner`)

    def primary_host_of(self, partition: int) -> str:
        """The host of the newest primary that was heard of; empty if none was."""
        return self.liveness.primaries.get(partition, (0, ""))[1]

    def leads_system_partition(self) -> None:
        """The system partition holds what the grid was created with; its first primary writes it."""
        config, partition = self.config, self.partitions[SYSTEM_PARTITION]
        entries = partition.shell.durable.entries_of(SETTINGS_ADDRESS)
        if entries.get(b"") is None:
            kept = {
                "cluster_id": config.cluster_id,
                "partition_count": config.partition_count,
                "replica_set_size": config.replica_set_size,
            }
            partition.log_internal(SETTINGS_ADDRESS, [(b"", messages.encode(kept))])

    def grid_settings(self) -> dict[str, Any] | None:
        """What the system partition says the grid was created with, if this host has a replica of it that has applied that."""
        shell = self.shells.get(SYSTEM_PARTITION)
        stored = shell.durable.entries_of(SETTINGS_ADDRESS).get(b"") if shell is not None else None
        return msgspec.msgpack.decode(stored, type=dict[str, Any]) if stored is not None else None

    # -- peers (`peers.PeerOwner`)

    def peer_greeted(self, transport: asyncio.Transport, payload: bytes) -> PeerConnection | None:
        return self._peers.greeted(transport, payload)

    def peer_frame(self, host: str, incarnation: int, messages: list[Message]) -> None:
        self.guarded(lambda: self.replicas.take(host, incarnation, messages))

    def peer_other(self, host: str, incarnation: int, message: Any) -> None:
        copying = self.replicas.copying
        match message:
            case CopyBegin():
                self.guarded(lambda: copying.on_begin(host, message))
            case CopyChunkFrame():
                self.guarded(lambda: copying.on_chunk(host, message))
            case CopyEnd():
                self.guarded(lambda: copying.on_end(host, message))
            case CopyAnswer():
                self.guarded(lambda: copying.on_answer(host, message))
            case PeerQuestion():
                self._placing.questions.on_question(host, message)
            case PeerAnswer():
                self._placing.questions.on_answer(host, message)
            case _:
                raise AssertionError(f"unexpected {type(message).__name__} of host {host}")

    def peer_up(self, host: str) -> None:
        self.replicas.step_all(ev.PeerUp(host))

    def peer_down(self, host: str) -> None:
        self._placing.questions.peer_lost(host)
        self._placing.recovery.peer_lost(host)
        self.guarded(lambda: self.replicas.copying.peer_lost(host))
        self.replicas.step_all(ev.PeerDown(host))

    def peer_paused(self, host: str, *, paused: bool) -> None:
        self.replicas.step_all(ev.PeerPaused(host) if paused else ev.PeerResumed(host))

    def support_changed(self, host: str) -> None:
        self.replicas.step_all(ev.SupportChanged(host))

    def host_died(self, host: str, incarnation: int) -> None:
        self.replicas.step_all(ev.HostDied(host, incarnation))
        self.guarded(self.replicas.tick)

    def synced_position(self) -> int:
        return self._commit.synced_position

    def may_beat(self, now_ns: int) -> bool:
        """A host whose disk does not answer must lose its leases (design.md, section 7)."""
        return not self._failure.done() and self._commit.stuck_ns(now_ns) < self.liveness.times.support_ns

    def _own_mark(self) -> StoreMark:
        store = self._store
        assert store is not None
        return StoreMark(self._incarnation, self._commit.synced_position, store.store_id)

    def _put_marks(self, batch: Batch) -> None:
        store = self._store
        assert store is not None
        for host, mark in self._peers.take_marks().items():
            store.put_peer_mark(batch, host, PeerMark(mark.incarnation, mark.position, mark.store_id))

    def disk_went_back(self, known: StoreMark, said_by: str) -> None:
        """A peer remembers more of this store than it has: nothing it promised counts any more (I6).

        Its replicas retire, it becomes another store in a later life, and the process starts anew: as a host to be filled.
        """
        if self._failure.done():
            return
        store = self._store
        assert store is not None
        mark = self._own_mark()
        logger.error("disk went back in time said_by=%s has=%s known=%s replicas=%d", said_by, mark, known, len(self.replicas.pointers))
        batch = store.batch()
        try:
            self.replicas.put_all_retired(batch)
            store.reborn(batch, max(known.incarnation, mark.incarnation))
            self._commit.stop()
            store.write(batch)
            store.sync_now()
        except StorageError as error:
            self.fail(error)
            return
        self.fail(StorageError(f"{said_by} remembers {known} of this host's store, which has {mark}: its replicas are to be built anew"))

    # -- for connections

    def map_message(self) -> messages.MapMessage:
        config, primaries = self.config, self.liveness.primaries
        infos = self.roster.infos
        index_of = {info.name: index for index, info in enumerate(infos)}
        hosts, epochs, secondaries = [], [], []
        for partition in range(1, config.partition_count + 1):
            epoch, name = primaries.get(partition, (0, ""))
            hosts.append(index_of.get(name, -1))
            epochs.append(epoch)
            shell = self.shells.get(partition)
            members = shell.core.configuration.members if shell is not None and self.replicas.has_begun else ()
            secondaries.append([index_of[member.host] for member in members if member.host != name and member.host in index_of])
        return messages.MapMessage(1 + self.roster.version, self.cluster_id, infos, hosts, epochs, secondaries)

    def primaries_changed(self) -> None:
        """Somebody is primary of something since now: whoever routes calls is told, a few changes at a time."""
        if not self._push_scheduled and self._store is not None:
            self._push_scheduled = True
            self._loop.call_later(PUSH_DELAY_S, self._push_map)

    def _push_map(self) -> None:
        self._push_scheduled = False
        if self._store is None:
            return
        message = self.map_message()
        self._caller.set_map(message)
        payload = frame(messages.encode(message))
        for connection in list(self._connections):
            connection.push_map(payload)

    def welcome(self, version: int) -> messages.Welcome:
        config = self.config
        positions: dict[int, int] = {
            partition: shell.core.committed_lsn for partition, shell in self.shells.items() if shell.core.committed_lsn
        }
        return messages.Welcome(
            version, self.cluster_id, config.name, self._incarnation, config.wire.frame_bytes_max, self.map_message(), positions
        )

    def primary_of(self, partition: int) -> tuple[str, int]:
        """Where the primary is, as far as known here: ``name@address:port`` or empty, and its epoch."""
        epoch, name = self.liveness.primaries.get(partition, (0, ""))
        info = self.roster.hosts.get(name)
        if info is None or name == self.config.name or not self._is_heard(name):
            return "", epoch
        return f"{info.name}@{info.address}:{info.port}", epoch

    def _is_heard(self, host: str) -> bool:
        liveness = self.liveness
        heard_ns = liveness.heard_ns(host)
        return heard_ns + liveness.times.support_ns > ambient.monotonic_ns() and not liveness.is_dead(host, liveness.life_of(host))

    async def administer(self, verb: str, arguments: dict[str, Any], identity: Identity = ANYBODY) -> Any:
        """Answer an operator's tool.

        :param identity: who asks; by default the process itself. Servers always say it, as their protocols want
        :raises AccessDeniedError: `identity` may not ask this
        :raises RequestError: unknown verb, or arguments it does not take
        """
        rights.check(identity, verb, arguments)
        match verb:
            case "status":
                return self.status()
            case "init":
                begun = await self._bootstrap.init()
                await self.replicas.until_alone_serves()
                return begun
            case "bootstrap_state" | "bootstrap_create" | "bootstrap_begin":
                return await self._bootstrap.answer(verb, arguments)
            case "digests":
                return {"partitions": self.digests()}
            case "process_died":
                known = self._peers.process_died(str(arguments.get("host", "")), str(arguments.get("process_id", "")))
                return {"known": known}
            case _ if self._placing.knows(verb):
                return await self._placing.operate(verb, arguments)
            case _:
                raise unknown_verb(verb, ["status", "init", "digests", "process_died", *VERBS])

    def digests(self) -> list[dict[str, Any]]:
        """Of the applied state of every replica here.

        :raises StorageError: it cannot be read, which ends this host's duty
        """
        try:
            return self.replicas.digests()
        except StorageError as error:
            if self.state in ("serving", "leaving"):  # one that stops has closed its store itself
                self.fail(error)
            raise

    def status(self) -> dict[str, Any]:
        """This host's part of ``actorgrid status``."""
        config = self.config
        roles = [shell.core.role for shell in self.shells.values()]
        return {
            "host": {
                "name": config.name,
                "node": config.node,
                "zone": config.zone,
                "address": f"{config.address}:{config.port}",
                "pid": os.getpid(),
                "process_id": self._supervisor.process_id,
                "incarnation": self._incarnation,
                "state": self.state,
                "primaries": sum(partition.serving for partition in self.partitions.values()),
                "secondaries": sum(role in (Role.ACTIVE_SECONDARY, Role.IDLE_SECONDARY) for role in roles),
                "data_dir": str(config.data_dir),
            },
            "grid": {
                "settings": self.grid_settings(),
                "partition_count": config.partition_count,
                "replica_set_size": config.replica_set_size,
                "hosts": list(self.roster.hosts),
                "has_begun": self.replicas.has_begun,
                "manager": self.primary_host_of(SYSTEM_PARTITION),
                "map_is_complete": all(self.primary_host_of(number) for number in range(1, config.partition_count + 1)),
            },
            "peers": {
                name: {"up": link.connection is not None, "incarnation": link.incarnation} for name, link in self._peers.links.items()
            },
            "counters": self._counter_values(),
            "stuck_turns": list(itertools.islice(self.runner.report_stuck(), 20)),
            "partitions": [partition.status() for partition in self.partitions.values()] if self.replicas.has_begun else [],
        }

    def _counter_values(self) -> dict[str, int]:
        partitions = self.partitions.values()
        return {
            "activations": self.residents.count,
            "activation_bytes": self.residents.bytes,
            "activations_dropped_total": self.residents.dropped_total,
            "calls_under_way": self.runner.admitted,
            "changes_total": sum(partition.changes_total for partition in partitions),
            "reads_total": sum(partition.reads_total for partition in partitions),
            "turns_failed_total": self.runner.turns_failed,
            "turns_cancelled_total": self.runner.turns_cancelled,
            "turns_abandoned_total": self.runner.turns_abandoned,
            "loop_blocked_total": self._watchdog.blocked_reported,
            "turns_interrupted_total": self._watchdog.interrupted,
            "syncs_total": self._commit.syncs_total,
            "peer_frames_sent_total": self._peers.frames_sent_total,
            "peer_frames_received_total": self._peers.frames_received_total,
            "messages_rejected_total": self.replicas.rejected_total + sum(shell.core.rejected_total for shell in self.shells.values()),
            "placement_moves_total": self._placing.moves_total,
            "copies_sent_total": self.replicas.copying.sent_total,
            "copies_installed_total": self.replicas.copying.installed_total,
            "copy_bytes_sent_total": self.replicas.copying.bytes_sent_total,
            "replicas_retired_total": self.replicas.retired_total,
            "connections": self._counters.open,
            "connections_refused_total": self._counters.refused_total,
            "protocol_errors_total": self._counters.protocol_errors_total,
            "access_denied_total": self._counters.access_denied_total,
            "handshakes_failed_total": self.penalties.failed_total,
        }
