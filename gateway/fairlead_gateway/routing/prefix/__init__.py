"""Prefixes: how prompts are hashed, and which instance has which prefix cached.

In reading order:

- `prefix_hash`: a prompt as a chain of hashes
- `media_parts`: pictures and other parts in it that are not text
- `approximate_index`: the index that a gateway builds from its own dispatches
- `cache_view`: that index and the KV-cache index together
- `hot_prefixes`: how long a routing key is
"""
