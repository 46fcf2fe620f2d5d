"""``actorgrid up`` and ``actorgrid down``: a grid on this machine, with a Ray of its own or on the nodes of one that runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from actorgrid.cli import common
from actorgrid.cluster import grid_file, local

_WATCH_INTERVAL_S = 0.2


def up_command(
    app: Annotated[
        list[str] | None,
        typer.Option(
            "--app", metavar="MODULE", help="Module with actor classes; may be given several times. The current directory is searched."
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=grid_file.NODES_MAX, help=f"Hosts, each of which counts as a node. [{grid_file.NODES_DEFAULT}]")
    ] = None,
    data: common.DataOption = common.DATA_DEFAULT,
    partitions: Annotated[
        int | None, typer.Option(min=1, max=grid_file.PARTITIONS_MAX, help=f"Partitions of a new grid. [{grid_file.PARTITIONS_DEFAULT}]")
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=grid_file.REPLICAS_MAX,
            help=f"Replicas of each partition, on different nodes, as far as there are nodes. [{grid_file.REPLICAS_DEFAULT}]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, help=f"Port of the first host, the others follow; 0: any free. [as before, or {grid_file.PORT_DEFAULT}]"
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="Start no Ray: a host on each node of the Ray cluster with this control store; --nodes: so many are waited for.",
        ),
    ] = None,
    block: Annotated[bool, typer.Option("--block", help="Stay until Ctrl-C, and end the grid then.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a start that hangs is given up.")] = local.START_TIMEOUT_S,
) -> None:
    """Start a grid on this machine, new or from its data, and return when every host and partition serves.

    The last line of stdout is the address of its first host.
    """
    if not app and not (data / grid_file.GRID_FILE).exists():
        common.fail("a new grid needs at least one --app MODULE with actor classes", common.EXIT_USAGE)
    wish = grid_file.Wish(
        nodes=nodes,
        partitions=partitions,
        replicas=replicas,
        port=port,
        app=tuple(app) if app else None,
        app_path=(str(Path.cwd()),),
        ray_address=ray_address,
    )
    with common.errors_told():
        with _progress() as progress:
            started = local.up(data, wish, timeout_s=timeout, progress=progress)
        grid = started.grid
        replicas_there = min(grid.replica_set_size, len(grid.hosts))
        typer.echo(
            f"{'new grid' if started.is_new else 'grid'} {grid.cluster_id}: {_count(len(grid.hosts), 'host')}, "
            f"{_count(grid.partition_count, 'partition')}, {_count(replicas_there, 'replica')} of each, data in {data}, "
            f"serving after {started.seconds:.1f} s",
            err=True,
        )
        for trouble in started.troubles:
            typer.echo(f"actorgrid: {trouble}", err=True)
        common.write_line(f"{grid.hosts[0].address}:{grid.hosts[0].port}")
        if block:
            _stay(started)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def down_command(data: common.DataOption = common.DATA_DEFAULT) -> None:
    """End the local grid: running turns finish for a short while, every process of it ends, data stays."""
    with common.errors_told():
        try:
            grid = grid_file.read_grid(data)
            seconds = local.down(data)
        except local.NotRunningError as error:
            if grid is not None and not grid_file.is_locked(data):
                typer.echo(f"{error}", err=True)  # what was asked for is so already
                return
            raise
        typer.echo(f"grid ended after {seconds:.1f} s", err=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: typer.echo(f"{text} ...", err=True)
        return
    with console.status("preparing") as spinner:
        yield lambda text: spinner.update(f"{text} ...")


def _stay(started: local.Started) -> None:
    """Until a signal comes, then end the grid; or until the grid ends by itself, which is a failure."""
    sys.stdout.flush()
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: told.append(number))
    while not told and started.keeper.is_alive():
        time.sleep(_WATCH_INTERVAL_S)
    try:
        local.down(started.data)
    except local.NotRunningError:
        if told:
            return
    if not told:
        common.fail(f"the grid ended by itself; see {started.data / grid_file.KEEPER_DIRECTORY}", common.EXIT_FAILED)
