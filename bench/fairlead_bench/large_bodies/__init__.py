"""Stalls of a worker by large request bodies: `benchmark` measures and reports them."""
