"""The simulated engine, the fleet simulator, traces and the seams that outside tools drive."""
