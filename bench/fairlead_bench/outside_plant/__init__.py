"""The autoscaler in a second plant, whose physics share no code with the simulator.

scenario: step costs, generated traffic, and what goes wrong in it
engine: an engine in closed form between two events
plant: starts, drains, crashes, routing; what a core sees, and the core behind its seam
offline_optimum: the cheapest schedule that keeps 99 % within both latency targets
benchmark: runs, one line each; also ``python -m fairlead_bench autoscaler-outside``
presets: presets of others
"""
