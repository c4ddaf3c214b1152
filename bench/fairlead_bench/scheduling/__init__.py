"""Admission before simulated engines; everything is in ``benchmark``."""
