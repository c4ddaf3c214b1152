"""Engines, indexers and block stores for tests of the KV-cache index."""
