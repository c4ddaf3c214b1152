"""Routing presets in the fleet simulator.

benchmark: measurements of a preset, capacities, the grid of all presets, the demo
balance: rules by which running streams move between engines
decode_balance: the same between engines that only decode
demo_summary_plot: the picture of the documentation
"""
