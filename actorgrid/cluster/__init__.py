"""Hosts on Ray: a local grid, the host actor, and the one module that knows Ray (`ray_api`)."""
