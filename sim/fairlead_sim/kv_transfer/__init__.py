"""Kv transfer."""
