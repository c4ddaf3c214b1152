"""Simulated engines for tests."""
