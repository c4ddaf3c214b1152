"""Measurements with the fleet simulator.

- ``trial``: one preset, one fleet, one traffic, from a seed; the highest rate that meets a latency
  goal; a bound for all routing
"""
