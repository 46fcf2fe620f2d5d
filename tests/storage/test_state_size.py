"""The size that a replica says it has is about the one that it has, whatever was written, and after a restart and a copy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from storage_harness import EPOCH, POINTER, OpenReplica, random_log, recovered, replica_at

from actorgrid.storage import keys
from actorgrid.storage.copy import CopyTarget
from actorgrid.storage.size import LARGE_BYTES, LARGE_MAX, STORED_WITHIN_BYTES, StateSize

PREFIX = keys.replica_prefix(1, 1)


def true_size(replica: OpenReplica) -> int:
    return sum(len(PREFIX) + len(key) + len(value) for key, value in replica.state())


class Sized:
    """A replica whose state is written past its log, as `ReplicaStore.apply` writes it."""

    def __init__(self, replica: OpenReplica) -> None:
        self.replica = replica
        self.size: StateSize = replica.durable.size

    def write(self, changes: dict[int, bytes | None], kind: bytes = b"") -> None:
        named = {PREFIX + keys.state_key(f"A\0{number}") + kind: value for number, value in changes.items()}
        batch = self.replica.store.batch()
        self.size.apply(batch, named)
        for key, value in named.items():
            batch.delete(key) if value is None else batch.put(key, value)
        self.replica.store.write(batch)

    def error(self) -> float:
        assert self.size.total is not None
        return self.size.total / max(1, true_size(self.replica)) - 1


def test_many_small_values_are_known_within_a_quarter_also_when_they_are_overwritten_and_deleted(tmp_path: Path) -> None:
    rng = random.Random(5)
    with replica_at(tmp_path) as replica:
        sized = Sized(replica)
        for start in range(0, 20_000, 500):
            sized.write({number: rng.randbytes(rng.randrange(400)) for number in range(start, start + 500)})
        assert abs(sized.error()) < 0.25
        for _ in range(200):  # a hundred changes of a few hot ones
            sized.write({number: rng.randbytes(rng.randrange(400)) for number in range(100)})
        assert abs(sized.error()) < 0.25
        for start in range(5_000, 20_000, 500):
            sized.write(dict.fromkeys(range(start, start + 500)))
        assert abs(sized.error()) < 0.4  # of a quarter as many


def test_large_values_are_counted_exactly_when_they_come_and_when_they_go(tmp_path: Path) -> None:
    with replica_at(tmp_path) as replica:
        sized = Sized(replica)
        large = b"x" * (4 * LARGE_BYTES)
        for number in range(20):
            sized.write({number: large})
            sized.write({number: large + large})
        assert sized.size.total == true_size(replica)
        for number in range(10):
            sized.write({number: None})
            sized.write({number: None})
        assert sized.size.total == true_size(replica)
        sized.write(dict.fromkeys(range(20)))
        assert sized.size.total == 0


def test_it_does_not_drift_with_what_comes_and_goes(tmp_path: Path) -> None:
    with replica_at(tmp_path) as replica:
        sized = Sized(replica)
        sized.write(dict.fromkeys(range(2000), b"x" * 1000))
        before, large = sized.size.total, b"x" * LARGE_BYTES
        assert before is not None
        for _ in range(50):
            sized.write(dict.fromkeys(range(3000, 3100), b"y" * 3000))
            sized.write(dict.fromkeys(range(3_000, 3_100)))
            for value in (b"y", large, b"y", large, None):  # a large one that becomes small
                sized.write(dict.fromkeys(range(4000, 4020), value))
        assert sized.size.total == before


def test_large_values_beyond_those_that_are_kept_by_name_count_like_all_others(tmp_path: Path) -> None:
    with replica_at(tmp_path) as replica:
        sized = Sized(replica)
        large = b"x" * LARGE_BYTES
        sized.write(dict.fromkeys(range(LARGE_MAX + 100), large))
        assert abs(sized.error()) < 0.5
        sized.write(dict.fromkeys(range(LARGE_MAX + 100)))
        assert sized.size.total == 0


def test_a_restart_goes_on_with_the_size_and_a_copy_counts_its_own(tmp_path: Path) -> None:
    with replica_at(tmp_path / "a") as replica:
        assert replica.durable.size.total == 0
        replica.run(random_log(3, 400, value_bytes=8_000))
        before = replica.durable.size.total
        assert before is not None
    with replica_at(tmp_path / "a") as replica:
        after = replica.durable.size.total
        assert after is not None
        assert abs(after - before) <= STORED_WITHIN_BYTES
        chunks, summary = replica.copy()
        expected = true_size(replica)
    with replica_at(tmp_path / "b") as other:
        target = CopyTarget(other.store, POINTER.partition, POINTER.incarnation + 1)
        for chunk in chunks:
            target.add(chunk)
        batch = other.store.batch()
        pointer = target.install(batch, summary, EPOCH, "")
        other.store.write(batch)
        assert recovered(other.store, pointer).durable.size.total == expected


@pytest.mark.parametrize("records", [0, 10])
def test_of_a_replica_of_a_time_when_no_size_was_kept_none_is_told(tmp_path: Path, records: int) -> None:
    with replica_at(tmp_path) as replica:
        replica.run(random_log(3, records))
        batch = replica.store.batch()
        batch.delete(PREFIX + keys.META_BYTES)
        replica.store.write(batch)
    with replica_at(tmp_path) as replica:
        assert replica.durable.size.total == (0 if not records else None)
        replica.run(random_log(3, records + 10)[records:])
