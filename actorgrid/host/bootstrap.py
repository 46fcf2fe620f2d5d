"""The one act that begins a grid (design.md, section 7): every host creates its first replicas, once.

A host with an empty disk cannot know whether it is new or was emptied, so it never creates anything by itself. `init` asks every host which
store it has, writes those down as the *plan*, and lets each host create its replicas if the plan names the very store it has. A repeated
`init` keeps the plan that is there: a store that was emptied in between is another one, and is filled by the partitions' primaries instead.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

import msgspec

from actorgrid.ambient import new_client_id
from actorgrid.client.admin import ask
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError, HostUnavailableError, RequestError
from actorgrid.host.commit import GroupCommit
from actorgrid.replication.configuration import first_configuration
from actorgrid.settings import HostSettings, WireSettings
from actorgrid.storage.replica_store import ReplicaStore
from actorgrid.storage.store import Batch, ReplicaPointer, Store
from actorgrid.wire.messages import HostInfo

logger = logging.getLogger(__name__)

HOSTS_WAIT_S: Final = 30.0
ASK_TIMEOUT_S: Final = 10.0
SYSTEM_PARTITION: Final = 0


class Plan(msgspec.Struct, frozen=True):
    """What the first replicas are created from.

    :ivar stores: (host, store id), in the order of the grid's hosts
    """

    cluster_id: str
    partition_count: int
    replica_set_size: int
    stores: tuple[tuple[str, str], ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host for host, _ in self.stores)


class BootstrapOwner(Protocol):
    """What the bootstrap needs of its host."""

    def begin_replicas(self) -> None:
        """Let the replicas that were created take part."""


class Bootstrap:
    """One host's part in the beginning of its grid."""

    def __init__(
        self,
        *,
        cluster_id: str,
        me: str,
        hosts: tuple[HostInfo, ...],
        partition_count: int,
        replica_set_size: int,
        store: Store,
        commit: GroupCommit,
        settings: HostSettings,
        wire: WireSettings,
        owner: BootstrapOwner,
        credentials: Credentials | None = None,
    ) -> None:
        self._cluster_id = cluster_id
        self._me = me
        self._hosts = hosts
        self._partition_count = partition_count
        self._replica_set_size = replica_set_size
        self._store = store
        self._commit = commit
        self._settings = settings
        self._wire = wire
        self._owner = owner
        self._credentials = credentials

    # -- the host that was told to begin

    async def init(self) -> dict[str, Any]:
        """Begin the grid, or finish what an earlier `init` began. Safe to repeat.

        :return: ``created``: hosts that have their replicas; ``emptied``: hosts whose store is not the one of the plan
        :raises HostUnavailableError: not every host can be reached
        """
        answers = await self._ask_all("bootstrap_state", {})
        plans = [answer["plan"] for answer in answers.values() if answer["plan"]]
        if plans:
            plan = msgspec.json.decode(plans[0], type=Plan)
        else:
            stores = tuple((host.name, str(answers[host.name]["store_id"])) for host in self._hosts)
            plan = Plan(self._cluster_id, self._partition_count, self._replica_set_size, stores)
        encoded = msgspec.json.encode(plan).decode()
        created = {name: answer["created"] for name, answer in (await self._ask_all("bootstrap_create", {"plan": encoded})).items()}
        await self._ask_all("bootstrap_begin", {})
        emptied = [name for name, done in created.items() if not done]
        logger.info("grid begun cluster_id=%s hosts=%d emptied=%s", self._cluster_id, len(created), ",".join(emptied))
        return {"created": [name for name, done in created.items() if done], "emptied": emptied}

    async def _ask_all(self, verb: str, arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            tasks = {host.name: group.create_task(self._ask(host, verb, arguments)) for host in self._hosts}
        answers = {name: task.result() for name, task in tasks.items()}
        failed = {name: answer for name, answer in answers.items() if isinstance(answer, ActorGridError)}
        if failed:
            raise HostUnavailableError(
                f"the grid cannot begin without all its hosts: {'; '.join(f'{name}: {error}' for name, error in failed.items())}"
            )
        return answers  # type: ignore[return-value]

    async def _ask(self, host: HostInfo, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | ActorGridError:
        """The answer of one host, asked again while it is starting."""
        if host.name == self._me:
            return await self.answer(verb, arguments)
        deadline_s = asyncio.get_running_loop().time() + HOSTS_WAIT_S
        while True:
            try:
                answer: dict[str, Any] = await ask(
                    host.address,
                    host.port,
                    verb,
                    arguments,
                    client_id=new_client_id(),
                    cluster_id=self._cluster_id,
                    wire=self._wire,
                    timeout_s=ASK_TIMEOUT_S,
                    credentials=self._credentials,
                )
            except HostUnavailableError as error:
                if asyncio.get_running_loop().time() > deadline_s:
                    return error
                await asyncio.sleep(0.1)
            except ActorGridError as error:
                return error
            else:
                return answer

    # -- every host

    async def answer(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do one step that the host which begins the grid asks for.

        :raises RequestError: the plan is none, or not for this grid
        """
        if verb == "bootstrap_state":
            plan = self._store.bootstrap_plan()
            return {"store_id": self._store.store_id, "plan": plan.decode() if plan is not None else None}
        if verb == "bootstrap_create":
            return {"created": await self._create(str(arguments.get("plan", "")))}
        self._owner.begin_replicas()
        return {}

    async def _create(self, encoded: str) -> bool:
        """Create this host's first replicas, durably; False if the plan names another store than this host has."""
        try:
            plan = msgspec.json.decode(encoded, type=Plan)
        except msgspec.MsgspecError as error:
            raise RequestError(f"this is no plan of a grid: {error}") from None
        wanted = (self._cluster_id, self._partition_count, self._replica_set_size, tuple(host.name for host in self._hosts))
        if (plan.cluster_id, plan.partition_count, plan.replica_set_size, plan.hosts) != wanted:
            raise RequestError(f"the plan is for another grid than host {self._me} was started for: {encoded:.300}")
        if self._store.bootstrap_plan() is not None:
            return True
        if dict(plan.stores)[self._me] != self._store.store_id:
            return False
        done = asyncio.get_running_loop().create_future()

        def fill(batch: Batch) -> None:
            for partition in range(self._partition_count + 1):
                configuration = first_configuration(partition, plan.hosts, self._replica_set_size)
                member = configuration.on_host(self._me)
                if member is not None:
                    pointer = ReplicaPointer(partition, member.incarnation, 1, "active")
                    ReplicaStore.create(batch, self._store, pointer, configuration)
            self._store.put_bootstrap_plan(batch, encoded.encode())

        self._commit.submit(fill, lambda: done.set_result(None) if not done.done() else None)
        await done
        return True
