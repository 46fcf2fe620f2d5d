"""A host: one process that holds replicas of many partitions, runs their actors and serves their callers.

This file puts the parts together and takes them apart again; each part knows its own business:

=============  ==========================================================
`server`       connections: handshake, frames, answers
`partition`    one replica: admission, log, commit, recovery
`runner`       turns
`residents`    which activations stay in memory
`commit`       group commit to the store
`outgoing`     calls that actors make, offloaded work
`watchdog`     turns that block the loop
=============  ==========================================================

The same class runs inside a Ray actor, in tests and without either.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import ipaddress
import itertools
import logging
import os
import random
import time
from pathlib import Path
from typing import Any, Final

from actorgrid.actor.registry import ActorRegistry
from actorgrid.client.caller import Caller
from actorgrid.errors import SettingsError, StorageError
from actorgrid.host.commit import GroupCommit
from actorgrid.host.offload import Offloader, ProcessOffloader
from actorgrid.host.outgoing import OutgoingCalls
from actorgrid.host.partition import HostedPartition
from actorgrid.host.residents import Residents
from actorgrid.host.runner import Runner
from actorgrid.host.server import ConnectionCounters, HostConnection, unknown_verb
from actorgrid.host.watchdog import Watchdog
from actorgrid.ids import HostName, PartitionId, new_client_id
from actorgrid.settings import ClientSettings, HostSettings, WireSettings
from actorgrid.storage.store import Store, StoreIdentity
from actorgrid.wire import messages
from actorgrid.wire.messages import HostInfo

logger = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 0.25
SWEEP_OVER_LIMIT_S: Final = 0.01
STOP_GRACE_S: Final = 3.0
#: Clients whose progress is remembered; beyond that the longest unheard go. They lose nothing but an early release of records.
WATERMARKS_MAX: Final = 100_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What a host is told at start.

    :ivar hosts: all hosts of the grid in their fixed order; partition i is on ``hosts[(i - 1) % len(hosts)]``
    :ivar app: modules with actor classes; :ivar app_path: directories put in front of ``sys.path`` before they are imported
    """

    cluster_id: str
    name: HostName
    node: str
    zone: str = ""
    data_dir: Path
    address: str
    port: int
    partition_count: int
    replica_set_size: int
    hosts: tuple[HostInfo, ...]
    app: tuple[str, ...]
    app_path: tuple[str, ...] = ()
    settings: HostSettings = dataclasses.field(default_factory=HostSettings)
    wire: WireSettings = dataclasses.field(default_factory=WireSettings)

    def __post_init__(self) -> None:
        problems = []
        if self.name not in [host.name for host in self.hosts]:
            problems.append(f"host {self.name} is not among the hosts of the grid: {', '.join(host.name for host in self.hosts)}")
        if len({host.name for host in self.hosts}) != len(self.hosts):
            problems.append("two hosts have one name")
        if not 1 <= self.partition_count <= 65_536:
            problems.append(f"partition count {self.partition_count} is outside the allowed range 1..65536")
        if self.replica_set_size != 1:
            problems.append(f"replica set size {self.replica_set_size}: this release keeps one replica of a partition")
        if not _is_loopback(self.address):
            problems.append(
                f"address {self.address!r} is not a loopback address: listening elsewhere needs credentials, "
                "which this release does not have"
            )
        if problems:
            raise SettingsError(*problems)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class Host:
    """One host. `start` it once; when it has failed or stopped, make a new one."""

    def __init__(self, config: HostConfig, *, offloader: Offloader | None = None) -> None:
        self.config = config
        self.cluster_id = config.cluster_id
        self.partitions: dict[int, HostedPartition] = {}
        self.watermarks: dict[bytes, int] = {}
        self.state = "starting"
        self._offloader: Offloader = offloader or ProcessOffloader(config.app_path)
        self._incarnation = 0
        self._counters = ConnectionCounters()
        self._connections: dict[HostConnection, None] = {}
        self._store: Store | None = None
        self._server: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None

    # -- life

    async def start(self) -> None:
        """Load the app, open the store, bring every partition up, and listen. Serves when it returns.

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
        identity = StoreIdentity(config.cluster_id, config.name, config.partition_count, tuple(host.name for host in config.hosts))
        self._store = store = Store(config.data_dir / "store", identity)
        try:
            self._incarnation = store.next_incarnation()
            self._watchdog = Watchdog(settings.loop_block_report_s, settings.loop_block_limit_s)
            self.runner = Runner(loop, settings, config.wire, self._watchdog)
            self.residents = Residents(settings)
            self._commit = GroupCommit(loop, store, self._fail)
            self._caller = Caller(
                client_id=new_client_id(),
                settings=ClientSettings(in_flight_max=min(settings.host_queue_max, 1_048_576)),
                wire=config.wire,
                rng=random.Random(),  # noqa: S311 - jitter of retries
                role=messages.ROLE_HOST,
                cluster_id=config.cluster_id,
            )
            self._caller.set_map(self.map_message())
            outgoing = OutgoingCalls(loop, config.partition_count, self.partitions, self.watermarks, self._caller, self._offloader)
            self._recover(outgoing)
            await self._listen()
        except BaseException:
            await self._take_apart()
            raise
        self._watchdog.start()
        self._sweep()
        self.state = "serving"
        logger.info(
            "host serves name=%s address=%s:%d pid=%d partitions=%d actors=%s",
            config.name, config.address, self.port, os.getpid(), len(self.partitions), ",".join(self.registry.names),
        )  # fmt: skip

    def _recover(self, outgoing: OutgoingCalls) -> None:
        """Read every partition this host has, and commit the first entry of a new epoch in each, in two syncs for all of them."""
        config, store = self.config, self._store
        assert store is not None
        own = [host.name for host in config.hosts].index(config.name)
        batch = store.batch()
        for partition_id in range(own + 1, config.partition_count + 1, len(config.hosts)):
            partition = HostedPartition(
                PartitionId(partition_id),
                config.partition_count,
                store,
                self.registry,
                config.settings,
                self.runner,
                self._commit,
                outgoing,
                self.residents,
            )
            partition.recover(batch)
            self.partitions[partition_id] = partition
        store.write(batch)
        store.sync_now()
        for partition in self.partitions.values():
            partition.epoch_saved()

    async def _listen(self) -> None:
        await self._commit.drain(60)
        if self._failure.done():
            raise self._failure.result()
        config = self.config
        try:
            self._server = await self._loop.create_server(
                lambda: HostConnection(self, config.wire, config.settings.connections_max, self._counters, self._connections),
                config.address,
                config.port,
                backlog=1024,
            )
        except OSError as error:
            raise SettingsError(f"cannot listen on {config.address}:{config.port}: {error.strerror or error}") from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Finish what runs (for a short while), make everything durable, say goodbye to the peers, close."""
        if self.state in ("stopped", "stopping"):
            return
        self.state = "stopping"
        if self._server is not None:
            self._server.close()
        deadline_s = self._loop.time() + STOP_GRACE_S
        await self._finish_turns(deadline_s)
        for partition in self.partitions.values():
            for activation in list(partition.activations.values()):
                if "on_deactivate" in activation.actor_type.hooks:
                    partition.deactivate(activation)
        await self._finish_turns(deadline_s)
        for partition in self.partitions.values():
            partition.step_down("the host is stopping")
        for connection in list(self._connections):
            connection.say_goodbye(f"host {self.config.name} is stopping")
        await self._take_apart()
        self.state = "stopped"

    async def _finish_turns(self, deadline_s: float) -> None:
        """Wait until nothing runs and all that ran is in the state, at most until `deadline_s`, but half a second for the commit."""
        while self.runner.admitted and self._loop.time() < deadline_s and not self._failure.done():
            await asyncio.sleep(0.005)
        await self._commit.drain(max(0.5, deadline_s - self._loop.time()))

    async def _take_apart(self) -> None:
        for partition in self.partitions.values():
            partition.step_down("the host is stopping")
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        if hasattr(self, "_watchdog"):
            self._watchdog.stop()
        if hasattr(self, "_commit"):
            self._commit.stop()
        if hasattr(self, "_caller"):
            await self._caller.close()
        await self._offloader.close()
        await asyncio.sleep(0)
        store, self._store = self._store, None
        if store is not None:
            self.partitions.clear()
            await asyncio.to_thread(store.close)

    def _fail(self, error: StorageError) -> None:
        """The store is of no further use: every partition leaves duty, and nothing more is accepted (I12)."""
        if self._failure.done():
            return
        self.state = "failed"
        logger.error("host leaves duty name=%s error=%s", self.config.name, error)
        for partition in self.partitions.values():
            partition.step_down(str(error))
        self._failure.set_result(error)
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.say_goodbye(f"host {self.config.name} lost its store: {error}")

    async def run_until_failed(self) -> BaseException:
        """Wait until a storage error has ended this host's duty; the process should end then and be started anew.

        :return: the error
        """
        return await asyncio.shield(self._failure)

    def _sweep(self) -> None:
        """Housekeeping, a little at a time; in quick succession while activations take more memory than they may (I16)."""
        every_s = SWEEP_EVERY_S if not self.residents.over_limit else SWEEP_OVER_LIMIT_S
        self._sweep_timer = self._loop.call_later(every_s, self._sweep)
        self.residents.sweep(time.monotonic())
        for report in self.runner.report_stuck():
            logger.warning("turn waits method=%(method)s actor=%(actor)s for_s=%(waiting_s)s", report)
        while len(self.watermarks) > WATERMARKS_MAX:
            del self.watermarks[next(iter(self.watermarks))]

    # -- for connections

    def map_message(self) -> messages.MapMessage:
        hosts = self.config.hosts
        return messages.MapMessage(1, self.cluster_id, list(hosts), [i % len(hosts) for i in range(self.config.partition_count)])

    def welcome(self, version: int) -> messages.Welcome:
        config = self.config
        positions: dict[int, int] = {partition.id: partition.replica.committed_lsn for partition in self.partitions.values()}
        return messages.Welcome(
            version, self.cluster_id, config.name, self._incarnation, config.wire.frame_bytes_max, self.map_message(), positions
        )

    def primary_of(self, partition: int) -> str:
        if not 1 <= partition <= self.config.partition_count:
            return ""
        host = self.config.hosts[(partition - 1) % len(self.config.hosts)]
        return f"{host.name}@{host.address}:{host.port}"

    def administer(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer an operator's tool.

        :raises RequestError: unknown verb
        """
        if verb == "status":
            return self.status()
        raise unknown_verb(verb, ["status"])

    def status(self) -> dict[str, Any]:
        """This host's part of ``actorgrid status``."""
        config = self.config
        return {
            "host": {
                "name": config.name,
                "node": config.node,
                "zone": config.zone,
                "address": f"{config.address}:{config.port}",
                "pid": os.getpid(),
                "incarnation": self._incarnation,
                "state": self.state,
                "primaries": sum(partition.serving for partition in self.partitions.values()),
                "secondaries": 0,
                "data_dir": str(config.data_dir),
            },
            "counters": self._counter_values(),
            "stuck_turns": list(itertools.islice(self.runner.report_stuck(), 20)),
            "partitions": [partition.status() for partition in self.partitions.values()],
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
            "connections": self._counters.open,
            "connections_refused_total": self._counters.refused_total,
            "protocol_errors_total": self._counters.protocol_errors_total,
        }
