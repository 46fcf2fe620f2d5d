"""A type checker helps the users: it knows the methods, their arguments and results, and finds the mistakes."""

import re
import sys
from pathlib import Path

import pytest

mypy_api = pytest.importorskip("mypy.api")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What mypy strict says about the two samples: {(file name, line): error code}."""
    folder = tmp_path_factory.mktemp("samples")
    bad = folder / "bad_sample.py"
    bad.write_text((HERE / "bad_sample.txt").read_text())
    output, errors, _ = mypy_api.run(
        [
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--no-error-summary",
            "--hide-error-context",
            "--follow-imports=silent",
            "--python-executable",
            sys.executable,
            str(bad),
            str(ROOT / "tests" / "typing_samples" / "good.py"),
        ]
    )
    assert not errors
    found = {}
    for path, line, code in re.findall(r"^(.+?):(\d+): error: .*\[([\w-]+)\]$", output, re.MULTILINE):
        found[Path(path).name, int(line)] = code
    return found


def test_a_wrong_argument_an_unknown_method_and_a_wrong_result_are_found_where_they_stand(findings):
    lines = (HERE / "bad_sample.txt").read_text().splitlines()
    expected = {("bad_sample.py", i): line.partition("# error: ")[2] for i, line in enumerate(lines, 1) if "# error: " in line}
    assert {place: code for place, code in findings.items() if place[0] == "bad_sample.py"} == expected
    assert len(expected) == 9


def test_what_is_right_is_not_complained_about(findings):
    assert [place for place in findings if place[0] == "good.py"] == []
