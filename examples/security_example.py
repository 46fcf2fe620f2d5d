"""A host that speaks TLS, and who may do what there: a caller, somebody who only looks, and somebody without a credential.

Makes an authority and tokens as ``actorgrid certs`` and ``actorgrid tokens`` do, starts one host as a plain process, and tries.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from bank import Account

from actorgrid import grid
from actorgrid.errors import AccessDeniedError

CLUSTER = "example"


def actorgrid(*arguments: str) -> str:
    """Run the command line."""
    command = [sys.executable, "-m", "actorgrid", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def configuration(directory: Path, port: int) -> Path:
    """What ``python -m actorgrid.host`` is told."""
    credentials = directory / "credentials"
    path = directory / "host.json"
    path.write_text(
        json.dumps(
            {
                "cluster_id": CLUSTER,
                "name": "host-1",
                "node": "node-1",
                "data_dir": str(directory / "host-1"),
                "address": "127.0.0.1",
                "port": port,
                "partition_count": 4,
                "replica_set_size": 1,
                "hosts": [["host-1", "127.0.0.1", port]],
                "app": ["bank"],
                "app_path": [str(Path(__file__).parent)],
                "credentials": {
                    "ca": str(credentials / "host/ca.crt"),
                    "certificate": str(credentials / "host/tls.crt"),
                    "key": str(credentials / "host/tls.key"),
                    "tokens": str(credentials / "tokens.json"),
                },
            }
        )
    )
    return path


async def try_it(address: str, credentials: Path, shop: str, auditor: str) -> None:
    """Three who come, and what they may do."""
    ca = str(credentials / "ca.crt")
    async with grid.connect(address, credentials=grid.Credentials(ca=ca, token=shop)) as client:
        print("the shop deposits:", await client.get(Account, "alice").deposit(100))
    async with grid.connect(address, credentials=grid.Credentials(ca=ca, token=auditor)) as client:
        try:
            await client.get(Account, "alice").deposit(1_000_000)
        except AccessDeniedError as error:
            print("the auditor may not:", error)
    try:
        async with grid.connect(address, credentials=grid.Credentials(ca=ca)):
            pass
    except AccessDeniedError as error:
        print("a stranger may not:", error)


def main() -> None:
    """Set it up, and try."""
    with tempfile.TemporaryDirectory(prefix="actorgrid-example-") as name:
        directory = Path(name)
        credentials = directory / "credentials"
        actorgrid("certs", "make", str(credentials), "--cluster", CLUSTER)
        shop = actorgrid("tokens", "add", str(credentials / "tokens.json"), "--name", "shop", "--role", "caller")
        auditor = actorgrid("tokens", "add", str(credentials / "tokens.json"), "--name", "auditor", "--role", "observer")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "actorgrid.host", str(configuration(directory, port))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as host:
            try:
                assert host.stdout is not None
                print(host.stdout.readline().split()[0], "by TLS")
                address = f"127.0.0.1:{port}"
                operator = [f"--{option}={credentials / 'operator' / file}" for option, file in FILES.items()]
                actorgrid(*operator, "init", "--address", address)
                asyncio.run(try_it(address, credentials, shop, auditor))
            finally:
                host.send_signal(signal.SIGINT)


FILES = {"ca": "ca.crt", "certificate": "tls.crt", "key": "tls.key"}


if __name__ == "__main__":
    main()
