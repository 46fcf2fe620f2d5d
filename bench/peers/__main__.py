"""A quick check of one peer: ``python -m bench.peers NAME --operation write --in-flight 64 --duration 3 [--kill-after 1]``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.load import Load
from bench.machine import CpuMeter
from bench.peers.interface import MissingPeerError, Peer, PeerError, known


def main() -> int:
    """Parse, run, print."""
    peers = known()
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("name", choices=sorted(peers))
    parser.add_argument("--operation", help="default: the peer's first")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--duration", type=float, default=3.0, help="seconds")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds of load before")
    parser.add_argument("--kill-after", type=float, help="seconds into the load after which one node is killed")
    parser.add_argument("--directory", type=Path, help="for data and logs, kept; default: a temporary one")
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-peer-") as temporary:
            uvloop.run(_check(peers[chosen.name](), chosen, chosen.directory or Path(temporary)))
    except (MissingPeerError, PeerError) as error:
        print(f"{chosen.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


async def _check(peer: Peer, chosen: argparse.Namespace, directory: Path) -> None:
    running = asyncio.current_task()
    assert running is not None
    # As for an interrupt: what was started is to be stopped.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    operation = chosen.operation or peer.operations[0]
    began_s = time.monotonic()
    await peer.start(directory)
    try:
        print(f"{peer.name} ({peer.what}; {peer.durability}), ready after {time.monotonic() - began_s:.1f} s")
        if chosen.warm_up:
            await peer.load(operation, in_flight=chosen.in_flight, duration_s=chosen.warm_up)
        meter = CpuMeter(peer.pids())
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(peer.load(operation, in_flight=chosen.in_flight, duration_s=chosen.duration))
            if chosen.kill_after is not None:
                await asyncio.sleep(chosen.kill_after)
                meter.sample()
                await peer.kill_one()
        load = loading.result()
        _print(operation, chosen.in_flight, load, meter.used_s(peer.pids()) - load.folding_cpu_s)
        if operation == "write" and type(peer).read_back is not Peer.read_back:
            print(f"  {await peer.verdict()}")
    finally:
        await peer.stop()


def _print(operation: str, in_flight: int, load: Load, used_s: float) -> None:
    latencies = load.latencies
    print(
        f"  {operation}, {in_flight} in flight: {load.calls_per_s:,.0f}/s, p50 {latencies.percentile_ms(50):.3f} ms, "
        f"p99 {latencies.percentile_ms(99):.2f} ms, slowest {latencies.slowest_ms:.0f} ms, "
        f"{used_s / max(load.calls, 1) * 1e6:,.1f} us of CPU a call, longest gap {load.longest_gap_s * 1e3:.0f} ms, "
        f"{load.failed} failed {load.errors or ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
