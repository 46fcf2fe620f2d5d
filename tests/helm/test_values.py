"""The values: every one described, every wrong one refused by its name, and the table in the documentation the same as the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from tests.helm import settings_schema
from tests.helm.rendering import CHART, ROOT, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ROW = re.compile(r"^\| `(?P<name>[A-Za-z.]+)` \| (?P<default>.*?) \| (?P<text>.*) \|$")


def described(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}{name}", inner
        yield from described(inner, f"{path}{name}.")


def leaves(values: Any, schema: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each value as the table has it: (name, default, description)."""
    for name, value in values.items():
        inner = schema["properties"][name]
        if isinstance(value, dict) and inner.get("properties") and value:
            yield from leaves(value, inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", value, inner["description"]


def test_every_value_is_described() -> None:
    seen = dict(described(SCHEMA))
    for name, inner in seen.items():
        assert inner["description"].endswith("."), name
        assert inner["type"], name
    for name, _, _ in leaves(VALUES, SCHEMA):
        assert name in seen


def test_no_other_value_is_taken() -> None:
    for name, inner in [("", SCHEMA), *described(SCHEMA)]:
        if inner.get("properties"):
            assert inner["additionalProperties"] is False, name


def test_every_described_value_has_a_default() -> None:
    defaults = {name for name, _, _ in leaves(VALUES, SCHEMA)}
    for name, inner in described(SCHEMA):
        is_group = bool(inner.get("properties")) and name != "settings"
        if not is_group and name != "global" and not name.startswith("settings."):
            assert name in defaults, name


def test_settings_are_those_of_the_hosts() -> None:
    found = SCHEMA["properties"]["settings"]["properties"]
    assert found == settings_schema.wanted(), "HostSettings has changed: python -m tests.helm.settings_schema"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 3}, "replicas"),
        ({"nodes": {"replica": 3}}, "nodes.*replica"),
        ({"nodes": {"replicas": 0}}, "nodes/replicas"),
        ({"nodes": {"replicas": "three"}}, "nodes/replicas"),
        ({"nodes": {"hostsPerPod": 17}}, "nodes/hostsPerPod"),
        ({"nodes": {"port": 12_000}}, "nodes/port"),
        ({"nodes": {"terminationGracePeriodSeconds": 5}}, "nodes/terminationGracePeriodSeconds"),
        ({"nodes": {"storage": {"size": "ten gigabytes"}}}, "nodes/storage/size"),
        ({"nodes": {"sharedMemory": "1000"}}, "nodes/sharedMemory"),
        ({"nodes": {"spread": {"hosts": {"whenUnsatisfiable": "Never"}}}}, "nodes/spread/hosts/whenUnsatisfiable"),
        ({"nodes": {"probes": {"liveness": {"periodSeconds": 0}}}}, "nodes/probes/liveness/periodSeconds"),
        ({"nodes": {"extraEnv": [{"value": "x"}]}}, "nodes/extraEnv/0"),
        ({"partitions": 0}, "partitions"),
        ({"partitions": 1.5}, "partitions"),
        ({"replicaSetSize": 8}, "replicaSetSize"),
        ({"settings": {"stop_grace": 3}}, "stop_grace"),
        ({"settings": {"stop_grace_s": -1}}, "settings/stop_grace_s"),
        ({"settings": {"sessions_max": 10.5}}, "settings/sessions_max"),
        ({"app": {"modules": ["bank.py; rm"]}}, "app/modules/0"),
        ({"app": {"files": {"../bank.py": ""}}}, "app/files"),
        ({"image": {"pullPolicy": "Sometimes"}}, "image/pullPolicy"),
        ({"image": {"digest": "md5:1"}}, "image/digest"),
        ({"podSecurity": {"runAsUser": 0}}, "podSecurity/runAsUser"),
        ({"certificates": {"days": 0}}, "certificates/days"),
        ({"clusterId": "a b"}, "clusterId"),
        ({"service": {"type": "ExternalName"}}, "service/type"),
    ],
)
def test_nonsense_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError) as caught:
        render(values)
    assert re.search(named, str(caught.value)), str(caught.value)


def rows() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs" / "kubernetes.md").read_text().partition("\n## Values\n")[2]
    found = [match for line in text.splitlines() if (match := ROW.match(line))]
    assert len({match["name"] for match in found}) == len(found)
    return {match["name"]: (match["default"], match["text"]) for match in found}


def written(value: Any) -> str:
    """A default as the table has it: flow YAML in one line; nothing for what is empty."""
    return (
        "" if value in ("", [], {}) else f"`{yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).splitlines()[0]}`"
    )


def test_the_table_of_the_documentation_is_the_values_file() -> None:
    assert rows() == {name: (written(value), text) for name, value, text in leaves(VALUES, SCHEMA)}


def main() -> None:
    """Print the table."""
    print("| value | default | |\n|---|---|---|")
    for name, value, text in leaves(VALUES, SCHEMA):
        print(f"| `{name}` | {written(value)} | {text} |")


if __name__ == "__main__":
    main()
