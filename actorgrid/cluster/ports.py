"""Listening ports: which are free, and which range nobody else picks from.

Ports are taken from 20000-32767: above 10002-19999, where every Ray's workers listen by default, and below the range from
which the kernel gives ports to outgoing connections (32768 on), so that a host that restarts finds its port still free.
"""

from __future__ import annotations

import ipaddress
import random
import socket

from actorgrid.errors import SettingsError

LOOPBACK = "127.0.0.1"
FREE_PORTS = range(20_000, 32_700)
RAY_WORKER_PORTS = range(10_002, 20_000)
_TRIES = 200


def is_free(port: int, address: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the host does: TIME_WAIT of the last run is no obstacle
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def is_loopback(address: str) -> bool:
    """Whether nobody off this machine can reach the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def find_free(count: int, *, chooser: random.Random | None = None, avoid: range | tuple[int, ...] = ()) -> int:
    """The first of `count` consecutive free ports.

    :raises SettingsError: none found
    """
    picker = chooser or random.SystemRandom()
    for _ in range(_TRIES):
        first = picker.randrange(FREE_PORTS.start, FREE_PORTS.stop - count)
        wanted = range(first, first + count)
        if not any(port in avoid for port in wanted) and all(is_free(port) for port in wanted):
            return first
    raise SettingsError(f"found no {count} consecutive free ports between {FREE_PORTS.start} and {FREE_PORTS.stop - 1}")


def check_range(first: int, count: int) -> list[str]:
    """What speaks against hosts on ports `first` .. `first` + `count` - 1, taken or not; empty if nothing does."""
    last = first + count - 1
    if not 1 <= first <= last <= 65_535:
        return [f"port {first}: {count} hosts need ports {first}..{last}, allowed is 1..65535"]
    if first < RAY_WORKER_PORTS.stop and last >= RAY_WORKER_PORTS.start:
        return [
            f"port {first}: {count} hosts would listen on {first}..{last}, and Ray's workers take "
            f"{RAY_WORKER_PORTS.start}..{RAY_WORKER_PORTS.stop - 1} for themselves"
        ]
    return []
