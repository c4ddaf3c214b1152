"""Kubernetes Events: `event` defines them, `aggregator` decides what to write when, and `recorder`
writes.
"""
