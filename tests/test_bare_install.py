"""``pip install actorgrid`` without extras is a complete client: nothing of the server is there, and calls work."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorgrid.host.config import HostConfig
from actorgrid.host.host import Host
from actorgrid.ids import HostName
from actorgrid.wire.messages import HostInfo

ROOT = Path(__file__).parent.parent
SERVER_PACKAGES = ("ray", "rocksdict", "kubernetes", "uvloop", "typer", "rich", "psutil", "tenacity", "msgpack")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BANK = """
from actorgrid import grid

@grid.actor
class Account:
    balance: int = 0

    async def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance
"""

CLIENT = """
import asyncio, importlib.util, sys
from actorgrid import grid
from bare_bank import Account

found = [name for name in sys.argv[2].split(",") if importlib.util.find_spec(name) is not None]
assert not found, f"installed with the bare package: {found}"

async def main():
    async with grid.connect(sys.argv[1]) as client:
        return await client.get(Account, "alice").deposit(5)

first = asyncio.run(main())
with grid.connect_sync(sys.argv[1]) as client:
    second = client.call(Account.deposit, "alice", 7)
print(first, second)
"""


@pytest.fixture(name="address")
def _address(tmp_path: Path, unused_port: int) -> Iterator[str]:
    """A host in a thread of this process."""
    (tmp_path / "bare_bank.py").write_text(BANK)
    config = HostConfig(
        cluster_id="bare",
        name=HostName("host-1"),
        node="node-1",
        data_dir=tmp_path / "data",
        address="127.0.0.1",
        port=unused_port,
        partition_count=4,
        replica_set_size=1,
        hosts=(HostInfo("host-1", "127.0.0.1", unused_port),),
        app=("bare_bank",),
        app_path=(str(tmp_path),),
    )
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        host = Host(config)
        await host.start()
        await host.administer("init", {})
        started.set()
        await asyncio.to_thread(stop.wait, 240)
        await host.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(30)
    yield f"127.0.0.1:{unused_port}"
    stop.set()
    thread.join(30)


def test_the_bare_package_calls_a_grid_without_any_server_dependency(address: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert install.returncode == 0, install.stderr
    (tmp_path / "client.py").write_text(textwrap.dedent(CLIENT))
    run = subprocess.run(
        [python, "client.py", address, ",".join(SERVER_PACKAGES)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["5", "12"]
    command = subprocess.run([environment / "bin" / "actorgrid", "status"], capture_output=True, text=True, timeout=60, check=False)
    assert command.returncode == 1
    assert "actorgrid[server]" in command.stderr
    assert sys.version_info >= (3, 11)
