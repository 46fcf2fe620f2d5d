"""What tests of actors and of the grid itself are made of; shipped to users.

`TestGrid` and `SimCluster` need the server's packages; they are imported when they are asked for, so that the checkers
(`actorgrid.testing.exactly_once`, `actorgrid.testing.linearizability`) go on needing the bare package alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from actorgrid.testing.grid import Running, StuckError, TestGrid
    from actorgrid.testing.simulation.cluster import SimCluster, SimulationError

__all__ = ["Running", "SimCluster", "SimulationError", "StuckError", "TestGrid"]

_MODULE_OF: Final = {
    "Running": "actorgrid.testing.grid",
    "SimCluster": "actorgrid.testing.simulation.cluster",
    "SimulationError": "actorgrid.testing.simulation.cluster",
    "StuckError": "actorgrid.testing.grid",
    "TestGrid": "actorgrid.testing.grid",
}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}: pip install 'actorgrid[server]'", name=error.name) from error
