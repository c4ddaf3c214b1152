"""Routing presets in the fleet simulator.

benchmark: measurements of a preset, capacities, the grid of all presets, the demo
defragmentation: room for long prompts, by moves of streams on processes
demo_summary_plot: the picture of the documentation
"""
