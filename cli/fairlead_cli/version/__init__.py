"""``fairlead version``: `command` (from the options to the exit code), `report` (what is installed
here and in a cluster).
"""
