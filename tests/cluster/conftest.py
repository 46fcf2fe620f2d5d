"""Lets the tests of this directory import their harness: under importlib mode pytest puts nothing on the path itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
