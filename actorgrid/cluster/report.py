"""The state of a grid as a whole, put together from what each host says of itself: what ``actorgrid status`` shows.

A host knows its own replicas, and as a primary how far the others are. Here nothing is known but those answers, taken at nearly the same
moment, so a report is a photograph of something that moves: good for people and scripts, and never what a decision about safety rests on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from actorgrid import __version__
from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.client.map import PartitionMap
from actorgrid.cluster.grid_file import say_shortage
from actorgrid.credentials import Credentials
from actorgrid.errors import ActorGridError, DeadlineExceededError
from actorgrid.settings import WireSettings
from actorgrid.wire.messages import HostInfo

OK = "ok"
UNDER_REPLICATED = "under_replicated"
RECONFIGURING = "reconfiguring"
NO_QUORUM = "no_quorum"
#: From good to bad.
HEALTHS = (OK, RECONFIGURING, UNDER_REPLICATED, NO_QUORUM)

SYSTEM_PARTITION = 0
NOT_BEGUN = "the grid was not begun: `actorgrid init` does that"

DIGESTS_AGAIN_S = 0.1

Answers = dict[str, dict[str, Any] | ActorGridError]
Report = dict[str, Any]


async def ask_all(hosts: Iterable[HostInfo], verb: str, *, cluster_id: str, timeout_s: float) -> Answers:
    """Ask all `hosts` at once, with the credentials of the environment; the answer of each, or why there is none, in not more than
    `timeout_s`.
    """
    credentials = Credentials.from_environment()

    async def ask(host: HostInfo) -> dict[str, Any] | ActorGridError:
        try:
            answer: dict[str, Any] = await admin.ask(
                host.address,
                host.port,
                verb,
                {},
                client_id=new_client_id(),
                cluster_id=cluster_id,
                wire=WireSettings(),
                timeout_s=timeout_s,
                credentials=credentials,
            )
        except ActorGridError as error:
            return error
        return answer

    async with asyncio.TaskGroup() as group:
        asking = {host.name: group.create_task(ask(host)) for host in hosts}
    return {name: task.result() for name, task in asking.items()}


def build_report(partition_map: PartitionMap, answers: Answers, nodes: dict[str, str]) -> Report:
    """The object of ``status --json``.

    :param answers: by host name: what its status verb answered, or why it did not
    :param nodes: by host name: the node of a host that did not answer
    """
    return _Merger(partition_map, answers, nodes).report()


async def read_digests(hosts: Sequence[HostInfo], *, cluster_id: str, timeout_s: float) -> dict[int, dict[str, str]]:
    """By partition and host: a digest of the state of every replica, when those of each partition have all applied the same.

    Equal state has equal digests. Asks again until positions agree, so callers must be quiet. It reads all state: for checks.

    :raises DeadlineExceededError: they did not within `timeout_s`
    :raises ActorGridError: a host did not answer
    """
    deadline = time.monotonic() + timeout_s
    while True:
        apart = _apart(await _ask_replicas(hosts, "status", cluster_id, timeout_s))  # costs little
        if not apart:
            found = await _ask_replicas(hosts, "digests", cluster_id, timeout_s)
            apart = _apart(found)
        if not apart:
            return {partition: {host: str(row["digest"]) for host, row in rows.items()} for partition, rows in sorted(found.items())}
        if time.monotonic() > deadline:
            raise DeadlineExceededError(f"replicas of partitions {show_numbers(apart)} are not at one position after {timeout_s:g} s")
        await asyncio.sleep(DIGESTS_AGAIN_S)


async def _ask_replicas(hosts: Sequence[HostInfo], verb: str, cluster_id: str, timeout_s: float) -> dict[int, dict[str, dict[str, Any]]]:
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for name, answer in (await ask_all(hosts, verb, cluster_id=cluster_id, timeout_s=timeout_s)).items():
        if isinstance(answer, ActorGridError):
            raise answer
        for row in answer["partitions"]:
            found.setdefault(row["id"], {})[name] = row
    return found


def _apart(found: dict[int, dict[str, dict[str, Any]]]) -> list[int]:
    return [partition for partition, rows in sorted(found.items()) if len({row["applied_lsn"] for row in rows.values()}) > 1]


def unserved(report: Report) -> list[dict[str, Any]]:
    """Its partitions that take no calls at the moment, the system partition too."""
    return [partition for partition in (report["system_partition"], *report["partitions"]) if not partition["serving"]]


def show_numbers(numbers: Sequence[int], most: int = 8) -> str:
    """``1-3, 7, 9-12``: ascending numbers, for people; of more than `most` pieces, the first and how many there are."""
    pieces: list[list[int]] = []
    for number in numbers:
        if pieces and pieces[-1][-1] + 1 == number:
            pieces[-1][1:] = [number]
        else:
            pieces.append([number])
    text = ", ".join("-".join(map(str, piece)) for piece in pieces[:most])
    return text if len(pieces) <= most else f"{text}, ... ({len(numbers)} in all)"


class _Merger:
    """Puts one report together."""

    def __init__(self, partition_map: PartitionMap, answers: Answers, nodes: dict[str, str]) -> None:
        self._map = partition_map
        self._nodes = nodes
        self._answered = {name: answer for name, answer in answers.items() if not isinstance(answer, ActorGridError)}
        self._silent = {name: answer for name, answer in answers.items() if isinstance(answer, ActorGridError)}
        self._rows: dict[int, dict[str, dict[str, Any]]] = {}
        for name, answer in self._answered.items():
            for row in answer["partitions"]:
                self._rows.setdefault(row["id"], {})[name] = row
        grids = [answer.get("grid", {}) for answer in self._answered.values()]
        self._wanted = max((each.get("replica_set_size", 1) for each in grids), default=1)
        self._has_begun = not grids or any(each.get("has_begun", True) for each in grids)
        # A host that does not say where it is counts as a node of its own.
        self._node_count = len({self._node_of(info.name) or info.name for info in partition_map.hosts})

    def report(self) -> Report:
        partition_map = self._map
        partitions = [self._partition(number) for number in range(1, partition_map.partition_count + 1)]
        # Counted here, so that hosts and partitions of one report agree; what hosts count includes the system partition.
        roles = Counter((replica["host"], replica["role"]) for partition in partitions for replica in partition["replicas"])
        hosts = [self._host(info, roles) for info in partition_map.hosts]
        nodes: dict[str, dict[str, Any]] = {}
        for host in hosts:
            state = "down" if host["state"] == "unreachable" else "up"
            if nodes.get(host["node"], {}).get("state") != "up":
                nodes[host["node"]] = {"name": host["node"], "zone": host["zone"], "state": state, "intent": None}
        return {
            "cluster": {
                "id": partition_map.cluster_id,
                "partitions": partition_map.partition_count,
                "replica_set_size": self._wanted,
                "version": __version__,
                "begun": self._has_begun,
            },
            "nodes": list(nodes.values()),
            "hosts": hosts,
            "partitions": partitions,
            "system_partition": self._partition(SYSTEM_PARTITION),
        }

    # -- hosts

    def _node_of(self, host: str) -> str:
        answer = self._answered.get(host)
        return str(answer["host"]["node"]) if answer is not None else self._nodes.get(host, "")

    def _host(self, info: HostInfo, roles: Counter[tuple[str, str]]) -> dict[str, Any]:
        secondaries = roles[info.name, "active_secondary"] + roles[info.name, "idle_secondary"]
        counts = {"primaries": roles[info.name, "primary"], "secondaries": secondaries}
        answer = self._answered.get(info.name)
        if answer is not None:
            return {**answer["host"], **counts, "why": ""}
        return {
            "name": info.name,
            "node": self._nodes.get(info.name, ""),
            "zone": "",
            "address": f"{info.address}:{info.port}",
            "pid": None,
            "incarnation": None,
            "state": "unreachable",
            **counts,
            "data_dir": None,
            "why": str(self._silent[info.name]),
        }

    def _say_silence(self, host: str) -> str:
        """What is known of a host that did not answer: nobody listens there, or somebody does and says nothing."""
        error = self._silent[host]
        is_mute = isinstance(error, DeadlineExceededError) or "no answer" in str(error)
        return f"{host} does not answer" if is_mute else f"{host} is down"

    # -- partitions

    def _partition(self, number: int) -> dict[str, Any]:
        rows = self._rows.get(number, {})
        primaries = [(row["epoch"], name) for name, row in rows.items() if row["role"] == "primary"]
        primary = max(primaries)[1] if primaries else None
        chief = rows[primary] if primary is not None else None
        # Who speaks for the partition: its primary, or the replica that has the newest configuration.
        source = chief or max(rows.values(), key=lambda row: (row["configuration_version"], row["epoch"]), default=None)
        replicas = self._replicas(rows, chief, source) if source is not None else self._replicas_of_map(number)
        serves = chief is not None and chief["serving"] and chief["has_quorum"]
        if source is None:
            health, why = NO_QUORUM, self._why_nobody_has_it(replicas)
        elif not serves:
            health, why = self._why_not_served(chief, primary, replicas)
        else:
            assert chief is not None
            health, why = self._health_of(chief, replicas)
        return {
            "id": number,
            "epoch": source["epoch"] if source is not None else None,
            "configuration_version": source["configuration_version"] if source is not None else None,
            "primary": primary,
            "serving": serves,
            "replicas": replicas,
            "health": health,
            "why": why,
        }

    def _replicas(self, rows: dict[str, dict[str, Any]], chief: dict[str, Any] | None, source: dict[str, Any]) -> list[dict[str, Any]]:
        """Every member of the configuration, as its own host has it, or as its primary does.

        ``why`` says why it is not as it should be; empty if it is.
        """
        progress = {(each["host"], each["incarnation"]): each for each in chief["progress"]} if chief is not None else {}
        end = chief["last_lsn"] if chief is not None else max(row["last_lsn"] for row in rows.values())
        members = [(*member, "active_secondary") for member in source["voters"]] + [
            (*member, "idle_secondary") for member in source["idle"]
        ]
        replicas = []
        for host, incarnation, role in members:
            row = rows.get(host)
            if row is not None and row["incarnation"] != incarnation:
                row = None
            known = progress.get((host, incarnation))
            last_lsn = row["last_lsn"] if row is not None else (known["acknowledged_lsn"] or None) if known is not None else None
            lag = max(0, end - last_lsn) if last_lsn is not None else None
            if row is not None and row["role"] in ("primary", "active_secondary", "idle_secondary"):
                role = row["role"]
            if role == "primary" and row is not chief:
                role = "active_secondary"  # it has not heard yet that there is another
            replicas.append(
                {
                    "host": host,
                    "incarnation": incarnation,
                    "role": role,
                    "last_lsn": last_lsn,
                    "lag_entries": lag,
                    "why": self._problem(host, incarnation, role, row, known, lag),
                }
            )
        replicas.sort(key=lambda replica: replica["role"] != "primary")
        return replicas

    def _problem(
        self, host: str, incarnation: int, role: str, row: dict[str, Any] | None, known: dict[str, Any] | None, lag: int | None
    ) -> str:
        name = f"replica {host}/{incarnation}"
        if host in self._silent:
            return self._say_silence(host)
        if role == "idle_secondary":
            is_copied = row is None or (known is not None and known["pace"] == "copy")
            return f"{name} is being built ({'copy' if is_copied else f'catching up, {lag} entries behind'})"
        if row is None:
            return f"{name} has lost its data"
        if known is None or role == "primary":
            return ""
        if not known["is_up"]:
            return f"{host} has no connection to the primary"
        if known["pace"] == "copy":
            return f"{name} gets a copy"
        if known["pace"] == "probe" and lag:
            return f"{name} is catching up, {lag} entries behind"
        return ""

    def _replicas_of_map(self, number: int) -> list[dict[str, Any]]:
        """No host has it: what the map remembers of it, so that it can be said who is missing."""
        info = self._map.host_of(number)
        names = [each.name for each in (info, *self._map.secondaries_of(number)) if each is not None]
        return [
            {
                "host": name,
                "incarnation": None,
                "role": "none",
                "last_lsn": None,
                "lag_entries": None,
                "why": self._say_silence(name) if name in self._silent else f"{name} has no replica of it",
            }
            for name in names
        ]

    def _why_nobody_has_it(self, replicas: list[dict[str, Any]]) -> str:
        if not self._has_begun:
            return NOT_BEGUN
        problems = [replica["why"] for replica in replicas]
        if not problems:
            problems = [self._say_silence(name) for name in self._silent] or ["no host has a replica of it"]
        return "; ".join(problems)

    @staticmethod
    def _why_not_served(chief: dict[str, Any] | None, primary: str | None, replicas: list[dict[str, Any]]) -> tuple[str, str]:
        voters = [replica for replica in replicas if replica["role"] != "idle_secondary"]
        missing = [replica["why"] for replica in voters if replica["why"] and "catching up" not in replica["why"]]
        quorum = len(voters) // 2 + 1
        if len(voters) - len(missing) < quorum:
            is_silence = not any("lost its data" in why for why in missing)
            verb = (
                ("do not answer" if len(missing) > 1 else "does not answer")
                if is_silence
                else "are missing"
                if len(missing) > 1
                else "is missing"
            )
            return NO_QUORUM, f"{len(missing)} of {len(voters)} replicas {verb}: {'; '.join(missing)}"
        if chief is None:
            return RECONFIGURING, "; ".join(["a primary is being elected", *missing])
        if chief["serving"]:
            return NO_QUORUM, "; ".join([f"the primary on {primary} does not hear {quorum} of {len(voters)} replicas", *missing])
        return RECONFIGURING, "; ".join([f"{primary} is about to serve, or hands over", *missing])

    def _health_of(self, chief: dict[str, Any], replicas: list[dict[str, Any]]) -> tuple[str, str]:
        problems = list(dict.fromkeys(replica["why"] for replica in replicas if replica["why"]))
        builds = any(replica["role"] == "idle_secondary" and replica["host"] not in self._silent for replica in replicas)
        if chief["configuration_pending"]:
            problems.append(f"configuration {chief['configuration_version']} is not committed yet")
        if builds or chief["configuration_pending"]:
            return RECONFIGURING, "; ".join(problems)
        voters = sum(replica["role"] != "idle_secondary" for replica in replicas)
        if self._wanted > self._node_count:
            problems.append(say_shortage(self._wanted, self._node_count))
        elif voters < self._wanted:
            problems.append(f"{self._wanted} replicas wanted, {voters} there")
        return (UNDER_REPLICATED, "; ".join(problems)) if problems else (OK, "")
