"""``actorgrid status``: what the grid is, host by host and partition by partition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actorgrid import grid
from actorgrid.cli import common
from actorgrid.client.map import PartitionMap
from actorgrid.cluster import grid_file, report
from actorgrid.errors import ActorGridError

#: Together they bound the command. Hosts that are well answer within milliseconds; a stopped one takes the whole of the second.
FIND_TIMEOUT_S = 1.5
ASK_TIMEOUT_S = 1.5

_WIDTH_WITHOUT_TERMINAL = 140
_HOST_COLUMNS = ["name", "node", "address", "pid", "incarnation", "state", "primaries", "secondaries", "data_dir"]


def status_command(
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Every partition, not only those that are not well.")] = False,
) -> None:
    """Show hosts, partitions and their health.

    Hosts that do not answer are shown as unreachable; the exit code is 3 only if none does.
    """
    partition_map, answers = common.run(_ask(common.find_address(address, data)))
    found = report.build_report(partition_map, answers, _local_nodes(data, partition_map.cluster_id))
    if as_json:
        common.write_line(msgspec.json.encode(found).decode())
    else:
        _show(found, show_all=show_all)


async def _ask(address: str) -> tuple[PartitionMap, report.Answers]:
    async with grid.connect(address, timeout_s=FIND_TIMEOUT_S) as client:
        partition_map = client.partition_map
        cluster_id = partition_map.cluster_id
        return partition_map, await report.ask_all(partition_map.hosts, "status", cluster_id=cluster_id, timeout_s=ASK_TIMEOUT_S)


def _local_nodes(data: Path, cluster_id: str) -> dict[str, str]:
    """Node of each host, as the local grid's file has it; for hosts that cannot say it themselves."""
    try:
        local = grid_file.read_grid(data)
    except ActorGridError:
        return {}
    return {host.name: host.node for host in local.hosts} if local is not None and local.cluster_id == cluster_id else {}


def _show(found: report.Report, *, show_all: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    console.print(_summary(found), highlight=False, soft_wrap=True)
    ill = _ill(found)
    if ill:
        console.print(_table(["health", "of", "why"], ill))
        console.print()
    console.print(_table(_HOST_COLUMNS, found["hosts"]))
    if show_all:
        rows = [{**partition, "replicas": _show_replicas(partition)} for partition in found["partitions"]]
        console.print()
        console.print(_table(["id", "health", "epoch", "configuration_version", "replicas", "why"], rows))


def _summary(found: report.Report) -> str:
    cluster = found["cluster"]
    healths = Counter(partition["health"] for partition in found["partitions"])
    partitions = ", ".join(f"{healths[health]} {health}" for health in report.HEALTHS if healths[health])
    silent = sum(host["state"] == "unreachable" for host in found["hosts"])
    hosts = f"{len(found['hosts'])} host{'' if len(found['hosts']) == 1 else 's'}" + (f" ({silent} unreachable)" if silent else "")
    return (
        f"grid {cluster['id']}: {cluster['partitions']} partitions ({partitions}), replica set size {cluster['replica_set_size']}, {hosts}"
    )


def _ill(found: report.Report) -> list[dict[str, Any]]:
    """What is not well, the worst first; partitions with the same trouble in one row."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for partition in (found["system_partition"], *found["partitions"]):
        if partition["health"] != report.OK:
            numbers.setdefault((partition["health"], partition["why"]), []).append(partition["id"])
    order = sorted(numbers, key=lambda key: (-report.HEALTHS.index(key[0]), -len(numbers[key])))
    hosts = [{"health": host["state"], "of": host["name"], "why": host["why"]} for host in found["hosts"] if host["why"]]
    partitions = [(health, f"partitions {report.show_numbers(numbers[health, why])}", why) for health, why in order]
    return [*hosts, *({"health": health, "of": of, "why": why} for health, of, why in partitions)]


def _show_replicas(partition: dict[str, Any]) -> str:
    """``host-1 (primary), host-2, host-3 -12, host-4 !``: who has it, how many entries behind, and who is not well."""
    texts = []
    for replica in partition["replicas"]:
        role = {"primary": " (primary)", "idle_secondary": " (building)"}.get(replica["role"], "")
        lag = f" -{replica['lag_entries']}" if replica["lag_entries"] else ""
        texts.append(f"{replica['host']}{role}{lag}{' !' if replica['why'] else ''}")
    return ", ".join(texts)


def _table(columns: list[str], rows: list[dict[str, Any]]) -> Table:
    headings = {"configuration_version": "version"}
    table = Table(*(headings.get(column, column) for column in columns), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("-" if row[column] is None else str(row[column])) for column in columns))  # Text: no markup in it
    return table
