"""Fault runs: seeded simulations in which engines, gateways and messages fail.

- ``scenarios``: a fleet and its faults, drawn from a seed
- ``invariants``: the checker that must find no violation
- ``runner``: runs a scenario under the checker
- ``hang_verdicts``: runs a scenario, and asks production's verdict on engines that hang
"""
