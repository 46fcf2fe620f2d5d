"""Cuts between hosts that listen on loopback addresses of their own: iptables rules that drop what one sends to the other.

Hosts bind their outgoing connections to their own address, so source and destination name the pair. A rule also names the port of the
host that was connected to, so that two campaigns on one machine do not cut each other's hosts. Every rule is in one chain, named after
the process that made it, so that one command removes them all; chains of campaigns that died are removed by the next one.

A one-way cut drops what `a` sends to `b`, also its acknowledgements of what `b` sends: data of `b` still arrives, and `b` sends it again
and again. When the cut heals, TCP delivers the old bytes on the old connection.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

Way = Literal["one_way", "two_way"]
_PREFIX = "AGFAULTS-"
#: Only loopback addresses of this range are ever matched, whatever the rules in the chain say.
_JUMP = ("INPUT", "-i", "lo", "-s", "127.0.0.0/24", "-d", "127.0.0.0/24", "-j")


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host listens; its address is also where its own connections come from."""

    address: str
    port: int


class NetworkCuts:
    """The cuts of one campaign. Use it as a context manager; leaving it heals everything.

    :raises RuntimeError: iptables is not usable here; `reason_unusable` says why
    """

    def __init__(self) -> None:
        self.chain = f"{_PREFIX}{os.getpid()}"

    def __enter__(self) -> NetworkCuts:
        if reason := reason_unusable():
            raise RuntimeError(reason)
        remove_chains_of_the_dead()
        self._remove()
        _iptables("-N", self.chain)
        _iptables("-I", *_JUMP, self.chain)
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def cut(self, a: Endpoint, b: Endpoint, way: Way) -> None:
        """Drop what `a` sends to `b`, and the other way round too if `way` says so."""
        for source, target in [(a, b), (b, a)][: 1 if way == "one_way" else 2]:
            addresses = ("-s", source.address, "-d", target.address, "-p", "tcp")
            _iptables("-A", self.chain, *addresses, "--dport", str(target.port), "-j", "DROP")
            _iptables("-A", self.chain, *addresses, "--sport", str(source.port), "-j", "DROP")

    def heal(self) -> int:
        """Remove all cuts.

        :return: how many packets they dropped
        """
        dropped = self.dropped()
        _iptables("-F", self.chain)
        return dropped

    def dropped(self) -> int:
        """Packets that the present cuts have dropped so far."""
        rows = _iptables("-L", self.chain, "-v", "-x", "-n").splitlines()
        return sum(int(row.split()[0]) for row in rows if re.match(r"\s*\d+\s+\d+\s+DROP", row))

    def _remove(self) -> None:
        _remove_chain(self.chain)


def reason_unusable() -> str:
    """Why cuts cannot be made here, or the empty string."""
    if shutil.which("iptables") is None:
        return "there is no iptables (Debian: apt-get install iptables)"
    if os.geteuid() != 0:
        return "iptables needs root"
    probe = f"{_PREFIX}T{os.getpid()}"
    try:
        _iptables("-N", probe)
        _iptables("-A", probe, "-s", "127.0.0.2", "-d", "127.0.0.3", "-p", "tcp", "--dport", "1", "-j", "DROP")
    except subprocess.CalledProcessError as error:
        return f"iptables does not work: {error.stderr.strip()[:200]}"
    finally:
        _remove_chain(probe)
    return ""


def remove_chains_of_the_dead() -> None:
    """Remove what campaigns left that were killed themselves."""
    for chain in re.findall(rf"^-N ({_PREFIX}T?\d+)$", _iptables("-S"), re.MULTILINE):
        if not Path(f"/proc/{chain.removeprefix(_PREFIX).lstrip('T')}").exists():
            _remove_chain(chain)


def _remove_chain(chain: str) -> None:
    for arguments in (("-D", *_JUMP, chain), ("-F", chain), ("-X", chain)):
        subprocess.run(["iptables", "-w", "5", *arguments], capture_output=True, check=False, timeout=20)


def _iptables(*arguments: str) -> str:
    return subprocess.run(["iptables", "-w", "5", *arguments], capture_output=True, check=True, text=True, timeout=20).stdout


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """One TCP connection between two hosts, as the kernel sees it.

    :ivar unanswered: sends that the kernel had to repeat and that are still not acknowledged
    """

    local: tuple[str, int]
    remote: tuple[str, int]
    unanswered: int


def links_between(a: Endpoint, b: Endpoint) -> dict[tuple[tuple[str, int], tuple[str, int]], Link]:
    """Established connections between two hosts, both ends of each."""
    found = {}
    pair = {a.address, b.address}
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        local, remote = _endpoint(fields[1]), _endpoint(fields[2])
        if fields[3] == "01" and {local[0], remote[0]} == pair and (local[1] in (a.port, b.port) or remote[1] in (a.port, b.port)):
            found[local, remote] = Link(local, remote, int(fields[6], 16))
    return found


def _endpoint(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    value = int(address, 16)
    return ".".join(str(value >> shift & 255) for shift in (0, 8, 16, 24)), int(port, 16)


if __name__ == "__main__":
    remove_chains_of_the_dead()
