"""The same hosts, client and calls with TLS and without, in turns."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from bench.bench import Bench
from bench.host_processes import HostProcesses
from bench.workload import Workload

PLAIN, SECURE = "plain", "TLS 1.3"


async def tls(bench: Bench) -> None:
    for kind in ("write", "read"):
        workload = Workload(kind=kind, actors=bench.actors)
        rows = {}
        for label, is_secure in ((PLAIN, False), (SECURE, True)):
            directory = Path(tempfile.mkdtemp(prefix="actorgrid-bench-tls-"))
            try:
                async with HostProcesses(bench.shape(), directory, is_secure=is_secure) as target:
                    await workload.prepare(target.client)
                    for in_flight in bench.options.concurrency:
                        operation = f"{kind}, {label}"
                        rows[label, in_flight] = await bench.closed(
                            target, workload, scenario="tls", operation=operation, in_flight=in_flight
                        )
            finally:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        for in_flight in bench.options.concurrency:
            plain, secure = rows[PLAIN, in_flight], rows[SECURE, in_flight]
            secure.figures |= {
                "rate_of_plain": secure.calls_per_s / plain.calls_per_s,
                "cpu_of_plain": secure.cpu_us_per_call / plain.cpu_us_per_call,
                "p50_of_plain": secure.p50_ms / plain.p50_ms,
            }
