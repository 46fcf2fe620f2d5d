"""``python -m actorgrid.host CONFIG.json``: one host as a plain process, without Ray.

For tests, benchmarks, and supervisors of one's own. The configuration is `HostConfig` as JSON. Prints ``serving ADDRESS:PORT`` when it
serves. SIGTERM: it leaves as for a restart, waits until no partition needs it, at most ``stop_grace_s``, and stops; a second SIGTERM, or
SIGINT, lets it stop at once, handing over what it can. Exits with 1 when its store fails, 2 when it was told something wrong.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from actorgrid.errors import SettingsError, StorageError
from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.host.huge_pages import HugePages
from actorgrid.host.process import calm_garbage_collector, log_to


def _decode_path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is not expected here")


async def _serve(config: HostConfig) -> int:
    host = Host(config)
    try:
        await host.start()
    except SettingsError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 - this is a program
        return 2
    except StorageError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201
        return 1
    calm_garbage_collector()
    HugePages(config.settings.huge_pages_look_s).start()
    print(f"serving {config.address}:{host.port}", flush=True)  # noqa: T201
    leave, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: (stop if leave.is_set() else leave).set())
    loop.add_signal_handler(signal.SIGINT, stop.set)

    async def end() -> None:
        await leave.wait()
        await host.leave()

    failure = loop.create_task(host.run_until_failed())
    ways = [loop.create_task(end()), loop.create_task(stop.wait())]
    await asyncio.wait([failure, *ways], return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.wait(ways)
    if failure.done():
        print(f"out of duty: {failure.result()}", file=sys.stderr)  # noqa: T201
        await host.stop()
        return 1
    failure.cancel()
    await host.stop()
    return 0


def main() -> None:
    """Entry point."""
    log_to(logging.StreamHandler(), "%(asctime)s %(levelname)s %(name)s %(message)s")
    if len(sys.argv) != 2:
        print("usage: python -m actorgrid.host CONFIG.json", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=HostConfig, dec_hook=_decode_path)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except SettingsError as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    sys.exit(uvloop.run(_serve(config)))


if __name__ == "__main__":
    main()
