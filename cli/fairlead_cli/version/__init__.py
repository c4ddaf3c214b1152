"""``fairlead version``: `command` shows what is installed here and in a cluster."""
