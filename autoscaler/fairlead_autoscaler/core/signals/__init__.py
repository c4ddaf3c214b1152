"""Signals: which values of an observation can be used.

- `validation`: impossible values become None; sums over the replicas of a pool.
- `consistency`: contradicting values become None, by conservation of requests.
- `tick`: the clock of the core, and one observation as the next stages use it.
"""
