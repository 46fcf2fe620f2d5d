"""Which Python the virtual environment is made with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import interpreter

SCRIPT = Path(interpreter.__file__)
OWN = os.path.realpath(sys.executable)


def test_it_names_an_interpreter_of_the_callers_version_that_can_make_an_environment():
    done = subprocess.run([OWN, str(SCRIPT)], capture_output=True, text=True, timeout=120, check=True)
    version = subprocess.run(
        [done.stdout.strip(), "-c", "import ensurepip, venv, sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert version.stdout.split() == [str(each) for each in sys.version_info[:2]]


def test_who_has_chosen_an_environment_keeps_it():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120, check=True)
    assert sys.prefix != sys.base_prefix, "the tests run in a virtual environment"
    assert (done.stdout.strip(), done.stderr) == (sys.executable, "")


@pytest.mark.parametrize(("part", "chosen"), [(0.5, "other"), (0.95, "own")])
def test_another_one_is_named_only_if_it_is_clearly_faster(monkeypatch, capsys, part, chosen):
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setattr(interpreter, "candidates", lambda: {OWN: "3.11.7", "/other/python": "3.11.2"})
    monkeypatch.setattr(interpreter, "fastest", lambda pythons: {python: part if python != OWN else 1.0 for python in pythons})
    interpreter.main()
    out, err = capsys.readouterr()
    assert out.strip() == ("/other/python" if chosen == "other" else sys.executable)
    assert ("0.50 of the time" in err) == (chosen == "other")


def test_what_cannot_run_is_none(tmp_path, monkeypatch):
    broken = tmp_path / f"python{sys.version_info.major}.{sys.version_info.minor}"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/nowhere")
    monkeypatch.setattr(interpreter, "USUAL_PLACES", ())
    assert interpreter.candidates() == {}
    assert interpreter.fastest([str(broken)]) == {}
