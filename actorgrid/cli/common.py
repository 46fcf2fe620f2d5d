"""What every command shares: exit codes, where the grid is, and how errors are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from actorgrid.cluster import grid_file
from actorgrid.errors import ActorGridError, HostUnavailableError, OutcomeUnknownError, RequestError, SettingsError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_UNSAFE = 4
EXIT_DEADLINE = 5
EXIT_INTERRUPTED = 130  # as shells have it: 128 + SIGINT

#: A host that listens answers the handshake within milliseconds; this is for a busy machine.
CONNECT_TIMEOUT_S = 3.0
DATA_DEFAULT = Path(".actorgrid")

T = TypeVar("T")

DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", envvar="ACTORGRID_DATA", help="Directory of the local grid.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        envvar="ACTORGRID_ADDRESS",
        help="Any host of the grid, or several separated by commas. Default: the local grid of --data.",
    ),
]


def fail(message: str, code: int) -> NoReturn:
    """Say why on stderr and exit."""
    typer.echo(f"actorgrid: {message}", err=True)
    raise typer.Exit(code)


def find_address(address: str | None, data: Path) -> str:
    """The address given, or that of the local grid in `data`; exits with 3 if there is none."""
    if address is not None:
        return address
    try:
        grid = grid_file.read_grid(data)
    except ActorGridError as error:
        fail(str(error), EXIT_FAILED)
    if grid is None:
        fail(f"no grid in {data}: start one with `actorgrid up`, or give --address HOST:PORT or --data DIR", EXIT_UNREACHABLE)
    return grid.address


def exit_code_of(error: ActorGridError) -> int:
    """The exit code that tells a script what to do next."""
    if isinstance(error, HostUnavailableError):
        return EXIT_UNREACHABLE
    if isinstance(error, grid_file.DirectoryRefusedError):
        return EXIT_UNSAFE
    if isinstance(error, OutcomeUnknownError):
        return EXIT_DEADLINE
    return EXIT_USAGE if isinstance(error, RequestError) else EXIT_FAILED


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Turn the library's errors and Ctrl-C into a message on stderr and an exit code."""
    try:
        yield
    except ActorGridError as error:
        fail(f"{_kind(error)}{error}", exit_code_of(error))
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)


def _kind(error: ActorGridError) -> str:
    # What stopped an `up` or `down` reads as a sentence of its own; what the grid answered is told apart by its class.
    is_ours = isinstance(error, SettingsError) or type(error).__module__.startswith("actorgrid.cluster")
    return "" if is_ours else f"{type(error).__name__}: "


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; its errors end the command."""
    with errors_told():
        return asyncio.run(work)


def write_line(text: str) -> None:
    """A line of the command's result on stdout; a reader that went away ends the command quietly."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(EXIT_FAILED) from None
