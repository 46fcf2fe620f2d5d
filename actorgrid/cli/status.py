"""``actorgrid status``: what the grid is, host by host and partition by partition."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from actorgrid import __version__, grid
from actorgrid.cli import common
from actorgrid.client.map import PartitionMap
from actorgrid.cluster import grid_file
from actorgrid.errors import ActorGridError
from actorgrid.wire.messages import HostInfo

_UNHEALTHY_SHOWN = 20
_WIDTH_WITHOUT_TERMINAL = 140

Answers = dict[str, dict[str, Any] | ActorGridError]


def status_command(
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show hosts, partitions and their health."""
    partition_map, answers = common.run(_ask(common.find_address(address, data)))
    report = build_report(partition_map, answers, _local_nodes(data, partition_map.cluster_id))
    if as_json:
        common.write_line(msgspec.json.encode(report).decode())
    else:
        _show(report)


async def _ask(address: str) -> tuple[PartitionMap, Answers]:
    answers: Answers = {}
    async with grid.connect(address, timeout_s=common.CONNECT_TIMEOUT_S) as client:
        partition_map = client.partition_map

        async def ask(host: HostInfo) -> None:
            try:
                answers[host.name] = await client.admin(host.address, host.port, "status", {})
            except ActorGridError as error:
                answers[host.name] = error

        async with asyncio.TaskGroup() as group:
            for host in partition_map.hosts:
                group.create_task(ask(host))
    return partition_map, answers


def _local_nodes(data: Path, cluster_id: str) -> dict[str, str]:
    """Node of each host, as the local grid's file has it; for hosts that cannot say it themselves."""
    try:
        local = grid_file.read_grid(data)
    except ActorGridError:
        return {}
    return {host.name: host.node for host in local.hosts} if local is not None and local.cluster_id == cluster_id else {}


def build_report(partition_map: PartitionMap, answers: Answers, nodes: dict[str, str]) -> dict[str, Any]:
    """The object of ``status --json``.

    :param answers: by host name: what its status verb answered, or why it did not
    :param nodes: by host name: the node of a host that did not answer
    """
    hosts, nodes_found = [], {}
    rows: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for info in partition_map.hosts:
        answer = answers[info.name]
        if isinstance(answer, ActorGridError):
            host, state = _silent_host(partition_map, info, nodes), "down"
        else:
            host, state = answer["host"], "up"
            for row in answer["partitions"]:
                rows.setdefault(row["id"], []).append((info.name, row))
        hosts.append(host)
        nodes_found[host["node"]] = {"name": host["node"], "zone": host.get("zone", ""), "state": state, "intent": None}
    partitions = [
        _partition(partition_map, number, rows.get(number, []), answers) for number in range(1, partition_map.partition_count + 1)
    ]
    return {
        "cluster": {
            "id": partition_map.cluster_id,
            "partitions": partition_map.partition_count,
            "replica_set_size": max(len(partition["replicas"]) for partition in partitions),
            "version": __version__,
        },
        "nodes": list(nodes_found.values()),
        "hosts": hosts,
        "partitions": partitions,
    }


def _partition(partition_map: PartitionMap, number: int, rows: list[tuple[str, dict[str, Any]]], answers: Answers) -> dict[str, Any]:
    """One partition from what each host that has a replica of it says about its own."""
    primaries = [(row["epoch"], host, row) for host, row in rows if row["role"] == "primary" and row["serving"]]
    if not primaries:
        return _unserved_partition(partition_map, number, rows, answers)
    epoch, primary, chief = max(primaries, key=lambda found: found[0])
    return {
        "id": number,
        "epoch": epoch,
        # There is one configuration as long as a partition has one replica.
        "configuration_version": chief.get("configuration_version", 1),
        "primary": primary,
        "replicas": [
            {"host": host, "role": row["role"], "last_lsn": row["last_lsn"], "lag_entries": max(0, chief["last_lsn"] - row["last_lsn"])}
            for host, row in rows
        ],
        "health": "ok",
        "why": "",
    }


def _silent_host(partition_map: PartitionMap, info: HostInfo, nodes: dict[str, str]) -> dict[str, Any]:
    return {
        "name": info.name,
        "node": nodes.get(info.name, ""),
        "address": f"{info.address}:{info.port}",
        "pid": None,
        "incarnation": None,
        "state": "unreachable",
        "primaries": len(partition_map.partitions_of(info)),
        "secondaries": 0,
        "data_dir": None,
    }


def _unserved_partition(
    partition_map: PartitionMap, number: int, rows: list[tuple[str, dict[str, Any]]], answers: Answers
) -> dict[str, Any]:
    info = partition_map.host_of(number)
    if info is None:
        why = "no primary is known"
    elif isinstance(answer := answers[info.name], ActorGridError):
        why = f"{info.name} does not answer: {answer}"
    elif rows:
        why = f"{info.name} has it and does not serve it"
    else:
        why = f"{info.name} does not report it"
    name = info.name if info is not None else None
    replicas = [{"host": name, "role": "primary", "last_lsn": None, "lag_entries": None}] if name else []
    return {
        "id": number,
        "epoch": None,
        "configuration_version": None,
        "primary": name,
        "replicas": replicas,
        "health": "no_quorum",
        "why": why,
    }


def _show(report: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    cluster = report["cluster"]
    healths = Counter(partition["health"] for partition in report["partitions"])
    health = ", ".join(f"{count} {name}" for name, count in healths.items())
    console.print(
        f"grid {cluster['id']}: {cluster['partitions']} partitions ({health}), replica set size {cluster['replica_set_size']}",
        highlight=False,
    )
    console.print(
        _table(["name", "node", "address", "pid", "incarnation", "state", "primaries", "secondaries", "data_dir"], report["hosts"])
    )
    ill = [partition for partition in report["partitions"] if partition["health"] != "ok"]
    if ill:
        console.print(_table(["id", "primary", "health", "why"], ill[:_UNHEALTHY_SHOWN]))
        if len(ill) > _UNHEALTHY_SHOWN:
            console.print(f"and {len(ill) - _UNHEALTHY_SHOWN} more; --json shows all")


def _table(columns: list[str], rows: list[dict[str, Any]]) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("-" if row[column] is None else str(row[column]) for column in columns))
    return table
