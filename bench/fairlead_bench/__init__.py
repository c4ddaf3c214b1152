"""Benchmarks and long runs: ``python -m fairlead_bench NAME``.

registry: the benchmarks by name
results: result rows with goals, the JSON file, the printed table
measurement_cache: measurements kept in a file, so that a stopped run goes on
gateway, gateway_instructions: cost of the data plane, timed and counted
routing, sharing: the fleet simulator
autoscaler, outside_plant, mix: the autoscaler in two plants, and the accelerator mix
accuracy: the simulator compared with what it simulates
operator, index: the other components
"""
