"""The command line, ``actorgrid ...``. Scripts rely on its names, JSON shapes and exit codes; see docs/operation.md."""
