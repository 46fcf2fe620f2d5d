"""Lets the tests of this directory import each other's modules, and those of ``tests.faults``, by their full names."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent.parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
