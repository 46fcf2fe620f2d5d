"""The whole grid in one thread, on virtual time: see `SimCluster`."""

from actorgrid.testing.simulation.cluster import SimClient, SimCluster, SimulationError

__all__ = ["SimClient", "SimCluster", "SimulationError"]
