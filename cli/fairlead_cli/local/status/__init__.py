"""``fairlead local status``: `command` reports the stack on this machine."""
