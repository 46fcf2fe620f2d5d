"""ActorGrid: partitioned, durable actors for Python. Start at `actorgrid.grid`."""

from importlib.metadata import PackageNotFoundError, version

from actorgrid import grid

try:
    __version__ = version("actorgrid")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "grid"]
