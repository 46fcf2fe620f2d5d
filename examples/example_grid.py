"""The grid that an example runs on: one of its own, or a running one that ``--address`` names."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

EXAMPLES = Path(__file__).parent


@contextlib.contextmanager
def example_grid(app: str) -> Iterator[str]:
    """The address of a grid that has the actors of module `app`; one that is started here ends with the block, and its data too."""
    parser = argparse.ArgumentParser(description=f"an example of ActorGrid; its actors are in {app}.py")
    parser.add_argument("--address", metavar="HOST:PORT", help=f"a running grid that was started with --app {app}; default: start one")
    address: str | None = parser.parse_args().address
    if address is not None:
        yield address
        return
    # Here and not above: the hosts import the example as an actor module, and that needs the bare package alone.
    from actorgrid.cluster.local import LocalGrid

    with tempfile.TemporaryDirectory(prefix="actorgrid-example-") as data:
        print("starting a local grid of 3 hosts ...", flush=True)
        with LocalGrid(nodes=3, app=[app], app_path=[EXAMPLES], data=data) as local_grid:
            yield local_grid.address
