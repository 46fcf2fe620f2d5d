"""What labels of nodes may look like: as those of Kubernetes, where most of them come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

#: Of one node, and of one constraint.
LABELS_MAX: Final = 64
_NAME: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def problems_of(labels: Any) -> list[str]:
    """Why `labels` are no labels, each of them that is none; nothing if they are."""
    if not isinstance(labels, Mapping):
        return [f"labels must be names with values, got {labels!r:.100}"]
    problems = [f"{len(labels)} labels are more than the {LABELS_MAX} allowed"] if len(labels) > LABELS_MAX else []
    for name, value in labels.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            problems.append(
                f"label {name!r:.100}: a name has 1 to 63 letters, digits, '-', '_' and '.', after a prefix like example.com/ if any"
            )
        elif not isinstance(value, str) or _VALUE.fullmatch(value) is None:
            problems.append(f"label {name}={value!r:.100}: a value has at most 63 letters, digits, '-', '_' and '.'")
    return problems


def say(labels: Mapping[str, str]) -> str:
    """``disk=ssd, gpu=no``; a dash if there are none."""
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "-"
