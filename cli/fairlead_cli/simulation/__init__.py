"""``fairlead simulate``: `command` checks the arguments, runs presets, and prints the results."""
