"""The benchmark harness: ``python -m bench run SCENARIO``. See ``docs/benchmarks.md``."""
