"""``fairlead version``: `command` (the verb), `report` (what is installed
here and in a cluster).
"""
