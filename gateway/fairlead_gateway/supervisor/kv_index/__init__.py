"""Kv index."""
