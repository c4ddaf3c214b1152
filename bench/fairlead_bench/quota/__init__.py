"""Benchmarks of tenants' limits."""
