"""Entry point of the command ``actorgrid``; it imports nothing that only the server extra has before it can say so."""

from __future__ import annotations

import sys

_OF_SERVER_EXTRA = frozenset({"typer", "rich", "psutil", "ray", "rocksdict", "uvloop"})


def main() -> None:
    """Run the command line of ``sys.argv`` and exit with its code."""
    try:
        from actorgrid.cli import commands
    except ModuleNotFoundError as error:
        if error.name not in _OF_SERVER_EXTRA:
            raise
        sys.stderr.write(
            f"actorgrid: the command line needs the 'server' extra ({error.name} is not installed): pip install 'actorgrid[server]'\n"
        )
        raise SystemExit(1) from None
    commands.app(prog_name="actorgrid")


if __name__ == "__main__":
    main()
