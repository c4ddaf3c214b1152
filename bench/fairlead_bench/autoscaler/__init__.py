"""The autoscaler in a closed-loop simulator, compared with other autoscalers' presets.

benchmark: the command line and the order of the run
measurement: one controller through one scenario
indicators: figures of an outcome beyond share and cost
result_rows: goals and comparisons
offline_optimum: search for the cheapest schedules, kept in ``offline_optima.json``
selected_scenarios: chosen scenarios and seeds, also those for judging
fleet_simulator: the same controllers with prefix caches and the gateway's router
property_tests: the autoscaler's property tests with many examples
sleep_tier: a benchmark of its own, of sleeping replicas
"""
