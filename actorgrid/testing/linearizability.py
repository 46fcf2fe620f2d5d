"""Is what callers saw of one actor linearizable? A Wing-Gong checker with a memo, for short histories of one actor.

The actor is a counter that knows who moved it last: a *change* with a token raises its version by one and is answered with the new
version; a *read* is answered with the version, and with the token of the last change if the actor tells it. A history is linearizable
if every call that was answered can be given one moment between its call and its return, so that calls executed one by one in the order
of these moments give just these answers. A call whose outcome is unknown may have happened at any moment after it was made, also long
after the caller gave up, or never. A call that was refused did not happen: leave it out, and see `actorgrid.testing.exactly_once` for
the proof that it did not.

Usage::

    report = check_linearizability(operations)
    assert report, report.explain()

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) on the doubly linked list of calls and returns,
with the memo of Lowe ("Testing for linearizability", 2017): a set of calls placed so far together with the state they led to is never
tried twice. Facts of this object leave it little to choose:

- a read that fits may come at once, since it changes nothing;
- no two changes make the same version, so a version that an answered change, or a read with a token, claims is left to that change;
- a change with unknown outcome is never placed past the highest version that anybody saw.

So only unknown changes that nobody saw are guessed at, and 2,000 operations of ten clients take well under a second. To refute a history
with more than some twenty of them may take long, so the search is bounded by `steps_max` and then says that it does not know; `made` takes
the guessing away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final, Literal

#: Longer histories are refused: cut them, or use more actors.
OPERATIONS_MAX: Final = 2_000
STEPS_MAX: Final = 5_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client.

    :ivar client: who made it; a client makes one call at a time, which is not checked
    :ivar kind: ``"change"`` or ``"read"``
    :ivar called_ns: when it was made, on a clock that all clients share (``time.monotonic_ns`` on one machine)
    :ivar returned_ns: when its answer was there, or None if the outcome is unknown
    :ivar token: of a change: its own, not empty and unlike any other; of a read: that of the last change it saw, empty for "none yet",
        None for "not told"
    :ivar version: what was answered, or None if the outcome is unknown
    """

    client: str
    kind: Literal["change", "read"]
    called_ns: int
    returned_ns: int | None
    token: str | None
    version: int | None

    @property
    def is_answered(self) -> bool:
        """Whether the caller got an answer."""
        return self.returned_ns is not None

    def __str__(self) -> str:
        until = f"{self.returned_ns / 1e6:.3f}" if self.returned_ns is not None else "?"
        answer = f"version {self.version}" if self.version is not None else "unknown"
        if self.kind == "read" and self.token is not None:
            answer += f" by {self.token or 'nobody'}"
        what = f"change {self.token}" if self.kind == "change" else "read"
        return f"{self.called_ns / 1e6:.3f}..{until} ms  {self.client}: {what} -> {answer}"


@dataclasses.dataclass(frozen=True, slots=True)
class LinearizabilityReport:
    """What was found. True if the history is linearizable.

    :ivar linearizable: None if the search was given up after `steps_max` steps
    :ivar operations: how many calls were looked at, those that cannot matter left out
    :ivar steps: steps of the search
    :ivar order: calls in an order that explains the answers; if there is none, the longest beginning of one that was found
    :ivar stuck: answered calls of which, after `order`, one had to come next and none could
    :ivar problem: what is wrong already at a glance, or the empty string
    """

    linearizable: bool | None
    operations: int
    steps: int
    order: tuple[Operation, ...]
    stuck: tuple[Operation, ...] = ()
    problem: str = ""

    def __bool__(self) -> bool:
        return self.linearizable is True

    def explain(self, last: int = 8) -> str:
        """A few lines for people: where the search came to an end, and on what."""
        if self.linearizable:
            return f"linearizable: {self.operations} operations, {self.steps} steps"
        if self.linearizable is None:
            return f"undecided after {self.steps} steps: {self.operations} operations"
        if self.problem:
            return f"not linearizable: {self.problem}"
        lines = [f"not linearizable: {len(self.order)} of {self.operations} operations have an order, the last of them:"]
        lines += [f"    {operation}" for operation in self.order[-last:]]
        lines += ["  then one of these had to come, and none can:", *(f"    {operation}" for operation in self.stuck[:last])]
        return "\n".join(lines)


def check_linearizability(
    operations: Iterable[Operation], *, made: Mapping[str, int] | None = None, steps_max: int = STEPS_MAX
) -> LinearizabilityReport:
    """Look for an order that explains every answer.

    :param operations: all calls of one actor from its first one on (version 0), in any order, without those that were refused
    :param made: the version that each token made, as the actor says afterwards; settles which unknown changes happened. Not needed
    :param steps_max: the search is given up after so many steps
    :raises ValueError: more than `OPERATIONS_MAX` operations, or one that makes no sense
    """
    kept = [_settled(each, made) for each in operations if each.is_answered or each.kind == "change"]
    history = sorted((each for each in kept if each is not None), key=lambda each: each.called_ns)
    if len(history) > OPERATIONS_MAX:
        raise ValueError(f"{len(history)} operations: at most {OPERATIONS_MAX} can be checked")
    tokens: dict[str, Operation] = {}
    for each in history:
        if each.returned_ns is not None and (each.version is None or each.returned_ns < each.called_ns):
            raise ValueError(f"answered without a version, or before it was called: {each}")
        if each.kind == "change":
            if not each.token or each.token in tokens:
                raise ValueError(f"a change needs a token of its own: {each}")
            tokens[each.token] = each
    claims, problem = _claims(history, tokens)
    if problem:
        return LinearizabilityReport(False, len(history), 0, (), problem=problem)
    return _Search(history, claims).run(steps_max)


def _settled(operation: Operation, made: Mapping[str, int] | None) -> Operation | None:
    """An unknown change as it turned out to be: with its version, or None if it never happened."""
    if made is None or operation.kind != "change" or operation.version is not None or operation.token is None:
        return operation
    version = made.get(operation.token)
    return None if version is None else dataclasses.replace(operation, version=version)


def _claims(history: list[Operation], tokens: dict[str, Operation]) -> tuple[dict[int, str], str]:
    """Which token made which version, as far as answers tell; and the first contradiction among them, or the empty string."""
    claims: dict[int, str] = {}
    versions: dict[str, int] = {}
    for each in history:
        if each.version is None or each.token is None:
            continue
        if each.token == "" or each.version == 0:
            if each.token or each.version or each.kind == "change":
                return {}, f"version 0 has no token, and every other has one: {each}"
            continue
        if each.token not in tokens:
            return {}, f"nobody made this change: {each}"
        if claims.setdefault(each.version, each.token) != each.token:
            return {}, f"version {each.version} was made by {claims[each.version]}, says another answer: {each}"
        if versions.setdefault(each.token, each.version) != each.version:
            return {}, f"{each.token} made version {versions[each.token]}, says another answer: {each}"
    return claims, ""


class _Entry:
    """A call or a return in the list of moments."""

    __slots__ = ("following", "is_call", "number", "partner", "previous")

    def __init__(self, number: int, is_call: bool) -> None:
        self.number = number
        self.is_call = is_call
        self.partner: _Entry | None = None
        self.previous: _Entry = self
        self.following: _Entry = self

    def unlink(self) -> None:
        self.previous.following = self.following
        self.following.previous = self.previous

    def relink(self) -> None:
        self.previous.following = self
        self.following.previous = self


class _Search:
    """Wing and Gong's search over one history."""

    def __init__(self, history: list[Operation], claims: dict[int, str]) -> None:
        self._history = history
        self._claims = claims
        self._version_max = max((each.version for each in history if each.is_answered and each.version is not None), default=0)
        self._head = _Entry(-1, is_call=False)
        self._unanswered = sum(each.is_answered for each in history)
        moments = []
        for number, each in enumerate(history):
            call = _Entry(number, is_call=True)
            moments.append((each.called_ns, 0, number, call))
            if each.returned_ns is not None:
                call.partner = _Entry(number, is_call=False)
                # At the same nanosecond a call counts as before a return: the two may have overlapped.
                moments.append((each.returned_ns, 1, number, call.partner))
        last = self._head
        for _, _, _, entry in sorted(moments, key=lambda moment: moment[:3]):
            last.following, entry.previous = entry, last
            last = entry
        last.following, self._head.previous = self._head, last

    def run(self, steps_max: int) -> LinearizabilityReport:
        history = self._history
        version, last_token, placed, steps = 0, "", 0, 0
        seen: set[tuple[int, str]] = set()
        path: list[tuple[_Entry, str, list[_Entry]]] = []
        best: list[int] = []
        stuck: tuple[Operation, ...] = ()
        left = self._unanswered
        choices = self._choices(version, last_token)
        while left:
            steps += 1
            if steps > steps_max:
                return LinearizabilityReport(None, len(history), steps, tuple(history[number] for number in best))
            if not choices:
                if not stuck or len(path) > len(best):
                    best = [each.number for each, _, _ in path]
                    stuck = self._open_calls()
                if not path:
                    return LinearizabilityReport(False, len(history), steps, tuple(history[number] for number in best), stuck)
                # The last choice was wrong: take it back, and go on with what else there was.
                entry, last_token, choices = path.pop()
                operation = history[entry.number]
                placed &= ~(1 << entry.number)
                version -= operation.kind == "change"
                left += operation.is_answered
                if entry.partner is not None:
                    entry.partner.relink()
                entry.relink()
                continue
            entry = choices.pop()
            operation = history[entry.number]
            after = placed | 1 << entry.number
            token = last_token if operation.kind == "read" else operation.token or ""
            # The version needs no place in the memo: it is the number of changes placed.
            if (after, token) in seen:
                continue
            seen.add((after, token))
            path.append((entry, last_token, choices))
            placed, last_token = after, token
            version += operation.kind == "change"
            left -= operation.is_answered
            entry.unlink()
            if entry.partner is not None:
                entry.partner.unlink()
            choices = self._choices(version, last_token)
        return LinearizabilityReport(True, len(history), steps, tuple(history[each.number] for each, _, _ in path))

    def _choices(self, version: int, last_token: str) -> list[_Entry]:
        """Which calls may come next, the best one last. One alone where any order that works can be turned into one that begins with it."""
        after = version + 1
        maker = self._claims.get(after)
        change: _Entry | None = None
        unknown = []
        entry = self._head.following
        # Only calls before the first return without a place: what returned must have come before what is called later.
        while entry.is_call:
            operation = self._history[entry.number]
            if operation.kind == "read":
                if operation.version == version and operation.token in (None, last_token):
                    return [entry]  # it changes nothing, so it can as well come now
            elif maker == operation.token:
                change = entry
            elif maker is None and operation.version is None and after <= self._version_max:
                unknown.append(entry)
            entry = entry.following
        if maker is not None:
            return [change] if change is not None else []  # nobody else makes this version
        return unknown[::-1]

    def _open_calls(self) -> tuple[Operation, ...]:
        """Answered calls without a place up to the first return without one: one of them would have to come next."""
        calls = []
        entry = self._head.following
        while entry is not self._head:
            if entry.is_call and entry.partner is not None:
                calls.append(self._history[entry.number])
            elif not entry.is_call:
                break
            entry = entry.following
        return tuple(calls)
