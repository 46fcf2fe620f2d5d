"""``actorgrid node add`` and ``node stop``: hosts of a local grid that come and go while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from actorgrid.cli import common, placement
from actorgrid.cluster import nodes
from actorgrid.errors import ActorGridError

app = typer.Typer(no_args_is_help=True, help="Add hosts to the running local grid of --data, and stop them.")


@app.command("add")
def add_command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Of the host; default: the next free host-N. One that was stopped.")] = "",
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: placement.JsonOption = False,
) -> None:
    """Start one more host on a node of its own; placement gives it its share. Prints its name and address."""
    with common.errors_told():
        answer = nodes.ask_keeper(data.absolute(), nodes.NodeRequest(verb="add", name=name))
    _tell(answer, f"{answer.host} {answer.address}", as_json=as_json)


@app.command("stop")
def stop_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the host.")],
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: placement.JsonOption = False,
) -> None:
    """Stop a host in order, its primaries swapped to others first. One emptied by `drain --intent remove_node` leaves the grid for good."""
    with common.errors_told():
        answer = nodes.ask_keeper(data.absolute(), nodes.NodeRequest(verb="stop", name=name, forget=_is_removed(data, name)))
    _tell(answer, f"{answer.host} is stopped", as_json=as_json)


def _is_removed(data: Path, name: str) -> bool:
    """Whether the host's node was to be removed, and is empty."""
    try:
        rows = placement.ask(None, data, "nodes")["nodes"]
    except ActorGridError:
        return False
    return any(name in row["hosts"] and row["intent"] == "remove_node" and row["drain"] == "done" for row in rows)


def _tell(answer: nodes.NodeAnswer, text: str, *, as_json: bool) -> None:
    found = {"host": answer.host, "address": answer.address}
    common.write_line(msgspec.json.encode(found).decode() if as_json else text)
