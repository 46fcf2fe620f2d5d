"""The write-ahead log on real files: crashes, torn writes, damage, disks that say no; and the database that recovers from it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from actorgrid.errors import CorruptLogError
from actorgrid.storage import keys, wal
from actorgrid.storage.database import WAL_DIRECTORY, RocksDatabase
from actorgrid.storage.wal import WriteAheadLog
from tests import wal_files

SECTOR = 512
BLOCK = 4096
SMALL = 64 * 1024  #: a segment, where many are wanted
O_DIRECT = getattr(os, "O_DIRECT", 0)
FRAME_BYTES = 24  #: of a frame, before its records
RECORD_BYTES = 4  #: of a record, before its payload

Record = tuple[int, bytes]


class _Place(NamedTuple):
    """Where a frame lies."""

    name: str
    begin: int
    end: int
    last_number: int


class _Writer:
    """A log that is written to, and what is known of it.

    :ivar records: everything that was appended
    :ivar places: of the frames
    """

    def __init__(self, log: WriteAheadLog, number: int) -> None:
        self.log = log
        self.number = number - 1
        self.records: list[Record] = []
        self.places: list[_Place] = []

    def append(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.number += 1
            self.log.append(self.number, payload)
            self.records.append((self.number, payload))

    def write(self, *payloads: bytes) -> None:
        """One frame."""
        self.append(*payloads)
        self.log.sync()
        size = FRAME_BYTES + sum(RECORD_BYTES + len(payload) for payload in payloads)
        end = self.log._offset + self.log._filled
        self.places.append(_Place(self.log._used[-1].path.name, end - (size + 7) // 8 * 8, end, self.number))

    def behind(self, number: int) -> list[Record]:
        return [record for record in self.records if record[0] > number]


@contextmanager
def _running(directory: Path, *, number: int = 1) -> Iterator[_Writer]:
    """A log that goes on with record `number`, all before it is in tables."""
    log = WriteAheadLog(directory)
    assert list(log.recover(number - 1, salvage=False)) == []
    log.begin(number)
    try:
        yield _Writer(log, number)
    finally:
        with suppress(OSError):  # of tests in which the disk fails
            log.close()


def _recovered(directory: Path, durable_number: int = 0, *, salvage: bool = False) -> list[Record]:
    log = WriteAheadLog(directory, salvage=salvage)
    try:
        return [(number, bytes(payload)) for number, payload in log.recover(durable_number, salvage=salvage)]
    finally:
        log.close()


def _crash(directory: Path, to: Path) -> Path:
    """What a crash at this moment leaves."""
    return wal_files.copied(directory, to)


def _files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.isdigit())


def _rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.config.getoption("--seed"))


def _no_prepared_file(log: WriteAheadLog) -> None:
    """Wait for the thread that makes the next file: a copy then has all files."""
    if log._preparing is not None:
        log._preparing.join()


# -- what was synced


def test_what_was_synced_is_recovered_and_what_was_only_appended_is_not(tmp_path: Path) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"one")
        writer.write(b"two", b"", b"three" * 1000)
        synced = list(writer.records)
        writer.append(b"never synced", b"nor this")
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == synced
    assert _recovered(crashed) == synced  # a look changes nothing


def test_a_log_that_is_closed_has_everything_that_was_appended(tmp_path: Path) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"synced")
        writer.append(b"appended")
    assert _recovered(tmp_path / "w") == writer.records == [(1, b"synced"), (2, b"appended")]


def test_a_sync_of_nothing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"a")
        monkeypatch.setattr(os, "pwritev", _failing(errno.EIO))
        writer.log.sync()
        monkeypatch.undo()
        writer.write(b"b")
    assert _recovered(tmp_path / "w") == [(1, b"a"), (2, b"b")]


def test_only_records_behind_those_in_tables_are_given(tmp_path: Path) -> None:
    with _running(tmp_path / "w", number=11) as writer:
        writer.write(b"a", b"b", b"", b"c")
        writer.write(b"d")
        assert writer.log.waiting_bytes == 0
    for durable_number in range(10, 16):
        assert _recovered(tmp_path / "w", durable_number) == writer.behind(durable_number)
    with pytest.raises(CorruptLogError, match="begins with record 11, where 10 was expected"):
        _recovered(tmp_path / "w", 9)


def test_payloads_of_all_sizes_come_back_as_they_were(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Around the ends of blocks, of the buffer and of a segment."""
    rng = _rng(request)
    ends = [0, BLOCK, 256 * 1024, wal.SEGMENT_BYTES - BLOCK, wal.SEGMENT_BYTES]
    sizes = [max(0, end - FRAME_BYTES - RECORD_BYTES + by) for end in ends for by in (-9, -8, -1, 0, 1, 8, rng.randrange(99))]
    with _running(tmp_path / "w") as writer:
        for size in rng.sample(sizes, len(sizes)):
            writer.write(rng.randbytes(size))
            writer.log.release(writer.number - 3)
        for _ in range(20):
            writer.write(*[rng.randbytes(rng.choice([0, 0, 1, 7, 8, 90, 5000])) for _ in range(rng.randint(1, 8))])
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    durable_number = len(sizes) - 3
    assert _recovered(crashed, durable_number) == writer.behind(durable_number)


def test_a_log_goes_on_after_each_of_many_crashes(tmp_path: Path) -> None:
    expected: list[Record] = []
    for crashes in range(6):
        log = WriteAheadLog(tmp_path / str(crashes))
        assert log.is_new == (crashes == 0)
        found = [(number, bytes(payload)) for number, payload in log.recover(0, salvage=False)]
        assert found == expected
        log.begin(len(found) + 1)
        writer = _Writer(log, len(found) + 1)
        for frame in range(crashes % 3):  # sometimes nothing is written between two crashes
            writer.write(b"%d/%d" % (crashes, frame), b"x" * 5000)
        expected += writer.records
        _no_prepared_file(log)
        _crash(tmp_path / str(crashes), tmp_path / str(crashes + 1))
        log.close()


# -- segments


def test_a_payload_larger_than_a_segment_has_a_file_that_is_not_kept(tmp_path: Path) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"a")
        writer.write(b"b" * (wal.SEGMENT_BYTES + 5))
        large = [path for path in (tmp_path / "w").iterdir() if path.stat().st_size > wal.SEGMENT_BYTES]
        assert len(large) == 1
        writer.write(b"c")
        crashed = _crash(tmp_path / "w", tmp_path / "c")
        assert _recovered(crashed) == writer.records
        assert large[0].exists()
        writer.log.release(3)
        for _ in range(3):  # it is given back when the next segment begins
            writer.write(b"d" * (wal.SEGMENT_BYTES // 2))
        assert not large[0].exists()
        _no_prepared_file(writer.log)
        assert {path.stat().st_size for path in (tmp_path / "w").iterdir()} == {wal.SEGMENT_BYTES}


def test_segments_that_are_in_tables_are_used_again(tmp_path: Path) -> None:
    payload = b"p" * 100_000
    ever: set[str] = set()
    with _running(tmp_path / "w") as writer:
        for _ in range(40 * 1024 * 1024 // len(payload)):
            writer.write(payload)
            writer.log.release(writer.number - 50)  # 5 MB
            ever.update(_files(tmp_path / "w"))
            assert len(_files(tmp_path / "w")) <= 5
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert len(ever) <= 5
    assert _recovered(crashed, writer.number - 50) == writer.behind(writer.number - 50)


def test_what_is_not_in_tables_is_kept_however_much_it_is(tmp_path: Path) -> None:
    with _running(tmp_path / "w") as writer:
        for _ in range(10):
            writer.write(os.urandom(1_500_000))
        assert _recovered(_crash(tmp_path / "w", tmp_path / "c")) == writer.records


@pytest.mark.pure
def test_no_more_free_segments_are_kept_than_the_next_tables_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    with _running(tmp_path / "w") as writer:
        for _ in range(80):
            writer.write(b"x" * 40_000)
        assert len(_files(tmp_path / "w")) >= 80
        writer.log.release(writer.number)
        writer.write(b"x" * 40_000)
        _no_prepared_file(writer.log)
        assert len(_files(tmp_path / "w")) <= wal.FREE_MAX + 3


@pytest.mark.pure
def test_nothing_of_an_earlier_use_of_a_segment_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    released = 0
    with _running(tmp_path / "w") as writer:
        for frame in range(600):
            writer.write(*[rng.randbytes(rng.randrange(3000)) for _ in range(rng.randint(1, 4))])
            if rng.random() < 0.2:
                released = rng.randint(released, writer.number)
                writer.log.release(released)
            if frame % 10 == 0:
                _no_prepared_file(writer.log)
                assert _recovered(_crash(tmp_path / "w", tmp_path / "c"), released) == writer.behind(released)
        reuses = sum(before.name != after.name for before, after in zip(writer.places, writer.places[1:], strict=False))
        assert reuses > 2 * len(_files(tmp_path / "w"))


@pytest.mark.pure
def test_recovery_goes_on_with_segments_of_before_the_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Crash after crash, while segments are reused: free ones have a header, and are not told from used ones after a start."""
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    records: list[Record] = []
    released = 0
    for crashes in range(25):
        directory = tmp_path / str(crashes)
        log = WriteAheadLog(directory)
        found = [(number, bytes(payload)) for number, payload in log.recover(released, salvage=False)]
        assert found == records[released:]
        log.release(released)
        log.begin(len(records) + 1)
        writer = _Writer(log, len(records) + 1)
        for _ in range(rng.randrange(40)):
            writer.write(rng.randbytes(rng.randrange(9000)))
            released = rng.randint(released, max(released, writer.number - 10))
            log.release(released)
        records += writer.records
        _no_prepared_file(log)
        assert len(_files(directory)) < 25
        _crash(directory, tmp_path / str(crashes + 1))
        log.close()


# -- damage


class _Damaged(NamedTuple):
    """A log that crashed: what is behind `released` is expected, and where it lies."""

    directory: Path
    released: int
    records: list[Record]
    places: list[_Place]


def _over_three_segments(tmp_path: Path, rng: random.Random) -> _Damaged:
    """Small ones, which were used before."""
    with _running(tmp_path / "w") as writer:
        for _ in range(80):
            writer.write(rng.randbytes(rng.randrange(4000)))
        released = writer.number
        writer.log.release(released)
        since = len(writer.places)
        while len({place.name for place in writer.places[since:]}) < 4:
            writer.write(*[rng.randbytes(rng.randrange(1500)) for _ in range(rng.randint(1, 3))])
        for _ in range(rng.randrange(20)):
            writer.write(rng.randbytes(rng.randrange(3000)))
        _no_prepared_file(writer.log)
        crashed = _crash(tmp_path / "w", tmp_path / "crashed")
    return _Damaged(crashed, released, writer.behind(released), [place for place in writer.places if place.last_number > released])


_Damage = Callable[[random.Random, Path, _Place], tuple[int, int]]


def _flip(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.randrange(place.begin, place.end)
    _overwrite(path, at, bytes([path.read_bytes()[at] ^ 1 << rng.randrange(8)]))
    return at, at + 1


def _zero_sector(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.randrange(place.begin, place.end) // SECTOR * SECTOR
    _overwrite(path, at, bytes(SECTOR))
    return at, at + SECTOR


def _garbage_sector(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.randrange(place.begin, place.end) // SECTOR * SECTOR
    _overwrite(path, at, rng.randbytes(SECTOR))
    return at, at + SECTOR


def _damage_header(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.choice([0, 2048])
    _overwrite(path, at, rng.choice([bytes(SECTOR), rng.randbytes(SECTOR)]))
    return at, at + SECTOR


def _cut(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.randrange(place.begin, place.end)
    os.truncate(path, at)
    return at, 1 << 60


def _cut_in_the_header(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    at = rng.choice([0, rng.randrange(60), rng.randrange(2048), rng.randrange(BLOCK)])
    os.truncate(path, at)
    return at, 1 << 60


def _delete_before_the_last(rng: random.Random, path: Path, place: _Place) -> tuple[int, int]:
    path.unlink()
    return 0, 1 << 60


def _overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


_DAMAGES = [_flip, _zero_sector, _garbage_sector, _damage_header, _cut, _cut_in_the_header, _delete_before_the_last]


def _place_to_damage(rng: random.Random, log: _Damaged, damage: _Damage) -> _Place:
    places = log.places
    if damage is _delete_before_the_last:
        places = [place for place in places if place.name != places[-1].name]
    return places[-1] if rng.random() < 0.1 and damage is not _delete_before_the_last else rng.choice(places)


@pytest.mark.pure
@pytest.mark.parametrize("damage", _DAMAGES)
def test_no_damage_goes_unnoticed_but_in_what_was_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, damage: _Damage
) -> None:
    """A sector may have the end of one frame and the whole of the next: of what is missing everything was hit itself."""
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    log = _over_three_segments(tmp_path, rng)
    refused = 0
    for _ in range(60):
        copy = _crash(log.directory, tmp_path / "damaged")
        place = _place_to_damage(rng, log, damage)
        begin, end = damage(rng, copy / place.name, place)
        try:
            found = _recovered(copy, log.released)
        except CorruptLogError:
            refused += 1
            continue
        assert found == log.records[: len(found)]
        missing = [lost for lost in log.places if lost.last_number > log.released + len(found)]
        hit = [lost for lost in log.places if lost.name == place.name and lost.begin < end and lost.end > begin]
        assert missing == hit[len(hit) - len(missing) :], f"bytes {begin}..{end} of {place} were damaged"
        assert len(missing) <= 1 or damage in (_zero_sector, _garbage_sector), f"bytes {begin}..{end} of {place} were damaged"
    if damage is not _damage_header:  # it has another copy
        assert refused > 30


@pytest.mark.pure
@pytest.mark.parametrize("damage", _DAMAGES)
def test_salvage_takes_what_is_before_the_damage_and_what_is_behind_it_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, damage: _Damage
) -> None:
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    log = _over_three_segments(tmp_path, rng)
    lost = 0
    for _ in range(25):
        copy = _crash(log.directory, tmp_path / "damaged")
        place = _place_to_damage(rng, log, damage)
        damage(rng, copy / place.name, place)
        again = WriteAheadLog(copy, salvage=True)
        found = [(number, bytes(payload)) for number, payload in again.recover(log.released, salvage=True)]
        assert found == log.records[: len(found)]
        lost += len(found) < len(log.records)
        before = [other for other in log.places if other.last_number < place.last_number and other.name != place.name]
        if before and damage is not _delete_before_the_last:
            assert len(found) >= before[-1].last_number - log.released  # segments before the damage are there in full
        writer = _Writer(again, log.released + len(found) + 1)
        again.begin(writer.number + 1)
        for _ in range(rng.randrange(1, 6)):
            writer.write(*[b"new" + rng.randbytes(rng.randrange(20_000)) for _ in range(rng.randint(1, 3))])
        _no_prepared_file(again)
        crashed = _crash(copy, tmp_path / "crashed again")
        again.close()
        try:
            assert _recovered(crashed, log.released) == found + writer.records
        except CorruptLogError as error:
            pytest.fail(f"after salvage and {len(writer.places)} syncs: {error}")
    assert lost > 12 or damage is _damage_header


@pytest.mark.pure
def test_without_its_last_segment_a_log_is_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Nothing in the files before it says that there was one: peers do, by the position that they remember."""
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    log = _over_three_segments(tmp_path, _rng(request))
    whole = _recovered(log.directory, log.released)
    (log.directory / log.places[-1].name).unlink()
    left = _recovered(log.directory, log.released)
    assert len(left) < len(whole)
    assert left == whole[: len(left)]


def test_a_log_without_files_is_new(tmp_path: Path) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"a")
    for path in (tmp_path / "w").iterdir():
        path.unlink()
    log = WriteAheadLog(tmp_path / "w")
    assert log.is_new
    assert list(log.recover(0, salvage=False)) == []
    log.close()


# -- torn writes


def _mixed(rng: random.Random, before: Path, after: Path, to: Path, *, cut: bool = False) -> Path:
    """Of each file that a write changed: sectors of before and of after, or after up to some byte and before from there on."""
    _crash(after, to)
    for path in sorted(before.iterdir()):
        old, new = path.read_bytes(), (after / path.name).read_bytes()
        if old == new:
            continue
        changed = [at for at in range(0, len(new), SECTOR) if old[at : at + SECTOR] != new[at : at + SECTOR]]
        data = bytearray(new)
        if cut:
            at = rng.choice(changed) + rng.randrange(SECTOR + 1) if rng.random() < 0.5 else changed[0] + rng.randrange(100)
            data[at:] = old[at:]
        else:
            chance = rng.choice([0.02, 0.5, 0.98])
            for at in changed:
                if rng.random() < chance:
                    data[at : at + SECTOR] = old[at : at + SECTOR]
        (to / path.name).write_bytes(data)
    return to


@pytest.mark.pure
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("size", [10, 3000, 40_000])
def test_a_torn_write_is_there_or_not_and_what_was_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, size: int, cut: bool
) -> None:
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    with _running(tmp_path / "w") as writer:
        for _ in range(60):  # so that it is a used segment again
            writer.write(rng.randbytes(rng.randrange(5000)))
            writer.log.release(writer.number - 5)
        while writer.log._offset > SMALL // 4:
            writer.write(rng.randbytes(rng.randrange(5000)))
            writer.log.release(writer.number - 5)
        released = writer.number - 5
        _no_prepared_file(writer.log)
        before = _crash(tmp_path / "w", tmp_path / "before")
        count = writer.number
        writer.write(rng.randbytes(size), rng.randbytes(size // 10))
        after = _crash(tmp_path / "w", tmp_path / "after")
    assert _files(before) == _files(after)
    expected = writer.behind(released)
    seen = set()
    for _ in range(80):
        found = _recovered(_mixed(rng, before, after, tmp_path / "torn", cut=cut), released)
        assert found in (expected, [record for record in expected if record[0] <= count])
        seen.add(len(found))
    assert min(seen) == count - released
    # And it goes on: what is left of the torn frame is no damage later on.
    torn = WriteAheadLog(_mixed(rng, before, after, tmp_path / "torn", cut=cut))
    found = [(number, bytes(payload)) for number, payload in torn.recover(released, salvage=False)]
    again = _Writer(torn, released + len(found) + 1)
    torn.begin(again.number + 1)
    again.write(b"again")
    torn.close()
    assert _recovered(tmp_path / "torn", released) == found + again.records


@pytest.mark.pure
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("is_reused", [False, True])
def test_a_torn_header_of_a_new_segment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, is_reused: bool, cut: bool
) -> None:
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
    rng = _rng(request)
    write = os.pwritev
    headers: list[tuple[Path, Path, int]] = []  # before, after, the last number that is synced

    with _running(tmp_path / "w") as writer:

        def copying(file: int, buffers: Any, offset: int) -> int:
            if offset:
                return write(file, buffers, offset)
            index = len(headers)
            before = _crash(tmp_path / "w", tmp_path / f"before{index}")
            written = write(file, buffers, offset)
            headers.append((before, _crash(tmp_path / "w", tmp_path / f"after{index}"), writer.number - 1))
            return written

        released: list[int] = []
        monkeypatch.setattr(os, "pwritev", copying)
        while len(headers) < 12:
            writer.write(rng.randbytes(rng.randrange(20_000)))
            if is_reused:
                writer.log.release(writer.number - 2)
            while len(released) < len(headers):
                released.append(max(0, writer.number - 3) if is_reused else 0)  # at the time of the sync that began the segment
        monkeypatch.undo()
        monkeypatch.setattr(wal, "SEGMENT_BYTES", SMALL)
        for (before, after, synced), durable_number in list(zip(headers, released, strict=True))[-6:]:
            expected = [record for record in writer.records if durable_number < record[0] <= synced]
            assert expected
            for _ in range(30):
                torn = _mixed(rng, before, after, tmp_path / "torn", cut=cut)
                assert _recovered(torn, durable_number) == expected
            log = WriteAheadLog(torn)
            assert len(list(log.recover(durable_number, salvage=False))) == len(expected)
            log.release(durable_number)
            log.begin(synced + 1)
            again = _Writer(log, synced + 1)
            again.write(b"again")
            log.close()
            assert _recovered(torn, durable_number) == expected + again.records


# -- what the system says


def _failing(number: int, *, times: int = 1 << 30) -> Callable[..., int]:
    real = os.pwritev
    left = [times]

    def fails(*arguments: Any) -> int:
        if left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    return fails


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL])
def test_a_write_that_fails_comes_out_of_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with _running(tmp_path / "w") as writer:
        writer.write(b"a")
        writer.append(b"b")
        monkeypatch.setattr(os, "pwritev", _failing(number))
        with pytest.raises(OSError) as raised:
            writer.log.sync()
        assert raised.value.errno == number
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == [(1, b"a")]


def test_who_waits_for_a_sync_that_fails_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write of one sync has the records of both: for the other one there is nothing left to write, and nothing is durable."""
    with _running(tmp_path / "w") as writer:
        writer.append(b"a")
        is_writing, may_fail = threading.Event(), threading.Event()

        def fails(*arguments: Any) -> int:
            is_writing.set()
            assert may_fail.wait(30)
            raise OSError(errno.EIO, "the disk is gone")

        monkeypatch.setattr(os, "pwritev", fails)
        told: list[OSError | None] = []

        def sync() -> None:
            try:
                writer.log.sync()
            except OSError as error:
                told.append(error)
            else:
                told.append(None)

        first, second = threading.Thread(target=sync), threading.Thread(target=sync)
        first.start()
        assert is_writing.wait(30)
        second.start()
        time.sleep(0.05)
        may_fail.set()
        first.join()
        second.join()
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == []
    assert None not in told, "a sync of a record that is not there has returned"


def test_a_log_that_failed_once_and_was_closed_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing syncs what was appended meanwhile, which continues nothing where the record before it was not written."""
    with _running(tmp_path / "w") as writer:
        writer.write(b"a")
        writer.append(b"b")
        monkeypatch.setattr(os, "pwritev", _failing(errno.ENOSPC, times=1))
        with pytest.raises(OSError, match="No space"):
            writer.log.sync()
        writer.append(b"c")
    found = _recovered(tmp_path / "w")
    assert found == writer.records[: len(found)]
    assert found[0] == (1, b"a")


def _with_room_for(monkeypatch: pytest.MonkeyPatch, chunks: list[int]) -> None:
    """Files are filled as long as `chunks` has a number above zero."""
    real = os.write

    def write(file: int, data: Any, /) -> int:
        if len(data) < 1 << 20:
            return real(file, data)
        if chunks[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        chunks[0] -= 1
        return real(file, data)

    monkeypatch.setattr(os, "write", write)


def test_of_a_file_that_cannot_be_made_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_room_for(monkeypatch, [2])
    log = WriteAheadLog(tmp_path / "w")
    with pytest.raises(OSError, match="No space"):
        log.begin(1)
    log.close()
    assert _files(tmp_path / "w") == []


def test_a_full_disk_is_an_error_only_when_the_next_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [wal.SEGMENT_BYTES // (1 << 20) + 2]  # the first, and a part of the next
    _with_room_for(monkeypatch, chunks)
    with _running(tmp_path / "w") as writer:
        for _ in range(3):
            writer.write(b"x" * (1 << 20))
        _no_prepared_file(writer.log)
        assert len(_files(tmp_path / "w")) == 1
        writer.append(b"y" * (1 << 20))
        with pytest.raises(OSError, match="No space"):
            writer.log.sync()
        assert len(_files(tmp_path / "w")) == 1
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == writer.records[:3]


def test_a_disk_with_room_again_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [wal.SEGMENT_BYTES // (1 << 20) + 2]
    _with_room_for(monkeypatch, chunks)
    with _running(tmp_path / "w") as writer:
        for _ in range(3):
            writer.write(b"x" * (1 << 20))
        _no_prepared_file(writer.log)
        chunks[0] = 1000
        for _ in range(3):
            writer.write(b"y" * (1 << 20))
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == writer.records


@pytest.mark.pure
def test_a_directory_that_cannot_be_synced_is_no_error_before_its_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no thread dies of it."""
    log = WriteAheadLog(tmp_path / "w")
    made: list[Path] = []
    died: list[object] = []

    def sync(directory: Path) -> None:
        made.append(directory)
        if len(made) > 1:
            raise OSError(errno.EIO, f"cannot sync {directory}")

    monkeypatch.setattr(wal, "sync_directory", sync)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: died.append(arguments.exc_value))
    log.begin(1)
    writer = _Writer(log, 1)
    writer.write(b"a")
    _no_prepared_file(log)
    assert len(made) == 2
    writer.write(b"b")
    log.close()
    monkeypatch.undo()
    assert _recovered(tmp_path / "w") == writer.records
    assert died == []


@pytest.mark.skipif(not O_DIRECT, reason="the system has no direct writes")
@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_without_direct_writes_is_used_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    real_open, real_write = os.open, os.pwritev
    refused = []

    def open_(path: Any, flags: int, mode: int = 0o777) -> int:
        if where == "open" and flags & O_DIRECT:
            refused.append(path)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags, mode)

    def write(file: int, buffers: Any, offset: int) -> int:
        if where == "write" and fcntl.fcntl(file, fcntl.F_GETFL) & O_DIRECT:
            refused.append(file)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_write(file, buffers, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwritev", write)
    with _running(tmp_path / "w") as writer:
        for size in (10, 5000, 300_000, 3_000_000, 3_000_000):
            writer.write(b"x" * size)
        crashed = _crash(tmp_path / "w", tmp_path / "c")
    assert _recovered(crashed) == writer.records
    assert len(refused) == 1  # and not asked again


# -- more than one thread


def test_threads_that_sync_while_another_appends_lose_and_repeat_nothing(tmp_path: Path) -> None:
    log = WriteAheadLog(tmp_path / "w")
    log.begin(1)
    appended = [0]
    synced: list[int] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def append() -> None:
        while not stop.is_set() and appended[0] < 300_000:
            number = appended[0] + 1
            log.append(number, b"%d" % number * 6)
            appended[0] = number

    def sync() -> None:
        try:
            while not stop.is_set():
                before = appended[0]
                log.sync()
                synced.append(before)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for work in (append, sync, sync)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    _no_prepared_file(log)
    crashed = _crash(tmp_path / "w", tmp_path / "c")
    log.close()
    found = _recovered(crashed)
    assert found == [(number, b"%d" % number * 6) for number in range(1, len(found) + 1)]
    assert len(found) >= max(synced)
    assert len(synced) > 10
    assert len(found) > 1000


# -- the database


class _Model:
    """Both families as they ought to be."""

    def __init__(self) -> None:
        self.state: dict[bytes, bytes] = {}
        self.log: dict[bytes, bytes] = {}

    def write(self, database: RocksDatabase, rng: random.Random) -> None:
        """A batch of random changes, to both or, as most are, to the log alone; with marks, as all have."""
        batch = database.new_batch()
        families = [(self.log, database.log_handle)] * 3 + [(self.state, None)] * rng.choice([0, 3])
        for _ in range(rng.randint(1, 6)):
            family, handle = rng.choice(families)
            key, kind = b"k%03d" % rng.randrange(200), rng.random()
            if kind < 0.7:
                family[key] = rng.randbytes(rng.randrange(200))
                batch.put(key, family[key], handle)
            elif kind < 0.85:
                family.pop(key, None)
                batch.delete(key, handle)
            else:
                stop = b"k%03d" % rng.randrange(200)
                key, stop = min(key, stop), max(key, stop)
                for gone in [other for other in family if key <= other < stop]:
                    del family[gone]
                batch.delete_range(key, stop, handle)
        for family, handle in ((self.state, None), (self.log, database.log_handle)):
            key = rng.choice([b"mark-1", b"mark-2"])
            family[key] = rng.randbytes(8)
            batch.put_mark(key, family[key], handle)
        database.write(batch)

    def check(self, database: RocksDatabase) -> None:
        """Of a database that was just opened: marks are read by the next start alone."""
        assert _pairs(database.cursor()) == self.state
        self.check_log(database)

    def check_log(self, database: RocksDatabase) -> None:
        assert _pairs(database.log_cursor()) == self.log


def _pairs(cursor: Any) -> dict[bytes, bytes]:
    found = {}
    cursor.seek(b"k")
    while cursor.valid():
        if cursor.key() != keys.BATCH_KEY:
            found[cursor.key()] = cursor.value()
        cursor.next()
    cursor.status()
    return found


@contextmanager
def _database(path: Path, *, salvage: bool = False) -> Iterator[RocksDatabase]:
    database = RocksDatabase(path, salvage=salvage)
    try:
        yield database
    finally:
        database.close()


def _numbers(database: RocksDatabase) -> tuple[bytes | None, bytes | None]:
    return database.get(keys.BATCH_KEY), database.get_log(keys.BATCH_KEY)


@pytest.mark.parametrize("ahead", [("state_family",), ("log_family",), ("log_family", "state_family"), ()])
def test_each_family_gets_from_the_log_what_its_tables_lack(tmp_path: Path, request: pytest.FixtureRequest, ahead: tuple[str, ...]) -> None:
    rng, model = _rng(request), _Model()
    with _database(tmp_path / "d") as database:
        for step in range(60):
            model.write(database, rng)
            if step == 20:
                for name in ahead:
                    getattr(database, name).flush()
            if step == 40 and ahead:
                getattr(database, ahead[0]).flush()
        database.sync_now()
        _no_prepared_file(database._wal)
        _crash(tmp_path / "d", tmp_path / "c")
        unsynced = database.new_batch()
        unsynced.put(b"k-not-synced", b"")
        database.write(unsynced)
    with _database(tmp_path / "c") as database:
        model.check(database)
        assert _numbers(database) == ((60).to_bytes(8, "big"),) * 2
        model.write(database, rng)  # and it goes on from there
        database.sync_now()
        _no_prepared_file(database._wal)
        _crash(tmp_path / "c", tmp_path / "c2")
    for path in (tmp_path / "c", tmp_path / "c2"):  # closed, and crashed
        with _database(path) as database:
            model.check(database)


def test_a_database_has_what_was_synced_after_each_of_many_crashes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng, model = _rng(request), _Model()
    for crashes in range(8):
        with _database(tmp_path / str(crashes)) as database:
            for family in (database.state_family, database.log_family):
                family.set_options({"disable_auto_compactions": "true"})  # it deletes files while they are copied
            model.check(database)
            for _ in range(rng.randrange(30)):
                model.write(database, rng)
                if rng.random() < 0.1:
                    model.check_log(database)
                if rng.random() < 0.1:
                    rng.choice([database.state_family, database.log_family]).flush()
            database.sync_now()
            _no_prepared_file(database._wal)
            _crash(tmp_path / str(crashes), tmp_path / str(crashes + 1))


@pytest.mark.parametrize("family", ["state_family", "log_family"])
def test_one_family_whose_tables_are_ahead_of_the_log_is_refused(tmp_path: Path, request: pytest.FixtureRequest, family: str) -> None:
    rng, model = _rng(request), _Model()
    with _database(tmp_path / "d") as database:
        for _ in range(10):
            model.write(database, rng)
        database.sync_now()
        model.write(database, rng)
        database._buffer_late()
        getattr(database, family).flush()  # before its sync
        _no_prepared_file(database._wal)
        _crash(tmp_path / "d", tmp_path / "c")
    with pytest.raises(CorruptLogError, match="one family's tables"):
        RocksDatabase(tmp_path / "c", salvage=False)


@pytest.mark.parametrize("is_back", [False, True])
def test_after_a_sync_that_failed_both_families_are_at_the_same_batch(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """Where the disk is back when the database is closed, what was written meanwhile is synced by that, without what failed."""
    rng, model = _rng(request), _Model()
    database = RocksDatabase(tmp_path / "d", salvage=False)
    for _ in range(10):
        model.write(database, rng)
    database.sync_now()
    model.write(database, rng)
    monkeypatch.setattr(os, "pwritev", _failing(errno.EIO, times=1 if is_back else 1 << 30))
    with pytest.raises(OSError):
        database.sync_now()
    model.write(database, rng)
    database.close()
    monkeypatch.undo()
    with _database(tmp_path / "d") as database:
        state, log = _numbers(database)
        assert state == log
        assert state is not None
        assert int.from_bytes(state, "big") in (10, 11, 12)
        if int.from_bytes(state, "big") == 12:
            model.check(database)


def test_a_database_whose_write_ahead_log_is_gone_is_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng, model = _rng(request), _Model()
    with _database(tmp_path / "d") as database:
        for _ in range(10):
            model.write(database, rng)
        database.state_family.flush()
    shutil.rmtree(tmp_path / "d" / WAL_DIRECTORY)
    shutil.copytree(tmp_path / "d", tmp_path / "c")
    with pytest.raises(CorruptLogError, match="is gone"):
        RocksDatabase(tmp_path / "d", salvage=False)
    with _database(tmp_path / "c", salvage=True):
        pass
    with _database(tmp_path / "c"):  # salvaged once, it is a database like any other
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="as many bytes as this are quick on a build machine only")
def test_tables_free_the_segments_of_what_they_have(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    value = _rng(request).randbytes(100_000)
    batches = 2000
    most = 0
    ever: set[str] = set()
    with _database(tmp_path / "d") as database:
        for number in range(batches):
            batch = database.new_batch()
            batch.put(b"k%d" % (number % 7), value)
            batch.put(b"k%d" % number, b"small", database.log_handle)
            database.write(batch)
            if number % 8 == 7:
                database.sync_now()
                found = _files(tmp_path / "d" / WAL_DIRECTORY)
                ever.update(found)
                most = max(most, len(found))
        assert database._wal._released_number > batches // 3
        # 200 MB are 48 segments without any reuse.
        assert len(ever) < 45
        assert most < 45
        _no_prepared_file(database._wal)
        _crash(tmp_path / "d", tmp_path / "c")
    with _database(tmp_path / "c") as database:
        assert _numbers(database) == (batches.to_bytes(8, "big"),) * 2
        assert _pairs(database.cursor()) == {b"k%d" % number: value for number in range(7)}
        assert len(_pairs(database.log_cursor())) == batches


def test_much_is_in_the_log_before_anybody_syncs_it(tmp_path: Path) -> None:
    with _database(tmp_path / "d") as database:
        for number in range(30):
            batch = database.new_batch()
            batch.put(b"s%d" % number, os.urandom(100_000))
            database.write(batch)
        deadline_s = time.monotonic() + 10
        found: list[Record] = []
        while len(found) < 10:
            assert time.monotonic() < deadline_s
            found = _recovered(_crash(tmp_path / "d", tmp_path / "crashed") / WAL_DIRECTORY)


@pytest.mark.parametrize("closes", [True, False])
def test_a_process_that_ends_after_a_failed_sync_leaves_both_families_at_one_batch(tmp_path: Path, closes: bool) -> None:
    script = f"""
import os, sys
from pathlib import Path
from actorgrid.storage.database import RocksDatabase
database = RocksDatabase(Path(sys.argv[1]), salvage=False)
def put(number):
    batch = database.new_batch()
    batch.put(b"k", b"%d" % number)
    batch.put(b"k", b"%d" % number, database.log_handle)
    database.write(batch)
for number in range(1, 6):
    put(number)
database.sync_now()
def fails(*arguments): raise OSError(5, "Input/output error")
os.pwritev = fails
put(6)
kept = database.get  # somebody still has hold of it
try:
    database.sync_now()
except OSError:
    if {closes}:
        database.close()
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "d")], timeout=60, check=False)
    assert done.returncode == 3
    with _database(tmp_path / "d") as database:
        assert database.get(b"k") == database.get_log(b"k") == b"6"
