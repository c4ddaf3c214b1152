"""The index outside of the process that reads engines: written to Redis, fed from there, mirrored where it is asked."""
