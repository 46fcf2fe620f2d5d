"""The exactly-once oracle: cheap enough to run for hours, strict enough to see one lost or doubled change among millions.

Every change carries a token of its own, and the actor answers with its version after the change. The actor keeps which token made
which version. Afterwards, for every actor:

- its versions are 1, 2, ..., n, each made by one token: nothing was applied twice;
- every acknowledged token made exactly the version that was answered: nothing acknowledged was lost, no answer was another's;
- a token whose outcome stayed unknown made one version or none; a refused one made none;
- nothing else is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class OracleReport:
    """What was found. `violations` is empty if every promise was kept."""

    acknowledged: int
    unknown: int
    unknown_applied: int
    refused: int
    actors: int
    violations: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.violations


class ExactlyOnceOracle:
    """Remembers what callers were told, and judges what the actors say afterwards."""

    def __init__(self) -> None:
        self._acknowledged: dict[str, dict[str, int]] = {}
        self._unknown: dict[str, set[str]] = {}
        self._refused: dict[str, set[str]] = {}

    def acknowledged(self, actor: str, token: str, version: int) -> None:
        """The change of `token` was answered with `version`."""
        self._acknowledged.setdefault(actor, {})[token] = version

    def unknown(self, actor: str, token: str) -> None:
        """The caller was told that the outcome is unknown."""
        self._unknown.setdefault(actor, set()).add(token)

    def refused(self, actor: str, token: str) -> None:
        """The caller was told that nothing happened."""
        self._refused.setdefault(actor, set()).add(token)

    @property
    def actors(self) -> list[str]:
        """Every actor that was called, in order."""
        return sorted({*self._acknowledged, *self._unknown, *self._refused})

    @property
    def acknowledged_count(self) -> int:
        return sum(map(len, self._acknowledged.values()))

    def judge(self, history: Mapping[str, Iterable[tuple[str, int]]]) -> OracleReport:
        """Compare with what the actors have.

        :param history: for every actor the (token, version) pairs it keeps, in any order
        """
        violations: list[str] = []
        unknown_applied = 0
        for actor in self.actors:
            pairs = list(history.get(actor, ()))
            made = dict(pairs)
            told = self._acknowledged.get(actor, {})
            unknown = self._unknown.get(actor, set())
            if sorted(version for _, version in pairs) != list(range(1, len(pairs) + 1)):
                violations.append(f"{actor}: its versions are not 1..{len(pairs)}, each once")
            for token, version in told.items():
                if token not in made:
                    violations.append(f"{actor}: acknowledged change {token} (version {version}) is lost")
                elif made[token] != version:
                    violations.append(f"{actor}: change {token} was answered with version {version} and is version {made[token]}")
            refused = self._refused.get(actor, set())
            for token, version in made.items():
                if token in refused:
                    violations.append(f"{actor}: refused change {token} happened as version {version}")
                elif token not in told and token not in unknown:
                    violations.append(f"{actor}: change {token} happened as version {version} and nobody was told")
            unknown_applied += sum(token in made for token in unknown)
        return OracleReport(
            acknowledged=self.acknowledged_count,
            unknown=sum(map(len, self._unknown.values())),
            unknown_applied=unknown_applied,
            refused=sum(map(len, self._refused.values())),
            actors=len(self.actors),
            violations=tuple(violations),
        )
