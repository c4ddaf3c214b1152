"""``fairlead usage`` and ``fairlead cost``: `command` reads ledgers of gateways or of a folder."""
