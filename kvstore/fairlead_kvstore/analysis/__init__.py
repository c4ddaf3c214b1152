"""Analyses of the KV-cache index. Pure.

- `block_counts`: blocks by instance and tier, and those that one instance alone has cached
- `removal_ranking`: the instances that are cheapest to remove
"""
