"""One seed is one run: every seed in two processes with different hash seeds, ``python -m tests.simulation.determinism --seeds 1-50``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

HASH_SEEDS = ("0", "4242")


def main() -> int:
    """0: all digests are equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.determinism", description=__doc__)
    parser.add_argument("--seeds", metavar="FIRST-LAST", default="1-50")
    options = parser.parse_args()
    command = [sys.executable, "-m", "tests.simulation", "--seeds", options.seeds, "--digest", "--processes", "1"]
    running = [
        subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, stdout=subprocess.PIPE, text=True)
        for hash_seed in HASH_SEEDS
    ]
    found = [[line for line in process.communicate()[0].splitlines() if line.startswith("digest")] for process in running]
    different = [f"{first}, {second}" for first, second in zip(*found, strict=False) if first != second]
    for line in different:
        print(f"not the same run: {line}")
    first, _, last = options.seeds.partition("-")
    count = int(last) - int(first) + 1
    is_same = not different and all(process.returncode == 0 for process in running) and [len(each) for each in found] == [count, count]
    print(f"{len(found[0])} seeds, hash seeds {' and '.join(HASH_SEEDS)}: {'the same digests' if is_same else 'DIFFERENT'}")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
