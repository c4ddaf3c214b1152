"""The parts of ``bench/routing/run.py``."""
