"""``python3 bench/interpreter.py``: which Python of this machine to make the virtual environment with; needs nothing but Python itself.

An interpreter built without profile-guided optimisation, as version managers build them unless told otherwise, runs the same program a
quarter to a half slower than a distribution's. So of all interpreters of the caller's own version (3.11 for 3.11) that can make a virtual
environment and compile extensions the fastest is named; the caller's own one, unless another is clearly faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

#: Of the time of the caller's own interpreter.
CLEARLY_FASTER = 0.9
ROUNDS = 5
TIMEOUT_S = 20.0
#: Where distributions put theirs, whatever PATH says.
USUAL_PLACES = ("/usr/local/bin", "/usr/bin")

#: Calls, attributes, dictionaries, small objects: what the product does; some 50 ms.
_WORK = """
class Item:
    __slots__ = ("number", "name")
    def __init__(self, number, name):
        self.number, self.name = number, name
def work():
    found = {}
    for number in range(150_000):
        item = Item(number, "x")
        found[item.number & 1023] = (item.name, len(found))
    return found
"""
_MEASURE = _WORK + "import time; began = time.process_time(); work(); print(time.process_time() - began)"
_ASK = """
import ensurepip, json, os, ssl, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
print(json.dumps([sys.version_info[:3], os.path.realpath(sys.executable), sys.implementation.name == "cpython", os.path.exists(header)]))
"""


def _output(python: str, program: str) -> str:
    """What a program prints; empty if it cannot run."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()  # what wrappers say comes before
    return lines[-1] if lines and done.returncode == 0 else ""


def candidates() -> dict[str, str]:
    """Version by path of each interpreter of the caller's version that can do what is needed; one path each."""
    found: dict[str, str] = {}
    known = set()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for place in dict.fromkeys([*os.environ.get("PATH", "").split(os.pathsep), *USUAL_PLACES]):
        path = Path(place) / name
        answer = _output(str(path), _ASK) if os.path.isfile(path) else ""  # that of Path raises where it may not look
        try:
            version, real_path, is_cpython, has_header = json.loads(answer)
        except ValueError:
            continue
        if is_cpython and has_header and tuple(version[:2]) == sys.version_info[:2] and real_path not in known:
            known.add(real_path)
            found[str(path)] = ".".join(map(str, version))
    return found


def fastest(pythons: list[str]) -> dict[str, float]:
    """Seconds that each takes for the same work, the best of several turns; none that fails."""
    seconds: dict[str, list[float]] = {python: [] for python in pythons}
    for _ in range(ROUNDS):
        for python, taken in seconds.items():
            with contextlib.suppress(ValueError):
                taken.append(float(_output(python, _MEASURE)))
    return {python: min(taken) for python, taken in seconds.items() if taken}


def main() -> None:
    own = os.path.realpath(sys.executable)
    chosen = sys.executable
    if sys.prefix == sys.base_prefix:  # else somebody has chosen an environment
        versions = candidates()
        others = [python for python in versions if os.path.realpath(python) != own]
        seconds = fastest([own, *others]) if others else {}
        best = min(seconds, key=lambda python: seconds[python], default=own)
        if own in seconds and seconds[best] < CLEARLY_FASTER * seconds[own]:
            chosen = best
            part = seconds[best] / seconds[own]
            print(f"{best} ({versions[best]}) takes {part:.2f} of the time of {own}; make PYTHON=... decides otherwise", file=sys.stderr)
    print(chosen)


if __name__ == "__main__":
    main()
