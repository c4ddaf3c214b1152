"""Adapters between outside tools and the production cores; ``fairlead_sim.seams`` is their entry.

- ``field_parsing``: fields of mappings or objects, checked
- ``router_adapter``: the gateway's router for outside simulators
- ``autoscaler_adapter``: the autoscaler's core for outside plants
- ``external_router``: the other side, an outside tool that drives a core
"""
