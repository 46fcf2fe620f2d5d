"""``actorgrid nodes``, ``drain``, ``undrain``, ``rebalance``, ``explain``, ``moves``, ``freeze``: what operators want, and see.

Any host takes the question to the placement manager, and asks again while that is moving.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import tenacity
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from actorgrid import grid
from actorgrid.cli import common
from actorgrid.errors import HostUnavailableError, NotPrimaryError, TransientError

ASK_TIMEOUT_S: Final = 10.0
#: The manager needs a look at all hosts after it has taken office.
RETRY_S: Final = 8.0
LOOK_S: Final = 0.5
#: So long a drain must be blocked before `--wait` gives up; with a deadline it waits for that.
BLOCKED_S: Final = 2.0
WIDTH_WITHOUT_TERMINAL: Final = 140
_DURATION: Final = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<unit>ms|s|m|h|)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of tables, one object a line.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="As `actorgrid nodes` names it.")]


def nodes_command(address: common.AddressOption = None, data: common.DataOption = common.DATA_DEFAULT, as_json: JsonOption = False) -> None:
    """Show the nodes: what they hold, and what is wanted of them."""
    answer = ask_or_fail(address, data, "nodes")
    if as_json:
        write_json(answer)
        return
    console = new_console()
    frozen = f", moves are frozen: {answer['frozen_why']}" if answer["frozen_why"] else ""
    balance = "balanced" if answer["is_balanced"] else "not balanced yet"
    console.print(f"placement manager on {answer['manager']}, {balance}{frozen}", highlight=False)
    if answer["constraint"] or answer["constraints"]:
        for line in say_constraints(answer):
            console.print(line, highlight=False, markup=False)
    columns = ["name", "zone", "labels", "state", "intent", "drain", "replicas", "max", "primaries", "weight", "load", "hosts"]
    console.print(table_of(columns, [{**row, **_shown(row)} for row in answer["nodes"]]))


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """The cells of a node that are not plain values; of several hosts, each has its own."""
    capacity = row["capacity"]
    return {
        "labels": say_labels(row["labels"]),
        "hosts": ", ".join(row["hosts"]),
        "weight": ", ".join(f"{capacity[name]['weight']:g}" for name in row["hosts"]),
        "max": ", ".join("-" if (most := capacity[name]["replicas_max"]) is None else str(most) for name in row["hosts"]),
        "load": f"{row['load']:g}",
    }


def drain_command(
    node: NodeArgument,
    intent: Annotated[str, typer.Option("--intent", metavar="pause|restart|remove_data|remove_node", help="How far it is to go.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until it is done, with its progress.")] = False,
    deadline: Annotated[str | None, typer.Option("--deadline", metavar="120s", help="By when it should be done; --wait ends then.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long it would take now.")] = False,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Empty a node: `restart` swaps its primaries away, `remove_data` and `remove_node` move every replica.

    Exit codes: 0 done, or begun without --wait; 4 blocked and no deadline given (a rule stops it, and says what would help); 5 the
    deadline has passed and it goes on.
    """
    arguments: dict[str, Any] = {"node": node, "intent": intent, "estimate": estimate}
    deadline_s = _seconds(deadline) if deadline is not None else None
    if deadline_s is not None:
        arguments["deadline_s"] = deadline_s
    row = ask_or_fail(address, data, "drain", arguments)
    if estimate or not wait:
        write_json(row) if as_json else _show_drain(row)
        return
    _follow(row, address, data, deadline_s, as_json=as_json)


def _follow(row: dict[str, Any], address: str | None, data: Path, deadline_s: float | None, *, as_json: bool) -> None:
    """Show the drain until it is done, cannot go on, or its time is up."""
    ends_at = time.monotonic() + deadline_s if deadline_s is not None else None
    total = max(1, row["replicas_left"] + row["primaries_left"])
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}")
    blocked_looks = 0
    with Progress(*columns, console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"drain {row['node']}", total=total, note="")
        while row["state"] != "done":
            left = row["replicas_left"] + row["primaries_left"]
            progress.update(bar, completed=total - left, note=_note(row))
            if as_json:
                write_json(row)
            # Blocked for a moment is every drain whose node was the last to hear of something; blocked for good says so again and again.
            blocked_looks = blocked_looks + 1 if row["state"] == "blocked" else 0
            if blocked_looks > BLOCKED_S / LOOK_S and ends_at is None:
                if not as_json:
                    _show_drain(row)
                common.fail(f"the drain of {row['node']} cannot go on as things are; it stays wanted", common.EXIT_UNSAFE)
            if ends_at is not None and time.monotonic() > ends_at:
                common.fail(f"the deadline has passed, the drain of {row['node']} goes on: {_note(row)}", common.EXIT_DEADLINE)
            time.sleep(LOOK_S)
            row = ask_or_fail(address, data, "drain_status", {"node": row["node"]})
            if row["state"] == "forgotten":
                break
            if row["state"] == "none":
                common.fail(f"somebody has taken the intent of {row['node']} back", common.EXIT_FAILED)
        progress.update(bar, completed=total, note="done")
    write_json(row) if as_json else _show_drain(row)


def undrain_command(
    node: NodeArgument, address: common.AddressOption = None, data: common.DataOption = common.DATA_DEFAULT, as_json: JsonOption = False
) -> None:
    """Take back what is wanted of a node; balance gives it its share again."""
    answer = ask_or_fail(address, data, "undrain", {"node": node})
    write_json(answer) if as_json else common.write_line(f"nothing is wanted of {node}")


def rebalance_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done next.")] = False,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Balance now, without the quiet period that follows a host's coming or going."""
    answer = ask_or_fail(address, data, "rebalance", {"dry_run": dry_run})
    if as_json:
        write_json(answer)
    elif not answer["next"]:
        common.write_line("balanced: nothing is to be moved" if answer["is_balanced"] else "nothing can be moved now")
    else:
        new_console().print(table_of(["partition", "what", "host", "why"], answer["next"]))


def explain_command(
    partition: Annotated[int, typer.Argument(metavar="PARTITION")],
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Say how a partition stands, what placement does or does not do about it, and why."""
    answer = ask_or_fail(address, data, "explain", {"partition": partition})
    if as_json:
        write_json(answer)
        return
    for line in answer["lines"]:
        common.write_line(line)
    for move in answer["moves"]:
        common.write_line(f"  {_when(move)} {move['what']} {move['host']}: {move['why']} ({move['outcome'] or 'under way'})")


class EndedMoves:
    """Each move once, when it is over. They end in another order than they began.

    :ivar since: of all up to this number it was told that they are over
    """

    def __init__(self) -> None:
        self.since = 0
        self._told: set[int] = set()  # of those behind `since`

    def take(self, moves: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is over and was not told yet.

        :param moves: all behind `since`, and all that are under way
        """
        ended = [move for move in moves if move["outcome"] and move["number"] not in self._told]
        self._told.update(move["number"] for move in ended)
        under_way = [move["number"] for move in moves if not move["outcome"]]
        self.since = max(self.since, min(under_way) - 1 if under_way else max(self._told, default=0))
        self._told = {number for number in self._told if number > self.since}
        return ended


def moves_command(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")] = False,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show what the placement manager has ordered since it took office."""
    console = new_console()
    ended = EndedMoves()
    with common.errors_told():
        while True:
            moves = ask_or_fail(address, data, "moves", {"since": ended.since})["moves"]
            for move in ended.take(moves) if watch else moves:
                if as_json:
                    write_json(move)
                else:
                    outcome = move["outcome"] or "under way"
                    line = (
                        f"{_when(move)} partition {move['partition']}: {move['what']} {move['host']} in {move['seconds']:.3f} s, {outcome}"
                    )
                    console.print(f"{line}: {move['why']}", highlight=False, markup=False)
            if not watch:
                return
            time.sleep(LOOK_S)


def freeze_command(
    reason: Annotated[str, typer.Option("--reason", help="Shown to everybody who asks why nothing moves.")],
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
) -> None:
    """Stop all moves but repairs: drains and balance wait until `unfreeze`."""
    ask_or_fail(address, data, "freeze", {"reason": reason})
    common.write_line(f"moves are frozen: {reason}")


def unfreeze_command(address: common.AddressOption = None, data: common.DataOption = common.DATA_DEFAULT) -> None:
    """Let moves go on."""
    ask_or_fail(address, data, "unfreeze")
    common.write_line("moves go on")


# -- asking


def ask_or_fail(address: str | None, data: Path, verb: str, arguments: dict[str, Any] | None = None) -> Any:
    """As `ask`; errors end the command."""
    with common.errors_told():
        return ask(address, data, verb, arguments)


def ask(address: str | None, data: Path, verb: str, arguments: dict[str, Any] | None = None) -> Any:
    """Ask the placement manager, and return its answer.

    :raises ActorGridError: it cannot be reached, or refused
    """
    return asyncio.run(_asked(common.find_address(address, data), verb, arguments or {}))


async def _asked(address: str, verb: str, arguments: dict[str, Any]) -> Any:
    async with grid.connect(address, timeout_s=common.CONNECT_TIMEOUT_S) as client:
        asking = client.with_options(timeout_s=ASK_TIMEOUT_S)

        @tenacity.retry(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_delay(RETRY_S),
            wait=tenacity.wait_random_exponential(0.05, max=0.5),
            reraise=True,
        )
        async def ask() -> Any:
            silent: TransientError = HostUnavailableError("the grid has no hosts")
            for host in client.partition_map.hosts:
                try:
                    return await asking.admin(host.address, host.port, verb, arguments)
                except (HostUnavailableError, NotPrimaryError) as error:
                    silent = error
            raise silent

        return await ask()


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        common.fail(f"--deadline {text!r}: expected seconds, or a number with ms, s, m or h, such as 120s", common.EXIT_USAGE)
    return float(match["count"]) * _SECONDS[match["unit"]]


# -- showing


def say_labels(labels: dict[str, str]) -> str:
    """``disk=ssd, gpu=no``."""
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def say_constraints(answer: dict[str, Any]) -> list[str]:
    """The constraints in an answer of the placement manager, a line for each set of labels."""
    wanted = say_labels(answer["constraint"])
    lines = [f"replicas only on nodes with {wanted}" if wanted else "replicas on any node"]
    grouped: dict[str, list[int]] = {}
    for own in answer["constraints"]:
        grouped.setdefault(say_labels(own["labels"]), []).append(own["partition"])
    return lines + [f"  of partition {_numbers(numbers)}: {labels} instead" for labels, numbers in grouped.items()]


def _show_drain(row: dict[str, Any]) -> None:
    console = new_console()
    console.print(f"{row['node']}: {row['intent']}, {row['state']}{', ' + _note(row) if row['state'] != 'done' else ''}", highlight=False)
    grouped: dict[tuple[str, str, str], list[int]] = {}
    for each in row["pending"]:
        grouped.setdefault((each["rule"], each["why"], each["help"]), []).append(each["partition"])
    if grouped:
        rows = [
            {"partitions": _numbers(numbers), "rule": rule, "why": why, "what would help": help_}
            for (rule, why, help_), numbers in grouped.items()
        ]
        console.print(table_of(["partitions", "rule", "why", "what would help"], rows))


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} and {len(numbers) - 8} more"


def _note(row: dict[str, Any]) -> str:
    left = f"{row['primaries_left']} primaries and {row['replicas_left']} replicas left ({row['bytes_left'] / 1e6:.1f} MB)"
    if row["estimate_s"] < 0:
        return f"{left}, cannot go on as things are"
    return f"{left}, about {row['estimate_s']:.1f} s"


def _when(move: dict[str, Any]) -> str:
    return datetime.datetime.fromtimestamp(move["at_ms"] / 1000).astimezone().isoformat(sep=" ", timespec="milliseconds")


def write_json(row: Any) -> None:
    """One line of JSON."""
    common.write_line(msgspec.json.encode(row).decode())


def new_console() -> Console:
    """Where tables go: as wide as the terminal, and wide if there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


def table_of(columns: list[str], rows: list[dict[str, Any]]) -> Table:
    """A plain table; ``-`` where a row has nothing."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("-" if row.get(column) in (None, "") else str(row[column])) for column in columns))
    return table
