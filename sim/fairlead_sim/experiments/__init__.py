"""Measurements with the fleet simulator.

- ``trial``: one preset, one fleet, one traffic, from a seed
- ``capacity_search``: the highest rate that meets a latency goal
- ``ideal_bound``: a bound for all routing
"""
