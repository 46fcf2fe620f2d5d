"""The placement manager: it runs in the host of the system partition's primary, observes, lets `placement` decide, and gives orders.

Level-triggered: what is to be done follows from the reports of the moment and from what operators want, which is an entry of the system
partition. A manager that takes office knows nothing else, and one that is deposed half-way has left nothing undone that its successor would
not see. Orders name the configuration they were decided on; one that comes late or twice does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from actorgrid import ambient
from actorgrid.errors import ActorGridError, DeadlineExceededError, HostUnavailableError, NotPrimaryError, RequestError
from actorgrid.host.bootstrap import SYSTEM_PARTITION
from actorgrid.host.labels import problems_of, say
from actorgrid.host.moves import Moves, Order
from actorgrid.host.partition import HostedPartition
from actorgrid.host.reports import REPLICAS_UNLIMITED, HostRecord, HostReport, Overview, decode_report
from actorgrid.wire.messages import HostInfo
from placement import Build, Command, Drain, Intent, Limits, Observation, PartitionView, Plan, Remove, Swap, explain, make_plan

logger = logging.getLogger(__name__)

STATE_ADDRESS: Final = "actorgrid.System\0placement"
TICK_S: Final = 0.25
#: Between two looks at all hosts, however much there is to do.
TICK_LEAST_S: Final = 0.1
#: Hosts that take long to report are busy, and calls go first: between two ticks is so many times what the reports took, up to a limit.
TICK_BUSY_FACTOR: Final = 20.0
TICK_BUSY_MAX_S: Final = 1.0
TICK_LEAST_PER_HOST_S: Final = 0.001
REPORT_TIMEOUT_S: Final = 1.0
STATE_TIMEOUT_S: Final = 5.0
NAME_MAX: Final = 256
FAILED_PAUSE_S: Final = 1.0
#: An emptied host that was to be removed is forgotten after it has been down for so long.
FORGET_AFTER_S: Final = 3.0


#: Ten years.
DEADLINE_MAX_S: Final = 315_576_000.0
#: Who wants what Kubernetes is about to do; no host has this name.
KUBERNETES: Final = "kubernetes"


class IntentRecord(Struct, array_like=True):
    """What an operator wants of a node.

    :ivar number: the order in which intents came
    :ivar deadline_ms: date by which it should be done, or 0
    :ivar by: the host that wants it since its process is to end; it ends when that host is back. `KUBERNETES`: the watcher wants it, and
        takes it back. Empty: an operator wants it
    :ivar kept: the lower intent of an operator that counts again when it ends; 0: there was none
    """

    intent: int
    number: int
    deadline_ms: int = 0
    by: str = ""
    kept: int = 0


class PlacementState(Struct):
    """What the system partition remembers for placement.

    :ivar intents: by node
    :ivar nodes: by host, as last reported
    :ivar hosts: host -> (address, port)
    :ivar hosts_version: of that list
    :ivar constraint: labels that the nodes of all replicas must have
    :ivar constraints: partition -> the same for its replicas, in place of `constraint`
    """

    intents: dict[str, IntentRecord] = {}
    nodes: dict[str, HostRecord] = {}
    frozen_why: str = ""
    last_number: int = 0
    hosts: dict[str, tuple[str, int]] = {}
    hosts_version: int = 0
    constraint: dict[str, str] = {}
    constraints: dict[int, dict[str, str]] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PlacementState).decode


class ManagerOwner(Protocol):
    """What a manager needs of its host."""

    partitions: dict[int, HostedPartition]

    def host_infos(self) -> list[HostInfo]:
        """All hosts of the grid, as this one knows them."""

    def own_report(self) -> HostReport:
        """What this host reports."""

    async def ask_host(self, host: str, verb: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """Ask a host, this one included."""


class Manager:
    """The manager of one host; in office only while that is primary of the system partition.

    :ivar moves: what it has ordered
    """

    def __init__(
        self, owner: ManagerOwner, me: str, limits: Limits, *, replica_set_size: int, partition_count: int, date_ms: Callable[[], int]
    ) -> None:
        self.moves = Moves(owner.ask_host, date_ms, self._is_in_office)
        self.plan: Plan | None = None
        self._owner = owner
        self._me = me
        self._limits = limits
        self._replica_set_size = replica_set_size
        self._partition_count = partition_count
        self._date_ms = date_ms
        self._overview: Overview | None = None
        self._observation: Observation | None = None
        self._state = PlacementState()  # as it is committed ...
        self._logged = self._state  # ... and as it will be
        self._epoch = 0
        self._strangers: set[tuple[str, int, int, int, int]] = set()
        self._wants_rebalance = False
        self._changing = asyncio.Lock()
        self._left_s: dict[str, float] = {}  # since when it is known that a node's own host wants to leave
        self._gather_s = 0.0  # what the last look at all hosts took

    # -- the loop

    async def run(self) -> None:
        """Take office whenever the system partition is served here, for ever."""
        try:
            while True:
                began_s = ambient.monotonic()
                system = self._owner.partitions.get(SYSTEM_PARTITION)
                if system is not None and system.serving:
                    try:
                        await self._tick(system)
                    except ActorGridError as error:
                        logger.warning("placement looks again later: %s", error)
                    except Exception:
                        # Data are safe without a manager. One that failed here would fail in the next host too, if this one went down.
                        logger.exception("placement failed, it begins anew")
                        self._leave_office()
                        await asyncio.sleep(FAILED_PAUSE_S)
                else:
                    self._leave_office()
                await self._pause(began_s)
        finally:
            self._leave_office()

    async def _pause(self, began_s: float) -> None:
        """Until the next tick: sooner when an order is over, since then there may be another one to give."""
        self.moves.one_is_done.clear()
        await asyncio.sleep(self._tick_least_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, TICK_S - (ambient.monotonic() - began_s))):
                await self.moves.one_is_done.wait()

    @property
    def _tick_least_s(self) -> float:
        """Between two ticks."""
        busy_s = min(TICK_BUSY_MAX_S, TICK_BUSY_FACTOR * self._gather_s)
        return max(TICK_LEAST_S, TICK_LEAST_PER_HOST_S * len(self._state.hosts), busy_s)

    @property
    def _limits_now(self) -> Limits:
        """With what a build and a swap take at the pace of now: a host gets one of each with a tick, a removal follows with the next."""
        tick_s = self._tick_least_s
        limits = self._limits
        return msgspec.structs.replace(limits, build_overhead_s=max(limits.build_overhead_s, 2 * tick_s), swap_s=max(limits.swap_s, tick_s))

    def _is_in_office(self) -> bool:
        system = self._owner.partitions.get(SYSTEM_PARTITION)
        return self._overview is not None and system is not None and system.serving and system.replica.epoch == self._epoch

    def _leave_office(self) -> None:
        self._overview = self._observation = self.plan = None
        self.moves.forget()
        self._strangers.clear()

    async def _tick(self, system: HostedPartition) -> None:
        if self._overview is None or self._epoch != system.replica.epoch:
            self._leave_office()
            self._take_office(system)
        overview = self._overview
        assert overview is not None
        began_s = ambient.monotonic()
        before = self.moves.under_way()  # what ends while reports come in may be in none of them
        await self._gather(overview)
        self._gather_s = ambient.monotonic() - began_s
        if not system.serving or self._overview is not overview or system.replica.epoch != self._epoch:
            return
        now_s = ambient.monotonic()
        overview.let_time_pass(now_s)
        await self._remember_nodes(overview)
        await self._welcome_back(overview)
        await self._keep_roster(overview)
        self._observation = observation = self._observe(overview, now_s, before)
        limits = self._limits_now
        if self._wants_rebalance:
            limits = msgspec.structs.replace(limits, quiet_s=0.0)
        self.plan = make_plan(observation, limits)
        if self._wants_rebalance and not self.plan.commands:
            self._wants_rebalance = False
        orders = [order for command in self.plan.commands if (order := self._order_of(command)) is not None]
        strangers = set(overview.strangers())
        # Seen twice: what was just installed may know of itself a moment before its primary's next report does.
        for host, partition, incarnation, epoch, version in sorted(strangers & self._strangers):
            arguments = {"partition": partition, "incarnation": incarnation, "epoch": epoch, "version": version}
            orders.append(Order(partition, "drop", host, host, arguments, f"configuration {version} does not name it"))
        self.moves.order(orders, self._tick_least_s)
        self._strangers = strangers

    def _take_office(self, system: HostedPartition) -> None:
        self._epoch = system.replica.epoch
        stored = system.shell.durable.entries_of(STATE_ADDRESS).get(b"")
        self._state = self._logged = _decode(stored) if stored is not None else PlacementState()
        names = self._state.hosts or [info.name for info in self._owner.host_infos()]
        self._overview = Overview(names, ambient.monotonic())
        self._wants_rebalance = False
        logger.info("placement manager in office epoch=%d intents=%s", self._epoch, sorted(self._state.intents))

    async def _gather(self, overview: Overview) -> None:
        """The reports of all hosts; who does not answer is asked again with the next tick."""

        async def of(name: str) -> None:
            try:
                answer = await self._owner.ask_host(name, "report", {}, REPORT_TIMEOUT_S)
                overview.take(decode_report(answer), ambient.monotonic())
            except ActorGridError as error:
                logger.debug("no report host=%s error=%s", name, error)

        overview.take(self._owner.own_report(), ambient.monotonic())
        async with asyncio.TaskGroup() as group:
            for name in overview.names:
                if name != self._me:
                    group.create_task(of(name))

    async def _remember_nodes(self, overview: Overview) -> None:
        """Where each host is outlives it: a host that is down is on a node still."""
        reports = [overview.report_of(name) for name in overview.names]
        seen = {report.name: HostRecord(report.node, report.zone, report.capacity) for report in reports if report is not None}
        if any(self._state.nodes.get(name) != where for name, where in seen.items()):
            await self._change(lambda state: msgspec.structs.replace(state, nodes={**state.nodes, **seen}))

    async def _keep_roster(self, overview: Overview) -> None:
        """The list of hosts: begun by the first manager, rid of those that have gone for good, and sent to whom it is new."""
        if not self._state.hosts:
            first = {info.name: (info.address, info.port) for info in self._owner.host_infos()}
            await self._change(
                lambda state: msgspec.structs.replace(state, hosts=first | state.hosts, hosts_version=state.hosts_version + 1)
            )
        gone = self._gone(overview)
        if gone:
            logger.info("hosts forgotten hosts=%s", ",".join(gone))
            await self._change(lambda state: _without_hosts(state, gone))
            overview.set_names(self._state.hosts, ambient.monotonic())
        version = self._state.hosts_version
        for name in overview.names:
            report = overview.report_of(name)
            if overview.is_up(name) and report is not None and report.roster_version < version:
                with contextlib.suppress(ActorGridError):  # it is sent again with the next tick
                    await self._owner.ask_host(name, "roster", self._roster(), REPORT_TIMEOUT_S)

    def _roster(self) -> dict[str, Any]:
        hosts = [msgspec.to_builtins(HostInfo(name, address, port)) for name, (address, port) in self._state.hosts.items()]
        return {"version": self._state.hosts_version, "hosts": hosts}

    def _gone(self, overview: Overview) -> list[str]:
        """Hosts on nodes that were to be removed, are empty, and do not run any more."""
        if self.plan is None or self._observation is None or not self._observation.is_complete:
            return []
        now_s = ambient.monotonic()
        done = {drain.node for drain in self.plan.drains if drain.is_done and drain.intent is Intent.REMOVE_NODE}
        return [
            name
            for name in overview.names
            if name in self._state.nodes and self._state.nodes[name].node in done and overview.down_s(name, now_s) > FORGET_AFTER_S
        ]

    async def _join(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A host wants to be of the grid."""
        name, address, node, zone = (str(arguments.get(key, "")) for key in ("host", "address", "node", "zone"))
        port = arguments.get("port")
        if not name or len(name) > NAME_MAX or not address or not node or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise RequestError(f"a host that joins says its name, address, port and node, got {arguments!r:.300}")
        overview = self._overview
        assert overview is not None
        if self._state.hosts.get(name) != (address, port):
            logger.info("host joins name=%s address=%s:%d node=%s", name, address, port, node)
            if not self._state.hosts:
                raise HostUnavailableError("the placement manager has just taken office", retry_after_s=TICK_S)

            def with_host(state: PlacementState) -> PlacementState:
                # What it may be given it says with its first report; until then what it said last counts.
                known = state.nodes.get(name) or HostRecord(node, zone)
                record = msgspec.structs.replace(known, node=node, zone=zone)
                hosts, nodes = {**state.hosts, name: (address, port)}, {**state.nodes, name: record}
                return msgspec.structs.replace(state, hosts=hosts, nodes=nodes, hosts_version=state.hosts_version + 1)

            await self._change(with_host)
            overview.set_names(self._state.hosts, ambient.monotonic())
        return self._roster()

    def _observe(self, overview: Overview, now_s: float, before: dict[int, str] | None = None) -> Observation:
        intents = {node: (Intent(record.intent), record.number) for node, record in self._state.intents.items()}
        return overview.observation(
            now_s,
            intents=intents,
            nodes=self._state.nodes,
            replica_set_size=self._replica_set_size,
            partition_count=self._partition_count,
            busy=(before or {}) | self.moves.under_way(),
            frozen_why=self._state.frozen_why,
            constraint_of=lambda partition: self._state.constraints.get(partition, self._state.constraint),
        )

    # -- orders

    def _order_of(self, command: Command) -> Order | None:
        overview = self._overview
        assert overview is not None
        led = overview.led(command.partition)
        if led is None:
            return None
        arguments: dict[str, Any] = {"partition": command.partition, "version": command.version, "host": command.host}
        match command:
            case Build():
                verb, arguments["instead_of"] = "build", command.instead_of
            case Swap():
                verb = "swap"
            case Remove():
                verb, arguments["incarnation"] = "remove", command.incarnation
        return Order(command.partition, verb, command.host, led[1], arguments, command.why)

    # -- what operators want

    async def operate(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer an operator.

        :raises NotPrimaryError: the manager is not here
        :raises HostUnavailableError: it has just taken office and knows too little
        :raises RequestError: unknown verb, node or partition, or an intent that may not follow the one that is there
        """
        observation, plan = self._observation, self.plan
        if self._overview is None:
            raise NotPrimaryError("the placement manager is not here", partition=SYSTEM_PARTITION)
        if observation is None or plan is None:
            raise HostUnavailableError("the placement manager has just taken office", retry_after_s=TICK_S)
        match verb:
            case "nodes":
                return self._nodes(observation, plan)
            case "partitions":
                rows = [_partition_row(partition) for partition in sorted(observation.partitions, key=lambda each: each.id)]
                return {"partitions": rows}
            case "join":
                return await self._join(arguments)
            case "drain":
                return await self._drain(observation, arguments)
            case "drain_status":
                if arguments.get("node") not in [view.name for view in observation.nodes]:
                    return {"node": str(arguments.get("node")), "state": "forgotten"}
                return self._drain_row(self._node(observation, arguments))
            case "undrain":
                return await self._undrain(observation, arguments)
            case "explain":
                return self._explain(observation, arguments)
            case "moves":
                since = arguments.get("since", 0)
                if not isinstance(since, int):
                    raise RequestError(f"since must be the number of a move, got {since!r:.100}")
                return {"moves": [msgspec.to_builtins(move) for move in self.moves.last if move.number > since or not move.outcome]}
            case "rebalance":
                return self._rebalance(observation, dry_run=bool(arguments.get("dry_run")))
            case "freeze":
                return await self._freeze(arguments)
            case "constrain":
                return await self._constrain(observation, arguments)
            case "unfreeze":
                await self._change(lambda state: msgspec.structs.replace(state, frozen_why=""))
                return {"frozen_why": ""}
            case _:
                raise RequestError(f"unknown verb {verb!r}; of the placement manager are {', '.join(VERBS)}")

    def _node(self, observation: Observation, arguments: dict[str, Any]) -> str:
        node = arguments.get("node")
        known = sorted(view.name for view in observation.nodes)
        if node not in known:
            raise RequestError(f"there is no node {node!r}; known are {', '.join(known)}")
        return str(node)

    async def _drain(self, observation: Observation, arguments: dict[str, Any]) -> dict[str, Any]:
        node = self._node(observation, arguments)
        wanted = _intent(arguments)
        if arguments.get("estimate"):
            return self._estimate(observation, node, wanted)
        deadline_s = arguments.get("deadline_s", 0)
        if not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= DEADLINE_MAX_S:
            raise RequestError(f"deadline_s must be seconds from 0 to {DEADLINE_MAX_S:.0f}, got {deadline_s!r:.100}")
        deadline_ms = self._date_ms() + int(deadline_s * 1000) if deadline_s else 0
        by = str(arguments.get("by", ""))

        def with_intent(state: PlacementState) -> PlacementState:
            number = state.last_number + 1
            before = state.intents.get(node)
            if before is not None and wanted < before.intent:
                have = Intent(before.intent).name.lower()
                raise RequestError(f"node {node} has the intent {have} already, and intents only rise: take it back first (undrain)")
            kept = 0
            if before is not None and by:
                if before.intent >= wanted and (not before.by or (by == KUBERNETES and before.by != by)):
                    return state  # an operator wants as much, and until it is taken back, or a host does, and until it is back
                kept = before.kept if before.by else before.intent
            record = IntentRecord(int(wanted), before.number if before is not None else number, deadline_ms, by, kept)
            return msgspec.structs.replace(state, intents={**state.intents, node: record}, last_number=number)

        await self._change(with_intent)
        logger.info("intent node=%s intent=%s by=%s", node, wanted.name.lower(), by or "operator")
        self._look_again()
        return self._drain_row(node)

    async def _undrain(self, observation: Observation, arguments: dict[str, Any]) -> dict[str, Any]:
        """End what is wanted of a node; with `by`, only if it is wanted by that one."""
        node = self._node(observation, arguments)
        await self._take_back(node, str(arguments.get("by", "")))
        self._look_again()
        stands = self._standing(node)
        return {"node": node, "intent": "none"} if stands["intent"] == "none" else {"node": node, **stands}

    async def _take_back(self, node: str, by: str) -> None:
        """End what is wanted of `node`; what `by` wanted, if that is given: then what an operator wanted before counts again."""
        taken: list[int] = []

        def without_intent(state: PlacementState) -> PlacementState:
            record = state.intents.get(node)
            if record is None or (by and record.by != by):  # somebody else has asked for something meanwhile
                return state
            taken.append(record.intent)
            intents = {name: each for name, each in state.intents.items() if name != node}
            if by and record.kept:
                intents[node] = IntentRecord(record.kept, record.number)
            return msgspec.structs.replace(state, intents=intents)

        await self._change(without_intent)
        if taken:
            logger.info("intent taken back node=%s intent=%s by=%s", node, Intent(taken[0]).name.lower(), by or "operator")

    def _standing(self, node: str) -> dict[str, Any]:
        """What is wanted of the node, by whom, and how long there is."""
        record = self._state.intents.get(node)
        if record is None:
            return {"intent": "none", "by": "", "deadline_left_s": None}
        left_s = round((record.deadline_ms - self._date_ms()) / 1000, 1) if record.deadline_ms else None
        return {"intent": Intent(record.intent).name.lower(), "by": record.by, "deadline_left_s": left_s}

    async def _welcome_back(self, overview: Overview) -> None:
        """A host that left to be restarted, and that reports again as one that stays, wants nothing any more."""
        leaving = {node: record.by for node, record in self._state.intents.items() if record.by not in ("", KUBERNETES)}
        self._left_s = {node: self._left_s.get(node, ambient.monotonic()) for node in leaving}
        for node, host in leaving.items():
            report = overview.report_of(host)
            is_back = report is not None and not report.is_leaving and overview.is_up(host)
            # Only what it said after its wish was known.
            if is_back and overview.heard_s(host) > self._left_s[node]:
                await self._take_back(node, host)

    def _estimate(self, observation: Observation, node: str, wanted: Intent) -> dict[str, Any]:
        """How long it would take now: `placement` is asked as if the intent were there."""
        nodes = [
            msgspec.structs.replace(view, intent=wanted, intent_no=1 << 30) if view.name == node else view for view in observation.nodes
        ]
        plan = make_plan(msgspec.structs.replace(observation, nodes=nodes), self._limits_now)
        row = self._row(next(drain for drain in plan.drains if drain.node == node))
        return {**row, "state": "estimate"}

    def _explain(self, observation: Observation, arguments: dict[str, Any]) -> dict[str, Any]:
        number = arguments.get("partition")
        if not isinstance(number, int):
            raise RequestError(f"partition must be a number, got {number!r}")
        try:
            lines = explain(observation, number, self._limits)
        except KeyError:
            raise RequestError(f"there is no partition {number}") from None
        moves = [msgspec.to_builtins(move) for move in self.moves.last if move.partition == number]
        return {"partition": number, "lines": lines, "moves": moves[-10:]}

    def _rebalance(self, observation: Observation, *, dry_run: bool) -> dict[str, Any]:
        plan = make_plan(observation, msgspec.structs.replace(self._limits, quiet_s=0.0))
        if not dry_run:
            self._wants_rebalance = True
        commands = [{"what": type(each).__name__.lower(), **msgspec.to_builtins(each)} for each in plan.commands]
        return {"next": commands, "is_balanced": plan.is_balanced, "dry_run": dry_run}

    async def _freeze(self, arguments: dict[str, Any]) -> dict[str, Any]:
        why = arguments.get("reason")
        if not isinstance(why, str) or not why.strip() or len(why) > 1000:
            raise RequestError("a freeze needs a reason, of at most 1,000 characters")
        await self._change(lambda state: msgspec.structs.replace(state, frozen_why=why))
        return {"frozen_why": why}

    async def _constrain(self, observation: Observation, arguments: dict[str, Any]) -> dict[str, Any]:
        """Let replicas be on nodes with certain labels alone: those of all partitions, or of some."""
        labels, partitions, clear = (arguments.get(key, default) for key, default in (("labels", {}), ("partitions", []), ("clear", False)))
        problems = problems_of(labels)
        if problems:
            raise RequestError("; ".join(problems))
        if bool(labels) == bool(clear):
            raise RequestError("a constraint has one label at least, LABEL=VALUE; without any it must be told to clear what there is")
        if not isinstance(partitions, list) or not all(type(number) is int for number in partitions):
            raise RequestError(f"partitions must be numbers, got {partitions!r:.100}")
        unknown = [number for number in partitions if not 0 <= number <= self._partition_count]
        if unknown:
            raise RequestError(f"there is no partition {', '.join(map(str, unknown[:10]))}; they are 0..{self._partition_count}")

        def with_constraint(state: PlacementState) -> PlacementState:
            if not partitions:
                return msgspec.structs.replace(state, constraint=dict(labels))
            kept = {number: own for number, own in state.constraints.items() if number not in partitions}
            return msgspec.structs.replace(state, constraints=kept if clear else kept | {number: dict(labels) for number in partitions})

        await self._change(with_constraint)
        logger.info("constraint labels=%s partitions=%s", say(labels), partitions or "all")
        self._look_again()
        return {**self._constraints(), "warnings": self._warnings(observation, labels)}

    def _constraints(self) -> dict[str, Any]:
        own = [{"partition": number, "labels": labels} for number, labels in sorted(self._state.constraints.items())]
        return {"constraint": self._state.constraint, "constraints": own}

    @staticmethod
    def _warnings(observation: Observation, labels: dict[str, str]) -> list[str]:
        """What a constraint asks for in vain: placement never shrinks a set for its sake, so some replicas stay where they are."""
        having = [node.name for node in observation.nodes if labels.items() <= node.labels.items()]
        wanted = observation.replica_set_size
        if not having:
            return [f"no node has {say(labels)}: replicas stay where they are, and none that is lost can be replaced"]
        if len(having) < wanted:
            who = f"{having[0]} alone has" if len(having) == 1 else f"{', '.join(having)} alone have"
            left = wanted - len(having)
            return [f"{who} {say(labels)}: {left} of {wanted} replicas stay elsewhere, and cannot be replaced there if they are lost"]
        return []

    def _look_again(self) -> None:
        """Decide anew on what is known, so that the answer to an operator tells of what was just asked for."""
        if self._overview is not None:
            self._observation = self._observe(self._overview, ambient.monotonic())
            self.plan = make_plan(self._observation, self._limits_now)

    # -- rows

    def _drain_row(self, node: str) -> dict[str, Any]:
        drain = next((each for each in self.plan.drains if each.node == node), None) if self.plan is not None else None
        if drain is None:
            nothing = {"replicas_left": 0, "primaries_left": 0, "bytes_left": 0, "estimate_s": 0.0, "pending": []}
            return {"node": node, "intent": "none", "state": "none", **nothing}
        row = self._row(drain)
        record = self._state.intents.get(node)
        if record is not None and record.deadline_ms and not drain.is_done:
            left_s = (record.deadline_ms - self._date_ms()) / 1000
            row |= {"deadline_left_s": round(left_s, 1), "state": "late" if left_s < 0 else row["state"]}
        return row

    @staticmethod
    def _row(drain: Drain) -> dict[str, Any]:
        return {
            "node": drain.node,
            "intent": drain.intent.name.lower(),
            "state": "done" if drain.is_done else "blocked" if drain.estimate_s < 0 else "draining",
            "replicas_left": drain.replicas_left,
            "primaries_left": drain.primaries_left,
            "bytes_left": drain.bytes_left,
            "estimate_s": round(drain.estimate_s, 1),
            "pending": [
                {"partition": each.partition, "rule": str(each.rule), "why": each.why, "help": each.help} for each in drain.pending
            ],
        }

    def _nodes(self, observation: Observation, plan: Plan) -> dict[str, Any]:
        rows = []
        for node in sorted(observation.nodes, key=lambda view: view.name):
            hosts = [host for host in observation.hosts if host.node == node.name]
            names = {host.name for host in hosts}
            led = [partition for partition in observation.partitions if partition.primary in names]
            drain = next((each for each in plan.drains if each.node == node.name), None)
            up = sum(host.is_up for host in hosts)
            rows.append(
                {
                    "name": node.name,
                    "zone": node.zone,
                    "labels": dict(node.labels),
                    "state": "up" if up == len(hosts) else "down" if not up else "partly up",
                    **self._standing(node.name),
                    "drain": self._row(drain)["state"] if drain is not None else None,
                    "hosts": sorted(names),
                    "capacity": {
                        host.name: {
                            "weight": host.weight,
                            "replicas_max": host.replicas_max if host.replicas_max < REPLICAS_UNLIMITED else None,
                        }
                        for host in hosts
                    },
                    "replicas": sum(replica.host in names for partition in observation.partitions for replica in partition.replicas),
                    "primaries": len(led),
                    "bytes": sum(
                        partition.bytes for partition in observation.partitions for replica in partition.replicas if replica.host in names
                    ),
                    "calls_per_s": round(sum(partition.calls_per_s for partition in led), 1),
                    "load": _rounded(sum(partition.load for partition in led)),
                }
            )
        return {
            "nodes": rows,
            "manager": self._me,
            "frozen_why": self._state.frozen_why,
            "is_balanced": plan.is_balanced,
            **self._constraints(),
        }

    # -- the system partition

    async def _change(self, change: Callable[[PlacementState], PlacementState]) -> None:
        """Make a change of the state durable on a write quorum, and go by it.

        :raises HostUnavailableError: this host is primary of the system partition no more; whether the change counts is not known
        :raises DeadlineExceededError: no write quorum has taken it in time; nor is it known then
        """
        async with self._changing:
            system = self._owner.partitions.get(SYSTEM_PARTITION)
            if system is None or not system.serving or system.is_handing_over or self._overview is None:
                raise HostUnavailableError("the placement manager is moving", retry_after_s=TICK_S)
            if system.replica.epoch != self._epoch:  # another one has been in office meanwhile, and has changed things
                raise HostUnavailableError("the placement manager has just taken office", retry_after_s=TICK_S)
            epoch = self._epoch
            # What was logged and not committed in time may be committed yet: the next change goes on from there, and so does an answer.
            state = change(self._logged)
            # To say that there is nothing to change is to read: only while nobody else can be the manager (I8).
            if state == self._state and self._logged is self._state and system.replica.has_lease(ambient.monotonic_ns()):
                return
            stored = _encode(state)  # what cannot be stored is not built upon
            self._logged = state
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def committed(done: asyncio.Future[None]) -> None:
                if not done.cancelled() and done.exception() is None and self._epoch == epoch:
                    self._state = state

            waiter.add_done_callback(committed)
            system.wait_committed(system.log_internal(STATE_ADDRESS, [(b"", stored)]), waiter)
            try:
                async with asyncio.timeout(STATE_TIMEOUT_S):
                    await asyncio.shield(waiter)
            except TimeoutError:
                raise DeadlineExceededError(f"the system partition has not committed a change within {STATE_TIMEOUT_S:g} s") from None
            self.moves.withdraw()


def _partition_row(partition: PartitionView) -> dict[str, Any]:
    """Where the replicas of one partition are, by host."""
    return {
        "partition": partition.id,
        "primary": partition.primary,
        "voters": [replica.host for replica in partition.replicas if replica.is_voter],
        "building": [replica.host for replica in partition.replicas if not replica.is_voter],
        "out_of_sync": [replica.host for replica in partition.replicas if replica.is_voter and not replica.is_in_sync],
    }


def _without_hosts(state: PlacementState, gone: list[str]) -> PlacementState:
    """With the hosts that are `gone` goes what was wanted of their nodes, unless others are on them."""
    nodes = {name: where for name, where in state.nodes.items() if name not in gone}
    left = {record.node for record in nodes.values()}
    went = {state.nodes[name].node for name in gone if name in state.nodes} - left
    return msgspec.structs.replace(
        state,
        hosts={name: where for name, where in state.hosts.items() if name not in gone},
        hosts_version=state.hosts_version + 1,
        nodes=nodes,
        intents={node: record for node, record in state.intents.items() if node not in went},
    )


VERBS: Final = (
    "nodes",
    "partitions",
    "join",
    "drain",
    "drain_status",
    "undrain",
    "explain",
    "moves",
    "rebalance",
    "freeze",
    "unfreeze",
    "constrain",
)


def _rounded(load: float) -> float:
    """To four digits: loads have a unit of their own, large or small."""
    return float(f"{load:.4g}")


def _intent(arguments: dict[str, Any]) -> Intent:
    known = [intent.name.lower() for intent in Intent if intent]
    wanted = arguments.get("intent")
    if wanted not in known:
        raise RequestError(f"intent must be one of {', '.join(known)}, got {wanted!r}")
    return Intent[str(wanted).upper()]
