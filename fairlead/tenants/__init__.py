"""Tenants: who may call which models, how much, and with what share of the engines.

- `model`: `Tenant`, its limits and its keys, as immutable data that gateways work from.
- `documents`: what documents of a file or a cluster say together, also when one is broken.
"""
