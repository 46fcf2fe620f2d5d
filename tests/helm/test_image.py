"""What the image is built from: everything pinned, nothing of the first stage left, no root. Building it is not a matter of seconds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helm.rendering import CHART, ROOT, node_user

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = re.compile(r"^(?P<name>[a-z0-9-]+)(\[[a-z,-]+\])?==(?P<version>[^ ;]+)")


def pins(name: str) -> dict[str, str]:
    return {match["name"]: match["version"] for line in (ROOT / "image" / name).read_text().splitlines() if (match := PINNED.match(line))}


def wanted_of_image() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [Requirement(text) for text in (*PROJECT["project"]["dependencies"], *extras["server"], *extras["kubernetes"])]


def test_what_the_package_needs_is_pinned_as_it_asks() -> None:
    found = pins("requirements.lock")
    for wanted in wanted_of_image():
        assert wanted.name in found, "run image/lock.sh"
        assert wanted.specifier.contains(found[wanted.name]), f"{wanted}: {found[wanted.name]} is pinned; run image/lock.sh"


def test_what_builds_the_package_is_pinned_as_it_asks() -> None:
    found = pins("build.lock")
    hook = (ROOT / "hatch_build.py").read_text()
    named = re.search(r"return \[(.*)\] if self\._is_wanted", hook)
    assert named is not None
    for text in (*PROJECT["build-system"]["requires"], *re.findall(r'"([^"]+)"', named[1])):
        wanted = Requirement(text)
        assert wanted.specifier.contains(found[wanted.name]), f"{wanted}: {found.get(wanted.name)} is pinned; run image/lock.sh"
    both = pins("requirements.lock").items() & found.items()
    assert {name for name, _ in both} >= {"msgspec", "xxhash"}  # what is compiled against is what runs


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_every_pin_has_hashes(name: str) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "image" / name).read_text())
    for entry in entries:
        if PINNED.match(entry):
            assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert f"--require-hashes {'' if name == 'build.lock' else '--only-binary :all: '}-r /build/image/{name}" in DOCKERFILE


def test_the_last_stage_gets_files_and_nothing_else() -> None:
    assert re.search(r"^ARG BASE_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+$", DOCKERFILE, re.MULTILINE)
    first, last = DOCKERFILE.split("FROM ${BASE_IMAGE}")[1:]
    assert "ARG" not in last
    assert "pip install" not in last
    assert "apt-get" not in last
    assert re.findall(r"^COPY.*$", last, re.MULTILINE) == ["COPY --from=build /opt/actorgrid /opt/actorgrid"]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    assert "--mount" not in first + last  # any builder can build it
    assert "# syntax" not in DOCKERFILE  # which would be fetched


def test_the_image_and_the_chart_agree() -> None:
    assert node_user() == 10001
    chart = (CHART / "Chart.yaml").read_text()
    assert f'appVersion: "{PROJECT["project"]["version"]}"' in chart


def test_only_what_is_built_from_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    for source in " ".join(copied).split():
        assert any(Path(source).match(line[1:]) for line in lines if line.startswith("!")), source
        assert (ROOT / source).exists()
