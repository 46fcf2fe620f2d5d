"""``actorgrid call``: one call from a shell."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from actorgrid import grid
from actorgrid.cli import common
from actorgrid.ids import make_address
from actorgrid.settings import ClientSettings


def call_command(
    actor_type: Annotated[str, typer.Argument(metavar="TYPE", help="Name of the actor class.")],
    actor_id: Annotated[str, typer.Argument(metavar="ID", help="Which actor.")],
    method: Annotated[str, typer.Argument(metavar="METHOD")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[JSON ARGS]...", help="Each is JSON; a bare word that is none is taken as a string.")
    ] = None,
    address: common.AddressOption = None,
    data: common.DataOption = common.DATA_DEFAULT,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds until the call gives up. [30]")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="Repeating the command with the same key takes effect once.")] = None,
) -> None:
    """Call a method of an actor and print its result as JSON.

    Example: actorgrid call Account alice deposit 100
    """
    with common.errors_told():
        make_address(actor_type, actor_id)  # an id that cannot be is wrong usage, also where no grid answers
    values = [parse_argument(text) for text in arguments or []]
    result = common.run(_call(common.find_address(address, data), actor_type, actor_id, method, values, timeout, key))
    common.write_line(msgspec.json.encode(result, enc_hook=repr).decode())


def parse_argument(text: str) -> Any:
    """The value of one argument: JSON, or a bare word.

    What begins like JSON and is none is refused: it is a slip in quoting far more often than a string.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        if text[:1] in ("{", "[", '"'):
            common.fail(f"argument {text!r} begins like JSON and is none: {error}", common.EXIT_USAGE)
        if text.startswith("-"):
            common.fail(f"no such option: {text} (an argument that begins with - is written as JSON: '\"{text}\"')", common.EXIT_USAGE)
        return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


async def _call(
    address: str, actor_type: str, actor_id: str, method: str, values: list[Any], timeout_s: float | None, key: str | None
) -> Any:
    timeout_s = timeout_s or ClientSettings.from_environment().timeout_s
    async with grid.connect(address, timeout_s=min(common.CONNECT_TIMEOUT_S, timeout_s)) as client:
        return await client.with_options(timeout_s=timeout_s, idempotency_key=key).call_by_name(actor_type, actor_id, method, values)
