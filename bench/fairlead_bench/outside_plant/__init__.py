"""The autoscaler in a second plant, whose physics share no code with the simulator.

profiles, engine: step costs, and an engine in closed form between two events
requests, scenario, families: generated traffic and what goes wrong in it
replica_pool, gateway_rules, plant: starts, drains, crashes, routing
core_seam: what a core sees, and the core behind its seam
offline_optimum: the cheapest schedule that keeps 99 % within both latency targets
measurement, benchmark: runs, one line each; also ``python -m fairlead_bench.outside_plant``
"""
