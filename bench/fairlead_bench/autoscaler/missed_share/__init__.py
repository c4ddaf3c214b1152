"""The missed share that the core predicts, compared with fixed fleets of four plants.

- ``prediction``: a core that watches a fleet, and what it predicts at the known rate and size
- ``simulated_fleets``, ``outside_fleet``: a fixed fleet of each plant, watched and counted
- ``fixed_fleet_case``: the cases, from ``fleet_rates.json``
- ``benchmark``: runs all cases and writes a row for each, and a summary for each plant
"""
