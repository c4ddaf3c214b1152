"""Routing presets in the fleet simulator.

benchmark: measurements of a preset, capacities, the grid of all presets, the demo
demo_summary_plot: the picture of the documentation
"""
