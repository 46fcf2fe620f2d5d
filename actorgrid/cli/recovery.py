"""``actorgrid recover``: the decision that nobody else may take, to go on without what is lost."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from actorgrid.cli import common, placement

#: Recovered with one question: each takes a sync or two of one host.
AT_A_TIME: Final = 64


def recover_command(
    partitions: Annotated[
        list[str], typer.Argument(metavar="PARTITION...", help="Their numbers, or `all` for all that lost their quorum.")
    ],
    accept_data_loss: Annotated[bool, typer.Option("--accept-data-loss", help="Do it. Without this, say what would be done.")] = False,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: placement.JsonOption = False,
) -> None:
    """Begin partitions anew whose write quorum is lost for good, each from the one replica that has the most.

    What only the lost replicas had is gone, acknowledged or not. Replicas that come back later give in. Before this, make sure that the
    hosts that do not answer do not run any more: cut off together, they would go on serving until they are heard of again.
    Exit codes: 0 all done; 1 something failed; 4 something was refused, or --accept-data-loss is missing.
    """
    wanted = [] if partitions == ["all"] else [_number(each) for each in partitions]
    looked = placement.ask_or_fail(address, data, "recover", {"partitions": wanted})
    rows: list[dict[str, Any]] = looked["partitions"]
    if accept_data_loss:
        possible = [row["partition"] for row in rows if row["state"] == "possible"]
        done: dict[int, dict[str, Any]] = {}
        for start in range(0, len(possible), AT_A_TIME):
            numbers = possible[start : start + AT_A_TIME]
            answer = placement.ask_or_fail(address, data, "recover", {"partitions": numbers, "accept_data_loss": True})
            done |= {row["partition"]: row for row in answer["partitions"]}
        rows = [done.get(row["partition"], row) for row in rows]
    _show(rows, looked["silent_hosts"], as_json=as_json)
    states = {row["state"] for row in rows}
    if "failed" in states:
        common.fail("not everything could be begun anew; what failed may be tried again", common.EXIT_FAILED)
    if "refused" in states:
        common.fail("not everything may be begun anew", common.EXIT_UNSAFE)
    if "possible" in states:
        common.fail("nothing was done: give --accept-data-loss if that is what you want", common.EXIT_UNSAFE)


def _show(rows: list[dict[str, Any]], silent: list[str], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            placement.write_json(row)
        return
    if silent:
        common.write_line(f"hosts that do not answer: {', '.join(silent)}")
    if not rows:
        common.write_line("no partition that answers has lost its write quorum")
        return
    columns = ["partition", "state", "from", "lost", "why"]
    shown = [{**row, "from": row.get("host"), "lost": ", ".join(row.get("lost", []))} for row in rows]
    placement.new_console().print(placement.table_of(columns, shown))


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        common.fail(f"PARTITION is a number, or `all` alone, got {text!r:.80}", common.EXIT_USAGE)
    return int(text)
