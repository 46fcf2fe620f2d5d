"""One seed is one run: every seed in two processes, ``python -m tests.simulation.determinism --seeds 1-50``.

The two have different hash seeds; with ``--compiled DIRECTORY`` the second one has the compiled build that lies there, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HASH_SEEDS = ("0", "4242")
ROOT = Path(__file__).parents[2]


def main() -> int:
    """0: all digests are equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.determinism", description=__doc__)
    parser.add_argument("--seeds", metavar="FIRST-LAST", default="1-50")
    parser.add_argument("--compiled", metavar="DIRECTORY", type=Path, help="where `make compiled` has put it")
    options = parser.parse_args()
    # Without -P the working directory comes first, which has the pure build.
    command = [sys.executable, "-P", "-m", "tests.simulation", "--seeds", options.seeds, "--digest", "--processes", "1"]
    paths = [str(ROOT), str(ROOT)]
    if options.compiled is not None:
        command.append("--bare")
        paths[1] = f"{options.compiled.resolve()}{os.pathsep}{ROOT}"
        is_compiled = [sys.executable, "-P", "-c", "import actorgrid, sys; sys.exit(not actorgrid.__compiled__)"]
        if subprocess.run(is_compiled, env={**os.environ, "PYTHONPATH": paths[1]}, check=False).returncode:
            parser.error(f"--compiled: {options.compiled} has no compiled build; `make compiled` makes one")
    running = [
        subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
        for hash_seed, path in zip(HASH_SEEDS, paths, strict=True)
    ]
    found = [[line for line in process.communicate()[0].splitlines() if line.startswith("digest")] for process in running]
    different = [f"{first}, {second}" for first, second in zip(*found, strict=False) if first != second]
    for line in different:
        print(f"not the same run: {line}")
    first, _, last = options.seeds.partition("-")
    count = int(last) - int(first) + 1
    is_same = not different and all(process.returncode == 0 for process in running) and [len(each) for each in found] == [count, count]
    builds = ", pure and compiled" if options.compiled else ""
    print(f"{len(found[0])} seeds, hash seeds {' and '.join(HASH_SEEDS)}{builds}: {'the same digests' if is_same else 'DIFFERENT'}")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
