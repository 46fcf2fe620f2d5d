"""Lets the tests of this directory import each other's modules: under importlib mode pytest puts nothing on the path itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
