"""The disks of the simulated hosts: what was written, what of it is durable, and what a crash leaves.

A host has one write-ahead log for all its replicas. A write is seen at once, and is durable once a sync has covered it; a crash keeps any
prefix of what was not synced, since the order of the log is kept and the operating system may have written some of it.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from typing import NamedTuple

from actorgrid.replication.configuration import Configuration


class Record(NamedTuple):
    """What one append of a primary holds. The values are unique in a run, so that logs can be compared."""

    epoch: int
    first_lsn: int
    last_lsn: int
    values: tuple[int, ...]
    configuration: Configuration | None = None


class State(NamedTuple):
    """Everything applied up to `lsn`, as its digest, with the configuration that counts there."""

    lsn: int
    epoch: int
    digest: int
    configuration: Configuration
    configuration_lsn: int


# -- writes


class Created(NamedTuple):
    state: State
    epoch: int


class SavedEpoch(NamedTuple):
    epoch: int
    voted_for: str


class Truncated(NamedTuple):
    from_lsn: int


class Appended(NamedTuple):
    records: tuple[Record, ...]


class Applied(NamedTuple):
    lsn: int


class LogStart(NamedTuple):
    start_lsn: int


class Installed(NamedTuple):
    state: State


class Dropped(NamedTuple):
    pass


Write = Created | SavedEpoch | Truncated | Appended | Applied | LogStart | Installed | Dropped


class ReplicaDisk:
    """One replica as a disk holds it."""

    def __init__(self, state: State, epoch: int) -> None:
        self.epoch = epoch
        self.voted_for = ""
        self._begin_with(state)

    def _begin_with(self, state: State) -> None:
        self.state = state
        self.records: list[Record] = []
        self.start_lsn = state.lsn + 1
        self.base_epoch = state.epoch  # of the position before the log's first

    def write(self, write: Write) -> None:
        match write:
            case SavedEpoch(epoch, voted_for):
                assert epoch >= self.epoch, f"epoch {epoch} is saved over {self.epoch}"
                self.epoch, self.voted_for = epoch, voted_for
            case Truncated(from_lsn):
                while self.records and self.records[-1].last_lsn >= from_lsn:
                    assert self.records[-1].first_lsn >= from_lsn, f"{from_lsn} is inside of {self.records[-1]}"
                    self.records.pop()
            case Appended(records):
                for record in records:
                    assert record.first_lsn == self.last_lsn + 1, f"{record} does not follow {self.last_lsn}"
                    self.records.append(record)
            case Applied(lsn):
                self._apply(lsn)
            case LogStart(start_lsn):
                assert self.start_lsn <= start_lsn <= self.state.lsn + 1
                self.base_epoch = self.epoch_at(start_lsn - 1)
                self.start_lsn = start_lsn
                del self.records[: bisect_left(self.records, start_lsn, key=lambda record: record.last_lsn)]
            case Installed(state):
                assert state.lsn >= self.state.lsn
                self._begin_with(state)
            case _:
                raise AssertionError(write)

    def _apply(self, lsn: int) -> None:
        _, epoch, digest, configuration, configuration_lsn = self.state
        for record in self.records_after(self.state.lsn):
            if record.last_lsn > lsn:
                break
            epoch = record.epoch
            if record.configuration is not None:
                configuration, configuration_lsn = record.configuration, record.last_lsn
            for value in record.values:
                digest = next_digest(digest, record.epoch, value)
            self.state = State(record.last_lsn, epoch, digest, configuration, configuration_lsn)
        assert self.state.lsn == lsn, f"{lsn} is to be applied, and {self.state.lsn} can be"

    # -- reading

    @property
    def last_lsn(self) -> int:
        return self.records[-1].last_lsn if self.records else self.start_lsn - 1

    def records_after(self, lsn: int) -> list[Record]:
        """The records that end behind `lsn`."""
        return self.records[bisect_left(self.records, lsn + 1, key=lambda record: record.last_lsn) :]

    def record_at(self, lsn: int) -> Record:
        return self.records[bisect_left(self.records, lsn, key=lambda record: record.last_lsn)]

    def epoch_at(self, lsn: int) -> int:
        return self.base_epoch if lsn == self.start_lsn - 1 else self.record_at(lsn).epoch

    def entry_at(self, lsn: int) -> tuple[int, int]:
        """(epoch, value)."""
        record = self.record_at(lsn)
        return record.epoch, record.values[lsn - record.first_lsn]

    def has(self, lsn: int, epoch: int) -> bool:
        """Whether the entry of `epoch` at `lsn` is here, in the log or in the state."""
        if lsn <= self.state.lsn:
            return True  # the state is compared by its digest
        return lsn <= self.last_lsn and self.epoch_at(lsn) == epoch

    def epochs(self) -> list[tuple[int, int]]:
        """(first lsn, epoch) of each run of equal epochs, with the position before the log's first."""
        runs = [(self.start_lsn - 1, self.base_epoch)] if self.start_lsn > 1 else []
        for record in self.records:
            if not runs or runs[-1][1] != record.epoch:
                runs.append((record.first_lsn, record.epoch))
        return runs

    def configurations(self) -> list[tuple[int, Configuration]]:
        """The newest one that is applied, and those behind it: as the real store tells them."""
        behind = [(r.last_lsn, r.configuration) for r in self.records_after(self.state.lsn) if r.configuration is not None]
        return [(self.state.configuration_lsn, self.state.configuration), *behind]


def next_digest(digest: int, epoch: int, value: int) -> int:
    return hash((digest, epoch, value))


Key = tuple[int, int]  # partition, replica incarnation


class HostDisk:
    """All replicas of one host.

    :ivar view: what the process sees; `durable`: what has been synced
    :ivar unsynced: the writes between the two, oldest first, with their numbers
    :ivar born: the lowest replica incarnation that may be built here, by partition: what was here before an earlier disk was lost is less
    """

    def __init__(self) -> None:
        self.view: dict[Key, ReplicaDisk] = {}
        self.durable: dict[Key, ReplicaDisk] = {}
        self.unsynced: list[tuple[Key, Write, int]] = []
        self.born: dict[int, int] = {}
        self.is_new = True

    def write(self, key: Key, write: Write, write_no: int = 0) -> None:
        self._write(self.view, key, write)
        self.unsynced.append((key, write, write_no))

    def _write(self, to: dict[Key, ReplicaDisk], key: Key, write: Write) -> None:
        match write:
            case Created(state, epoch):
                to[key] = ReplicaDisk(state, epoch)
                if to is self.durable:
                    self.is_new = False
            case Dropped():
                to.pop(key, None)
            case _:
                to[key].write(write)

    def sync(self, count: int) -> dict[Key, int]:
        """The oldest `count` writes are durable now; the highest write number of each replica among them."""
        done: dict[Key, int] = {}
        for key, write, write_no in self.unsynced[:count]:
            self._write(self.durable, key, write)
            if write_no:
                done[key] = write_no
        del self.unsynced[:count]
        return done

    def crash(self, kept: int) -> int:
        """The process ends, and of what was not synced the oldest `kept` writes survive; how many did not."""
        lost = len(self.unsynced) - kept
        self.sync(kept)
        self.unsynced.clear()
        self.view = {key: copy.copy(disk) for key, disk in self.durable.items()}
        for disk in self.view.values():
            disk.records = list(disk.records)
        return lost

    def lose(self) -> None:
        """Everything is gone. Which replicas were here is known all the same: the peers remember (I6)."""
        for partition in {partition for partition, _ in (*self.view, *self.durable)} | set(self.born):
            self.born[partition] = self.next_incarnation(partition)
        self.view.clear()
        self.durable.clear()
        self.unsynced.clear()
        self.is_new = True

    def next_incarnation(self, partition: int) -> int:
        """The lowest replica incarnation that may be built here."""
        here = [incarnation for other, incarnation in (*self.view, *self.durable) if other == partition]
        return max(self.born.get(partition, 1), *(incarnation + 1 for incarnation in here), 1)
