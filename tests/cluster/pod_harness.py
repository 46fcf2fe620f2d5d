"""Pods on one machine: each a process of its own with its own environment, ports and data, as containers have them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import ports, processes
from actorgrid.cluster.processes import ProcessMark
from actorgrid.credentials import Credentials
from actorgrid.settings import WireSettings

APPS = Path(__file__).parent.parent / "apps"
GRACE_S = 60


def until(what: Callable[[], object], *, within_s: float, saying: str = "not in time") -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, saying
        time.sleep(0.1)


class Pod:
    """A container: started, told to leave, ended, killed."""

    def __init__(self, name: str, verb: str, environment: dict[str, str], directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.port = int(environment.get("ACTORGRID_PORT", "0"))
        self._verb = verb
        self._credentials: Credentials | None = None
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(self._verb), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "actorgrid", "pod", *words]

    def leave(self, *words: str) -> dict[str, Any]:
        """What a preStop hook does; its one line."""
        found = subprocess.run(
            self._command("leave", *words), env=self.environment, capture_output=True, text=True, timeout=GRACE_S, check=True
        )
        [line] = found.stdout.splitlines()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self, within_s: float = GRACE_S) -> tuple[int, float]:
        """SIGTERM; exit code and seconds."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s), round(time.monotonic() - began, 2)

    def kill(self) -> None:
        """SIGKILL of all its processes, the first one first, as when a container is killed."""
        assert self.process is not None
        offspring = self.offspring()
        self.process.kill()
        self.process.wait(10)
        for mark in offspring:
            if mark.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(mark.pid, signal.SIGKILL)
        assert processes.wait_for_end(offspring, 10), "processes outlive their pod"

    def offspring(self) -> list[ProcessMark]:
        """All processes of the pod but the first."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            marks = [ProcessMark.of(child.pid) for child in psutil.Process(self.process.pid).children(recursive=True)]
            return [mark for mark in marks if mark is not None]
        return []

    def child(self, name: str) -> int:
        """The pid of a process of the pod, by a part of its command line."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(child.cmdline()[:1]):
                    return int(child.pid)
        raise AssertionError(f"{self.name} has no {name}")

    def probe(self, path: str) -> tuple[int, list[str]]:
        """Status and reasons; 0: nobody answers."""
        scheme = "http" if self._credentials is None else "https"
        url = f"{scheme}://127.0.0.1:{self.environment['ACTORGRID_PROBE_PORT']}/{path}"
        context = ssl._create_unverified_context()  # as a kubelet does
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as response:
                return response.status, json.load(response)["reasons"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["reasons"]
        except OSError as error:
            return 0, [str(error)]

    def is_ready(self) -> bool:
        return self.probe("readyz")[0] == 200

    def ask(self, verb: str, arguments: dict[str, Any] | None = None) -> Any:
        return asyncio.run(
            admin.ask(
                ports.LOOPBACK,
                self.port,
                verb,
                arguments or {},
                client_id=new_client_id(),
                cluster_id="pods",
                wire=WireSettings(),
                timeout_s=5,
                credentials=self._credentials,
            )
        )

    def secure(self, directory: Path) -> None:
        """Give it the certificate of a host."""
        self._credentials = Credentials(ca=f"{directory}/ca.crt", certificate=f"{directory}/tls.crt", key=f"{directory}/tls.key")
        files = {"ACTORGRID_CA": "ca.crt", "ACTORGRID_CERTIFICATE": "tls.crt", "ACTORGRID_KEY": "tls.key"}
        self.environment |= {name: f"{directory}/{file}" for name, file in files.items()}


class Machine:
    """A head and several pods."""

    def __init__(self, count: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ag-", dir="/tmp"))  # short: the paths of Ray's sockets
        taken = ports.find_free(1 + 4 * (count + 1))
        address = f"127.0.0.1:{taken}"
        common = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "ACTORGRID_RAY_ADDRESS": address,
            "ACTORGRID_RAY_PORT": "0",
            "ACTORGRID_POD_IP": "127.0.0.1",
        }
        first = ",".join(f"pod-{number}@127.0.0.1:{taken + 1 + 4 * number}" for number in range(3))
        self.head = Pod(
            "head",
            "head",
            {**common, "ACTORGRID_DATA": str(self.directory / "head"), "ACTORGRID_RUN": f"{self.directory}/h"},
            self.directory,
        )
        self.pods = [
            Pod(
                f"pod-{number}",
                "run",
                {
                    **common,
                    "ACTORGRID_CLUSTER_ID": "pods",
                    "ACTORGRID_PARTITIONS": "6",
                    "ACTORGRID_APP": "ledger",
                    "ACTORGRID_APP_PATH": str(APPS),
                    "ACTORGRID_STATEFULSET": "pod",
                    "ACTORGRID_POD_NAME": f"pod-{number}",
                    "ACTORGRID_FIRST_HOSTS": first,
                    "ACTORGRID_PORT": str(taken + 1 + 4 * number),
                    "ACTORGRID_PROBE_PORT": str(taken + 4 + 4 * number),
                    "ACTORGRID_DATA": str(self.directory / f"d{number}"),
                    "ACTORGRID_RUN": f"{self.directory}/{number}",
                    "ACTORGRID_GRACE_S": str(GRACE_S),
                    "ACTORGRID_OFFLOAD_CPUS": "1",
                    "ACTORGRID_PLACEMENT_QUIET_S": "1",
                },
                self.directory,
            )
            for number in range(count)
        ]
        self.address = ",".join(f"127.0.0.1:{pod.port}" for pod in self.pods[:3])

    def ask(self, verb: str, arguments: dict[str, Any] | None = None, *, within_s: float = 10) -> Any:
        """Ask any host that answers."""
        deadline = time.monotonic() + within_s
        while True:
            for pod in self.pods:
                with contextlib.suppress(Exception):
                    return pod.ask(verb, arguments)
            assert time.monotonic() < deadline, f"nobody answers {verb}"
            time.sleep(0.1)

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.ask("nodes")["nodes"]}

    def logs(self) -> str:
        """The ends of all logs, for who looks for what went wrong."""
        found = [(pod.name, pod.log.read_text().splitlines()[-60:]) for pod in (self.head, *self.pods) if pod.log.exists()]
        return "\n".join(f"===== {name}\n" + "\n".join(line[:300] for line in lines) for name, lines in found)

    def close(self) -> None:
        """End what is left, as a container runtime does."""
        for pod in (*self.pods, self.head):
            if pod.process is not None:
                pod.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
