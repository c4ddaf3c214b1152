"""The autoscaler in a closed-loop simulator, compared with other autoscalers' presets.

benchmark: the command line, goals and comparisons, chosen scenarios and seeds
measurement: one controller through one scenario, and figures of its outcome
offline_optimum: search for the cheapest schedules, kept in ``offline_optima.json``
fleet_simulator: the same controllers with prefix caches and the gateway's router
sleep_tier: a benchmark of its own, of sleeping replicas
"""
