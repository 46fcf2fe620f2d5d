"""Lets the tests of this directory import each other's modules as ``tests.faults.*``, as ``python -m tests.faults.campaign`` does."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent.parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
