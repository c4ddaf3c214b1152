"""Routing presets in the fleet simulator.

benchmark: the command line and the order of the run
measurement: one preset at one rate, or its capacity
result_rows: goals
preset_grid, grid_plot: all presets with several gateways and old information
demo_rows: the traffic of ``fairlead demo``
"""
