"""What is measured of the grid, by name. One module a family; a scenario is a function that adds rows to a `bench.bench.Bench`."""

from bench.scenarios.table import SCENARIOS, Scenario

__all__ = ["SCENARIOS", "Scenario"]
