"""Fault runs: seeded simulations in which engines, gateways and messages fail.

- ``runner``: a fleet and its faults, drawn from a seed; the checker that must find no violation
"""
