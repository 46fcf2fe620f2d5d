"""Lets the tests of this directory import their harness: under importlib mode pytest puts nothing on the path itself."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).parent.parent.parent)
sys.path[:0] = [str(Path(__file__).parent), *([ROOT] if ROOT not in sys.path else [])]
