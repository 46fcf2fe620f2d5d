"""``actorgrid init``: the one act that begins a grid (``up`` does it by itself for a local one)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from actorgrid import grid
from actorgrid.cli import common
from actorgrid.errors import ActorGridError, HostUnavailableError

#: The host that is asked waits up to 30 s for the others to listen.
INIT_TIMEOUT_S = 50.0


def init_command(
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as one JSON object.")] = False,
) -> None:
    """Begin a grid whose hosts all run: each creates its first replicas. Safe to repeat; a grid that was begun stays as it is.

    A host whose disk is empty never begins anything by itself, since it cannot know whether it is new or was emptied.
    """
    answer = common.run(_init(common.find_address(address, data)))
    if as_json:
        common.write_line(msgspec.json.encode(answer).decode())
        return
    common.write_line(f"the grid is begun: {', '.join(answer['created'])} have their first replicas")
    if answer["emptied"]:
        common.write_line(f"{', '.join(answer['emptied'])}: the store is another one than at the beginning; the other hosts fill it")


async def _init(address: str) -> dict[str, Any]:
    async with grid.connect(address, timeout_s=common.CONNECT_TIMEOUT_S) as client:
        asking = client.with_options(timeout_s=INIT_TIMEOUT_S)
        silent: ActorGridError = HostUnavailableError("the grid has no hosts")
        for host in client.partition_map.hosts:
            try:
                answer: dict[str, Any] = await asking.admin(host.address, host.port, "init", {})
            except HostUnavailableError as error:
                silent = error
            else:
                return answer
        raise silent
