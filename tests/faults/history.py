"""What callers did and what they were told: one record for each call, one JSON array for each line of a file.

Times are `time.monotonic_ns`, which all processes of one machine share.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from actorgrid.ids import make_address, partition_of

Outcome = Literal["ok", "refused", "unknown", "raised"]

#: Bytes that are written out at once; what is younger than a second may be missing after a SIGKILL of the client.
_BUFFER_BYTES: Final = 1 << 18


#: Who asks every partition once after each fault, and nothing in between: no caller that waits.
PROGRESS_CALLER: Final = "progress"


class Record(msgspec.Struct, array_like=True, gc=False):
    """One call.

    :ivar kind: ``change``, ``transfer``, ``read``, or ``direct``: a read sent to one host, whether it is the primary or not
    :ivar token: of a change or transfer: its own; of a read: that of the last change it saw
    :ivar to: where a transfer goes, or which host was read directly
    :ivar version: what was answered, -1 where nothing was
    :ivar ended_ns: when the answer was there, also a refusal; 0 if the outcome is unknown
    :ivar outcome: ``ok``; ``refused``: nothing happened; ``unknown``; ``raised``: the actor's method raised, so its turn changed nothing
    :ivar caller: ``process.habit and slot.life``; a caller whose call had an unknown outcome makes no other
    """

    kind: str
    actor: str
    token: str
    to: str
    amount: int
    version: int
    began_ns: int
    ended_ns: int
    outcome: str
    caller: str
    error: str = ""

    @property
    def is_read(self) -> bool:
        return self.kind in ("read", "direct")

    @property
    def is_acknowledged_write(self) -> bool:
        return self.outcome == "ok" and not self.is_read

    @property
    def is_patient(self) -> bool:
        """Whether the caller had all the time that the default deadline gives, and was no prober."""
        return self.kind != "direct" and ".impatient" not in self.caller

    @property
    def slot(self) -> str:
        """The caller over all its lives."""
        return self.caller.rsplit(".", 1)[0]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class HistoryWriter:
    """Buffers records and appends them to a file."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=_BUFFER_BYTES)

    def add(self, record: Record) -> None:
        self._file.write(_encode(record) + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def load(paths: Iterable[Path]) -> list[Record]:
    """All records of some files, in the order in which the calls began. A torn last line is left out."""
    records = []
    for path in paths:
        for line in path.read_bytes().split(b"\n"):
            try:
                if line:
                    records.append(_decode(line))
            except msgspec.MsgspecError:
                continue
    records.sort(key=lambda record: record.began_ns)
    return records


def partition_of_actor(actor: str, partition_count: int) -> int:
    return partition_of(make_address("Ledger", actor), partition_count)


# -- which actors are called when: the same in every process, from the clock alone


def cold_actor(index: int, generation_s: float, at_ns: int | None = None) -> str:
    """One of many actors; new ones every `generation_s`, so that none gets too large and old ones must outlive the later faults."""
    return f"a{(time.monotonic_ns() if at_ns is None else at_ns) // int(generation_s * 1e9)}-{index}"


def hot_actor(index: int, slice_s: float) -> str:
    """One of few actors that some callers of every process fight for; new ones every `slice_s`, for the linearizability checker."""
    return f"h{time.monotonic_ns() // int(slice_s * 1e9)}-{index}"


class LastAcknowledged:
    """Memory shared by all client processes: the actor whose change was acknowledged last, for each process.

    Whoever reads it may see an old or a mixed entry, which is another actor then; it only decides what is read, not what is right.
    """

    _slot = struct.Struct("=qq")

    def __init__(self, path: Path, processes: int) -> None:
        with path.open("ab") as file:
            file.truncate(self._slot.size * processes)  # all do so: whoever comes first, the file has its size before it is mapped
        with path.open("rb+") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._processes = processes

    def put(self, process: int, actor: str) -> None:
        generation, _, index = actor[1:].partition("-")
        # The hot ones count from 1,000,000, so that two numbers say it all.
        self._slot.pack_into(self._memory, process * self._slot.size, int(generation), int(index) + (1_000_000 if actor[0] == "h" else 0))

    def get(self, process: int) -> str | None:
        generation, index = self._slot.unpack_from(self._memory, process % self._processes * self._slot.size)
        if generation == 0:
            return None
        return f"h{generation}-{index - 1_000_000}" if index >= 1_000_000 else f"a{generation}-{index}"
