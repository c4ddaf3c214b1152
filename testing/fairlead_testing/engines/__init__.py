"""Engines under a test's control: scripted ones, and processes of the simulated engine."""
