"""``python -m tests.faults.child MODULE [ARGS...]``: run a module as a program that ends when whoever started it does.

A campaign that is killed itself leaves no hosts behind: the kernel kills them, also those that are stopped at the moment.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
PARENT = "AGFAULTS_PARENT"


def command(*words: str) -> list[str]:
    """What starts such a program with the modules of this process, which has a compiled build first if it was started with ``-P``."""
    return [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "tests.faults.child", *words]


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(os.environ.get(PARENT, os.getppid())):
        sys.exit("whoever started this is gone already")
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
