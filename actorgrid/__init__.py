"""ActorGrid: partitioned, durable actors for Python. Start at `actorgrid.grid`."""

from importlib.metadata import PackageNotFoundError, version

from actorgrid import grid
from actorgrid.wire import framing

try:
    __version__ = version("actorgrid")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

#: Whether the hot modules are compiled (``hatch_build.py``).
__compiled__ = not framing.__file__.endswith(".py")

__all__ = ["__compiled__", "__version__", "grid"]
