"""``python -m bench``: measure, compare, report."""

from bench.cli import app

if __name__ == "__main__":
    app()
