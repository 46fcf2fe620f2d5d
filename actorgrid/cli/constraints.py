"""``actorgrid constrain``: on nodes with which labels replicas may be."""

from __future__ import annotations

from typing import Annotated

import typer

from actorgrid.cli import common, placement


def constrain_command(
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="LABEL=VALUE", help="Of nodes, as `actorgrid nodes` shows them; all must be there.")
    ] = None,
    partition: Annotated[
        list[int] | None,
        typer.Option("--partition", metavar="N", help="Of this one alone, in place of the grid's; may be given several times."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take back what was asked for: of the grid, or of the partitions named.")] = False,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: placement.JsonOption = False,
) -> None:
    """Let replicas be on nodes with certain labels alone; those that are elsewhere move. Warns if too few nodes have them."""
    wanted: dict[str, str] = {}
    for text in labels or ():
        name, separator, value = text.partition("=")
        if not separator or wanted.get(name, value) != value:
            common.fail(f"{text!r}: expected LABEL=VALUE, each label once", common.EXIT_USAGE)
        wanted[name] = value
    if bool(wanted) == clear:
        common.fail("give LABEL=VALUE, or --clear to take back what there is", common.EXIT_USAGE)
    arguments = {"labels": wanted, "partitions": partition or [], "clear": clear}
    answer = placement.ask_or_fail(address, data, "constrain", arguments)
    for warning in answer["warnings"]:
        typer.echo(f"actorgrid: {warning}", err=True)
    if as_json:
        placement.write_json(answer)
        return
    for line in placement.say_constraints(answer):
        common.write_line(line)
