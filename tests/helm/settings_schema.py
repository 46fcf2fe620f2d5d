"""The schema of `settings`, made from `HostSettings`; ``python -m tests.helm.settings_schema`` puts it into values.schema.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from actorgrid.settings import HostSettings

SCHEMA = Path(__file__).parents[2] / "helm" / "actorgrid" / "values.schema.json"


def wanted() -> dict[str, Any]:
    """A property for each setting, with its range and the reason of its default."""
    return {field.name: _property(field) for field in dataclasses.fields(HostSettings)}


def _property(field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {
        "type": "integer" if isinstance(field.default, int) else "number",
        "description": f"Default {field.default}: {field.metadata['why']}.",
        "minimum": field.metadata["low"],
        "maximum": field.metadata["high"],
    }


def main() -> None:
    """Write the file anew, with nothing else changed."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["properties"] = wanted()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
