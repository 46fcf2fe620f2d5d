"""``python -m actorgrid``: the same as the command ``actorgrid``."""

from actorgrid.cli.main import main

if __name__ == "__main__":
    main()
