"""Pure placement logic: partition map, planner, moves. Empty until the placement manager lands."""
