"""All commands, put together."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from actorgrid import __version__
from actorgrid.cli import call, certs, constraints, init, local_grid, node, placement, pod, recovery, status
from actorgrid.credentials import VARIABLES

app = typer.Typer(
    help="Partitioned, replicated, stateful actors for Python.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback of ours is for the bug report, not for a frame of box characters.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 grid not reachable, 4 refused because it would be unsafe, "
    "5 deadline passed while it goes on.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"actorgrid {__version__}")
        raise typer.Exit(0)


def _credential(name: str, text: str) -> Any:
    return typer.Option(f"--{name.replace('_', '-')}", metavar="FILE", envvar=VARIABLES[name], help=text)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the release and exit.")] = False,
    ca: Annotated[str, _credential("ca", "Certificate of the grid's authority: the grid speaks TLS.")] = "",
    certificate: Annotated[str, _credential("certificate", "Own certificate.")] = "",
    key: Annotated[str, _credential("key", "Of the own certificate.")] = "",
    token_file: Annotated[str, _credential("token_file", "File with a token, in place of a certificate.")] = "",
) -> None:
    """Partitioned, replicated, stateful actors for Python."""
    # Every command connects by the environment, like applications do; what was given here stands before it.
    given = {"ca": ca, "certificate": certificate, "key": key, "token_file": token_file}
    os.environ.update({VARIABLES[name]: value for name, value in given.items() if value})


app.command("up")(local_grid.up_command)
app.command("down")(local_grid.down_command)
app.command("init")(init.init_command)
app.command("status")(status.status_command)
app.command("call", context_settings={"ignore_unknown_options": True})(call.call_command)
app.command("nodes")(placement.nodes_command)
app.command("drain")(placement.drain_command)
app.command("undrain")(placement.undrain_command)
app.command("rebalance")(placement.rebalance_command)
app.command("explain")(placement.explain_command)
app.command("moves")(placement.moves_command)
app.command("freeze")(placement.freeze_command)
app.command("unfreeze")(placement.unfreeze_command)
app.command("constrain")(constraints.constrain_command)
app.command("recover")(recovery.recover_command)
app.add_typer(node.app, name="node")
app.add_typer(pod.app, name="pod")
app.add_typer(certs.app, name="certs")
app.add_typer(certs.tokens_app, name="tokens")
