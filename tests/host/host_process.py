"""One host in a process of its own: ``host_process.py DATA_DIR PORT``. Says "serving" when it does."""

import asyncio
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import uvloop
from host_harness import make_config

from actorgrid.host.host import Host
from actorgrid.settings import HostSettings, WireSettings


async def main(data_dir: Path, port: int) -> None:
    host = Host(make_config(data_dir, ports=[port], settings=HostSettings.from_environment(), wire=WireSettings.from_environment()))
    await host.start()
    await host.administer("init", {})
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    await host.run_until_failed()


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1]), int(sys.argv[2])))
