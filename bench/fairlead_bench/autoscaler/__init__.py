"""The parts of ``bench/autoscaler/run.py``."""
