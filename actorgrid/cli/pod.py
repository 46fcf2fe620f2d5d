"""``actorgrid pod head``, ``run`` and ``leave``: what the containers of a Kubernetes chart run. Settings come from the environment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Annotated

import msgspec
import typer

from actorgrid.cli import common
from actorgrid.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="What the containers of a Kubernetes chart run; settings come from the environment.")


def _log() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


@app.command("head")
def head_command() -> None:
    """Run Ray's head: its control store, with its state in ACTORGRID_DATA, and nothing else."""
    _log()
    from actorgrid.cluster import pod_head
    from actorgrid.cluster.pod_settings import HeadSettings

    with common.errors_told():
        raise typer.Exit(pod_head.run(HeadSettings.from_environment(os.environ)))


@app.command("run")
def run_command() -> None:
    """Run a node: its raylet, its hosts, its probes. SIGTERM: leave, so that no call fails, and end."""
    _log()
    from actorgrid.cluster import pod
    from actorgrid.cluster.pod_settings import PodSettings

    with common.errors_told():
        raise typer.Exit(pod.run(PodSettings.from_environment(os.environ)))


@app.command("leave")
def leave_command(
    intent: Annotated[
        str, typer.Option(help="restart, remove_node or end_all; default: as the size of the StatefulSet says, restart if nobody knows.")
    ] = "",
) -> None:
    """Let the grid do without this node, at most until the grace period is nearly over. For preStop: the exit code is always 0."""
    from actorgrid.cluster import pod_leaving
    from actorgrid.cluster.pod_settings import PodSettings

    try:
        settings = PodSettings.from_environment(os.environ)
        answer = msgspec.json.encode(asyncio.run(pod_leaving.ask_agent(settings, intent))).decode()
    except SettingsError as error:
        answer = msgspec.json.encode({"state": "none", "why": str(error)}).decode()
    except Exception as error:  # noqa: BLE001  # SIGTERM, which comes next, is the second path
        answer = msgspec.json.encode({"state": "none", "why": f"the agent does not answer: {type(error).__name__}: {error}"}).decode()
    common.write_line(answer)
