"""Benchmark of the judge of canaries, in simulated traffic."""
