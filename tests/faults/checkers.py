"""The judges of a fault campaign: what callers were told against what the actors say afterwards.

Each judge returns a `Verdict`; a verdict that is not kept names up to twenty things that are wrong, with the records that prove it.
They are pure functions of records and read-back, so that histories of failed runs can be judged again: see `campaign.py --judge`.
"""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from actorgrid.testing.exactly_once import ExactlyOnceOracle
from actorgrid.testing.linearizability import OPERATIONS_MAX, Operation, check_linearizability
from tests.faults.history import PROGRESS_CALLER, Record

DETAILS_MAX: Final = 20
CLIENTS_MAX: Final = 10
#: What callers may be told while the grid loses hosts. Anything else is a defect, whatever the outcome.
EXPECTED_ERRORS: Final = frozenset({
    "DeadlineExceededError", "WriteInDoubtError", "OutcomeUnknownError",
    "NotPrimaryError", "NoWriteQuorumError", "ReconfigurationPendingError", "HostUnavailableError", "OverloadedError",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One promise, and whether it was kept."""

    name: str
    kept: bool
    numbers: dict[str, Any]
    details: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.kept

    def __str__(self) -> str:
        numbers = ", ".join(f"{value:,} {key}" if isinstance(value, int) else f"{key} {value}" for key, value in self.numbers.items())
        return f"{'kept' if self.kept else 'BROKEN'}  {self.name}: {numbers}"


class ReadBack(msgspec.Struct):
    """What one actor said after the campaign."""

    version: int
    balance: int
    made: list[tuple[str, int]]
    recent: list[str]


def _verdict(name: str, wrong: Sequence[str], **numbers: Any) -> Verdict:
    return Verdict(name, not wrong, {**numbers, "wrong": len(wrong)}, tuple(wrong[:DETAILS_MAX]))


def _show(record: Record) -> str:
    until = f"{record.ended_ns / 1e6:.3f}" if record.ended_ns else "?"
    to = f" {'on' if record.kind == 'direct' else '->'} {record.to}" if record.to else ""
    what = f"{record.kind} {record.actor} {record.token}{to}"
    return f"{record.began_ns / 1e6:.3f}..{until} ms {record.caller} {what}: {record.outcome} {record.version} {record.error}"


# -- exactly once


def judge_exactly_once(records: Iterable[Record], after: Mapping[str, ReadBack]) -> Verdict:
    """Acknowledged tokens made the version that was answered, once; unknown ones one version or none; refused ones none; nothing else."""
    oracle = ExactlyOnceOracle()
    made = {actor: dict(each.made) for actor, each in after.items()}
    wrong = []
    for record in records:
        if record.is_read:
            continue
        actor, token, credit = record.actor, record.token, record.token + "+"
        if record.outcome == "ok":
            oracle.acknowledged(actor, token, record.version)
            if record.to:
                # Nobody was told the version of a credit; that there is one is what counts.
                version = made.get(record.to, {}).get(credit)
                if version is None:
                    wrong.append(f"the credit of an acknowledged transfer is lost: {_show(record)}")
                else:
                    oracle.acknowledged(record.to, credit, version)
            continue
        # A method that raised has changed nothing here; what it had called before stays.
        (oracle.unknown if record.outcome == "unknown" else oracle.refused)(actor, token)
        if record.to:
            (oracle.refused if record.outcome == "refused" else oracle.unknown)(record.to, credit)
    report = oracle.judge({actor: each.made for actor, each in after.items()})
    wrong += report.violations
    for actor in sorted(set(after) - set(oracle.actors)):
        if after[actor].made:
            wrong.append(f"{actor}: has {len(after[actor].made)} changes and nobody called it")
    for actor, each in sorted(after.items()):
        in_order = [token for token, _ in sorted(each.made, key=lambda pair: pair[1])]
        if len({token for token, _ in each.made}) != len(each.made):
            wrong.append(f"{actor}: keeps a token twice")
        if each.version != len(each.made) or each.recent != in_order[-5:]:
            wrong.append(f"{actor}: field says version {each.version}, collection has {len(each.made)}, list says {each.recent}")
    return _verdict(
        "exactly once",
        wrong,
        acknowledged=report.acknowledged,
        unknown=report.unknown,
        unknown_applied=report.unknown_applied,
        refused=report.refused,
        actors=report.actors,
    )


# -- order in real time


@dataclasses.dataclass(slots=True)
class _Seen:
    """A change or a read with the version it made or saw, and when it can have taken effect."""

    began_ns: int
    ended_ns: int  #: 0: nobody knows
    version: int
    is_read: bool
    record: Record


def judge_order(records: Iterable[Record], after: Mapping[str, ReadBack]) -> tuple[Verdict, Verdict]:
    """Two verdicts over all actors: no stale read; and all other calls in an order that agrees with real time.

    Since each change makes one version and the actor kept which, this decides linearizability exactly, at n log n: it fails if and only
    if a call that began after another had ended saw or made a version that is older.
    """
    by_actor: dict[str, list[_Seen]] = defaultdict(list)
    made = {actor: dict(each.made) for actor, each in after.items()}
    by_version = {actor: {version: token for token, version in each.made} for actor, each in after.items()}
    stale: list[str] = []
    wrong: list[str] = []
    reads = 0
    for record in records:
        if record.is_read:
            if record.outcome == "ok":
                reads += 1
                by_actor[record.actor].append(_Seen(record.began_ns, record.ended_ns, record.version, True, record))
                if by_version.get(record.actor, {}).get(record.version, "") != record.token:
                    wrong.append(f"a read saw version {record.version} by {record.token!r}, which the actor does not keep: {_show(record)}")
            continue
        for actor, token in ((record.actor, record.token), (record.to, record.token + "+")):
            version = made.get(actor, {}).get(token)
            if version is not None:
                ended_ns = record.ended_ns if record.outcome == "ok" else 0
                by_actor[actor].append(_Seen(record.began_ns, ended_ns, version, False, record))
    for actor, calls in sorted(by_actor.items()):
        calls.sort(key=lambda each: each.began_ns)
        ended = sorted((each for each in calls if each.ended_ns), key=lambda each: each.ended_ns)
        position, floor = 0, 0
        latest: _Seen | None = None
        for each in calls:
            while position < len(ended) and ended[position].ended_ns < each.began_ns:
                if ended[position].version > floor:
                    floor, latest = ended[position].version, ended[position]
                position += 1
            if latest is not None and (each.version < floor or (each.version == floor and not each.is_read and each is not latest)):
                text = f"{actor}: version {each.version} after {floor} was known: {_show(latest.record)}  THEN  {_show(each.record)}"
                (stale if each.is_read else wrong).append(text)
    return (
        _verdict("no stale read", stale, reads=reads),
        _verdict("order agrees with real time", wrong, calls=sum(map(len, by_actor.values())), actors=len(by_actor)),
    )


def judge_linearizability(
    records: Iterable[Record], after: Mapping[str, ReadBack], windows: Sequence[tuple[int, int]], *, sample: int, seed: int
) -> Verdict:
    """Wing and Gong's search on a sample of the hot actors, those first that were called while a fault was on.

    At most ten clients an actor: readers beyond that are left out, those with the fewest reads first; that hides no wrong answer of others.

    :param windows: (from, until) of each fault
    """
    by_actor: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.actor.startswith("h") and record.outcome != "refused":
            by_actor[record.actor].append(record)
    names = sorted(by_actor)
    random.Random(f"{seed}/linearizability").shuffle(names)
    starts = sorted(windows)

    def is_hit(actor: str) -> bool:
        began, ended = by_actor[actor][0].began_ns, max(each.ended_ns for each in by_actor[actor])
        index = bisect.bisect_right(starts, (ended, ended)) - 1
        return any(until >= began for _, until in starts[max(0, index - 3) : index + 1])

    names.sort(key=lambda actor: not is_hit(actor))
    wrong: list[str] = []
    operations, hit, undecided, steps = 0, 0, 0, 0
    for actor in names[:sample]:
        history = _operations_of(by_actor[actor])
        hit += is_hit(actor)
        # What was read at the very end is an operation too.
        if actor in after:
            # Also behind calls of unknown outcome, which have no end: they may have been the last.
            end = max((max(each.began_ns, each.ended_ns) for each in by_actor[actor]), default=0) + 1
            last = after[actor].recent[-1] if after[actor].recent else ""
            version = after[actor].version
            history.append(Operation(client="afterwards", kind="read", called_ns=end, returned_ns=end + 1, token=last, version=version))
        report = check_linearizability(history, made=dict(after[actor].made) if actor in after else None)
        operations += report.operations
        steps += report.steps
        undecided += report.linearizable is None
        if not report:
            wrong.append(f"{actor}: {report.explain()}")
    if not operations:
        wrong.append("no hot actor was called")
    return _verdict(
        "linearizable",
        wrong,
        operations=operations,
        actors=min(sample, len(names)),
        hot_actors=len(names),
        under_a_fault=hit,
        undecided=undecided,
        steps=steps,
    )


def _operations_of(records: list[Record]) -> list[Operation]:
    changers = {each.slot for each in records if not each.is_read}
    readers = Counter(each.slot for each in records if each.slot not in changers)
    clients = changers | {slot for slot, _ in readers.most_common(max(0, CLIENTS_MAX - len(changers)))}
    kept = [each for each in records if each.slot in clients and (not each.is_read or each.outcome == "ok")]
    surplus = len(kept) - (OPERATIONS_MAX - 1)
    if surplus > 0:
        dropped = {id(each) for each in [each for each in kept if each.is_read][:surplus]}
        kept = [each for each in kept if id(each) not in dropped]
    return [
        Operation(
            client=each.caller,
            kind="read" if each.is_read else "change",
            called_ns=each.began_ns,
            returned_ns=each.ended_ns if each.outcome == "ok" else None,
            token=each.token,
            version=each.version if each.outcome == "ok" else None,
        )
        for each in kept
    ]


# -- money


def judge_money(records: Iterable[Record], after: Mapping[str, ReadBack]) -> Verdict:
    """Every balance is the sum of the transfers that the actor keeps; a transfer left one half only if its outcome was not known.

    A debit is committed after its credit was answered, so half a transfer is a credit without its debit, never the other way round.
    """
    wrong: list[str] = []
    expected: Counter[str] = Counter()
    halves, transfers, total_halves = 0, 0, 0
    made = {actor: dict(each.made) for actor, each in after.items()}
    for record in records:
        if record.kind != "transfer":
            continue
        debited = record.token in made.get(record.actor, {})
        credited = record.token + "+" in made.get(record.to, {})
        transfers += debited and credited
        expected[record.actor] -= record.amount * debited
        expected[record.to] += record.amount * credited
        if debited and not credited:
            wrong.append(f"debited and not credited: {_show(record)}")
        elif credited and not debited:
            halves += 1
            total_halves += record.amount
            if record.outcome == "ok":
                wrong.append(f"acknowledged, credited and not debited: {_show(record)}")
    wrong += [
        f"{actor}: balance {each.balance}, its transfers say {expected[actor]}"
        for actor, each in sorted(after.items())
        if each.balance != expected[actor]
    ]
    total = sum(each.balance for each in after.values())
    if total != total_halves:
        wrong.append(f"all balances together are {total}, transfers of unknown outcome explain {total_halves}")
    return _verdict("money is conserved", wrong, transfers=transfers, half_done_unknown=halves, total=total)


# -- replicas, callers, hosts


def judge_digests(digests: Mapping[int, Mapping[str, tuple[int, str, str]]], *, partitions: int, replicas: int) -> Verdict:
    """All replicas of a partition are at one position, and have one digest there."""
    wrong = []
    for partition in range(1, partitions + 1):
        rows = digests.get(partition, {})
        if len(rows) != replicas:
            wrong.append(f"partition {partition}: {len(rows)} of {replicas} replicas have a digest")
        if len({(lsn, digest) for lsn, digest, _ in rows.values()}) > 1:
            wrong.append(f"partition {partition}: {dict(rows)}")
    return _verdict("replicas are equal", wrong, partitions=partitions, replicas=replicas)


def judge_errors(records: Iterable[Record], unexpected: Iterable[str]) -> tuple[Verdict, Verdict]:
    """Two verdicts: callers are told only what they may be told when hosts fail; and those with the default deadline see no error."""
    wrong = list(unexpected)
    told: list[str] = []
    outcomes: Counter[str] = Counter()
    calls = 0
    for record in records:
        if record.kind != "direct":
            outcomes[record.outcome] += 1
            calls += record.is_patient
        if record.outcome == "ok":
            continue
        name, _, text = record.error.partition(":")
        # The deadline of a transfer may pass in the other actor and be raised there.
        is_late = record.outcome == "raised" and any(word in text for word in ("Timeout", "DeadlineExceeded", "CancelledError"))
        if record.error and name not in EXPECTED_ERRORS and not is_late:
            wrong.append(_show(record))
        if record.is_patient:
            told.append(_show(record))
    return (
        _verdict("only expected errors", wrong, ok=outcomes["ok"], refused=outcomes["refused"], unknown=outcomes["unknown"]),
        _verdict("no patient caller saw an error", told, calls=calls),
    )


def judge_traffic(records: Sequence[Record], floor: int) -> Verdict:
    """Enough was going on that the other verdicts mean something."""
    writes = sum(record.is_acknowledged_write for record in records)
    wrong = [] if writes >= floor else [f"{writes} acknowledged writes, the floor is {floor}"]
    return _verdict("traffic above the floor", wrong, acknowledged_writes=writes, calls=len(records), floor=floor)


# -- gaps


class Gaps:
    """When each caller was told of a change, to see for how long it was not. Of those that call without pause: not of `progress`."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._ends: dict[str, list[int]] = defaultdict(list)
        self._all: list[int] = []
        for record in records:
            if record.is_acknowledged_write and not record.caller.startswith(PROGRESS_CALLER):
                self._ends[record.slot].append(record.ended_ns)
                self._all.append(record.ended_ns)
        for ends in self._ends.values():
            ends.sort()
        self._all.sort()

    def longest_ns(self, began_ns: int, ended_ns: int) -> int:
        """The longest time that any one caller spent between two acknowledged changes, of those that overlap the window."""
        return max((_longest(ends, began_ns, ended_ns) for ends in self._ends.values()), default=0)

    def longest_of_all_ns(self, began_ns: int, ended_ns: int) -> int:
        """The longest time in the window in which no caller at all was told of a change."""
        return _longest(self._all, began_ns, ended_ns)

    def count(self, began_ns: int, ended_ns: int) -> int:
        """Changes acknowledged in the window."""
        return bisect.bisect_right(self._all, ended_ns) - bisect.bisect_left(self._all, began_ns)


def _longest(ends: Sequence[int], began_ns: int, ended_ns: int) -> int:
    first = max(0, bisect.bisect_left(ends, began_ns) - 1)
    last = min(len(ends), bisect.bisect_right(ends, ended_ns) + 1)
    return max((after - before for before, after in zip(ends[first:last], ends[first + 1 : last], strict=False)), default=0)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))] if ordered else 0.0
