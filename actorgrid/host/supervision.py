"""Who sees processes die: proof that a peer's process has ended, so that nobody waits for a lease to run out.

A process is named by a *process id*, a string that is made once in that process, told to peers in the handshake, and never means
another process, whatever number the kernel gives out again. "Known dead" is always somebody's testimony about that very process:
here the kernel's, in `LocalSupervisor`, on one machine and in one pid namespace; across machines the Ray worker's record, in
`actorgrid.cluster.supervision`. Silence proves nothing: a stopped process and a lost network look the same. What is unclear is
"not known", which only costs time.

This module must not: import Ray, wait for anything, or call a process dead because it could not look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import secrets
import select
from pathlib import Path
from typing import Protocol

#: The kernel's own highest limit for pids (PID_MAX_LIMIT on 64 bits).
PID_MAX = 1 << 22
_FORM = re.compile(
    r"(?P<pid>[0-9]{1,7})\.(?P<start>[0-9]{1,20})\.(?P<machine>[0-9a-f]{32}|-)\.(?P<nonce>[0-9a-f]{16})(\.(?P<worker>[0-9a-f]{56}))?"
)


class Supervisor(Protocol):
    """Who sees processes die.

    :ivar process_id: names this very process, for ever; told to peers in the handshake
    """

    process_id: str

    async def is_dead(self, host: str, process_id: str) -> bool:
        """Whether the process `process_id` of host `host` is known to have ended.

        True only with proof: it runs nothing any more and its sockets are closed. False means "not known". Answers within 0.5 s
        and never raises, whatever the string is. Meant to be asked every few milliseconds while a connection is lost.
        """
        ...

    def close(self) -> None:
        """Stop looking. Later questions are answered with False."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessName:
    """What a process id says.

    :ivar pid: in the process's own pid namespace
    :ivar start: when it started, in the kernel's clock ticks since boot; 0 if the kernel does not say
    :ivar machine: digest of kernel boot, pid namespace, time namespace, host name and realm; ``-`` if the kernel does not say. Two
        processes with the same digest can ask the kernel about each other
    :ivar nonce: random, so that ids differ where all else is unknown or alike
    :ivar worker: hex id of the Ray worker; empty without Ray
    """

    pid: int
    start: int
    machine: str
    nonce: str
    worker: str = ""

    @classmethod
    def own(cls, *, realm: str = "", worker: str = "") -> ProcessName:
        """A new name for the calling process.

        :param realm: narrows the machine further. Copies of one virtual machine share everything that the kernel can tell, so where
            something is known that they do not share, such as the Ray node's id, it belongs here
        """
        nonce = secrets.token_hex(8)
        try:
            machine, start = _machine(realm), _start_and_state(os.getpid())[0]
        except (OSError, ValueError, IndexError):  # no /proc, or one that shows another pid namespace
            machine, start = "-", 0
        return cls(pid=os.getpid(), start=start, machine=machine, nonce=nonce, worker=worker)

    @classmethod
    def parse(cls, process_id: str) -> ProcessName | None:
        """What `process_id` says; None if it is none of ours."""
        found = _FORM.fullmatch(process_id)
        if found is None or not 0 < int(found["pid"]) <= PID_MAX:
            return None
        return cls(int(found["pid"]), int(found["start"]), found["machine"], found["nonce"], found["worker"] or "")

    def __str__(self) -> str:
        return f"{self.pid}.{self.start}.{self.machine}.{self.nonce}" + (f".{self.worker}" if self.worker else "")

    def has_ended(self, own: ProcessName) -> bool | None:
        """Whether this process has ended, by the word of the kernel that both it and the asking process `own` run on.

        None: it runs elsewhere, this kernel does not know. Costs about 0.1 ms and does not block.
        """
        if self.machine != own.machine or own.machine == "-":
            return None
        return _is_gone(self.pid) or _is_another_or_zombie(self.pid, self.start)


def _machine(realm: str) -> str:
    """Digest of all that must be the same for two processes to mean the same by a pid and by a start time.

    :raises ValueError: ``/proc`` shows another pid namespace than the process's own
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    pids = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    if pids is None or pids[1].split() != [str(os.getpid())]:
        raise ValueError(f"/proc is not of this pid namespace: {pids and pids[0]}")
    known = [
        Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        os.readlink("/proc/self/ns/pid"),
        "",
        os.uname().nodename,
        realm,
    ]
    with contextlib.suppress(FileNotFoundError):  # before Linux 5.6; start times are shown as the reader's time namespace has them
        known[2] = os.readlink("/proc/self/ns/time")
    if not known[0]:
        raise ValueError("no boot id")
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:32]


def _is_gone(pid: int) -> bool:
    """Whether no process has the number `pid`, or only the remains of one. Proof whoever had it, so a reused pid does no harm."""
    try:
        os.kill(pid, 0)  # needs no /proc, and EPERM says that there is one
    except ProcessLookupError:
        return True
    except OSError:
        pass
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:  # no such call before Linux 5.3, no descriptor left, forbidden: not known
        return False
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        # Readable once every thread has ended, also while a parent has not yet taken note (a zombie).
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


def _is_another_or_zombie(pid: int, start: int) -> bool:
    """Whether the process with the number `pid` is a later one than that of `start`, or a zombie."""
    try:
        started, is_zombie = _start_and_state(pid)
    except (OSError, ValueError, IndexError):  # hidden (hidepid), or just gone: the next question finds out
        return False
    return is_zombie or started != start


def _start_and_state(pid: int) -> tuple[int, bool]:
    """Start of a process in clock ticks since boot, and whether it is a zombie with no thread left.

    :raises OSError: it is gone or hidden
    :raises ValueError: the file is not as proc(5) has it
    """
    # The name in field 2 may hold anything, spaces and brackets too; fields are counted from the last bracket, which ends it.
    _, bracket, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
    if not bracket:
        raise ValueError("no name in stat")
    fields = rest.split()
    state, threads, start = fields[0], int(fields[17]), int(fields[19])
    # A process whose first thread has ended also shows Z, while others run on.
    return start, state in (b"Z", b"X") and threads <= 1


class LocalSupervisor:
    """The kernel's word, for hosts on one machine and in one pid namespace; of others nothing is known. Linux only, harmless elsewhere.

    :param realm: see `ProcessName.own`
    """

    def __init__(self, *, realm: str = "", worker: str = "") -> None:
        self._own = ProcessName.own(realm=realm, worker=worker)
        self.process_id = str(self._own)
        self._closed = False

    def look(self, name: ProcessName) -> bool | None:
        """Whether the process has ended; None if this machine's kernel does not know."""
        return name.has_ended(self._own)

    async def is_dead(self, host: str, process_id: str) -> bool:
        """See `Supervisor.is_dead`."""
        name = ProcessName.parse(process_id)
        return name is not None and not self._closed and self.look(name) is True

    def close(self) -> None:
        """See `Supervisor.close`."""
        self._closed = True


class BlindSupervisor:
    """Sees nothing: what it is asked is not known. The process has a name all the same, so that others can report its death."""

    def __init__(self) -> None:
        self.process_id = str(ProcessName.own())

    async def is_dead(self, host: str, process_id: str) -> bool:
        """See `Supervisor.is_dead`."""
        return False

    def close(self) -> None:
        """See `Supervisor.close`."""
