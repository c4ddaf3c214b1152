"""Prefixes: how prompts are hashed, and which instance has which prefix cached.

In reading order:

- `prefix_hash`: a prompt as a chain of hashes, with its pictures and other media parts
- `cache_view`: the index that a gateway builds from its own dispatches, with the KV-cache index
- `hot_prefixes`: how long a routing key is
"""
