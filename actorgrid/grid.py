"""The public names: ``from actorgrid import grid``.

Everything an application or an actor module needs, apart from the errors, which are in `actorgrid.errors`. Importing it starts
nothing and needs only the bare package.
"""

from __future__ import annotations

from actorgrid.actor.collections import List, Map
from actorgrid.actor.context import current, offload, report_load
from actorgrid.actor.definition import actor, blocking, read, reentrant
from actorgrid.client.client import Client
from actorgrid.client.sync import SyncClient
from actorgrid.credentials import Credentials
from actorgrid.settings import ClientSettings

__all__ = [
    "Client",
    "ClientSettings",
    "Credentials",
    "List",
    "Map",
    "SyncClient",
    "actor",
    "blocking",
    "connect",
    "connect_sync",
    "current",
    "offload",
    "read",
    "reentrant",
    "report_load",
]


def connect(
    address: str, *, timeout_s: float | None = None, settings: ClientSettings | None = None, credentials: Credentials | None = None
) -> Client:
    """A client of the grid at `address`: ``async with grid.connect("127.0.0.1:7400") as client``.

    :param address: ``host:port`` of any host of the grid, or several separated by commas, of which one must answer
    :param timeout_s: seconds until a call, or connecting, gives up; default: the settings'
    :param settings: default: `ClientSettings.from_environment`
    :param credentials: what the client shows, and how it knows hosts; default: `Credentials.from_environment`
    :raises InvalidArgumentError: the address or timeout is none
    :raises SettingsError: a variable of the environment is out of range, or a file of the credentials is missing
    """
    credentials = credentials or Credentials.from_environment()
    return Client(address, timeout_s=timeout_s, settings=settings or ClientSettings.from_environment(), credentials=credentials)


def connect_sync(
    address: str, *, timeout_s: float | None = None, settings: ClientSettings | None = None, credentials: Credentials | None = None
) -> SyncClient:
    """A client without asyncio: ``with grid.connect_sync("127.0.0.1:7400") as client``. Arguments are those of `connect`.

    It is the same client, run by a thread of its own; use it from as many threads as you like.
    """
    credentials = credentials or Credentials.from_environment()
    return SyncClient(address, timeout_s=timeout_s, settings=settings or ClientSettings.from_environment(), credentials=credentials)
