"""``fairlead chat``: `command` finds the gateway, streams answers and runs the prompt loop."""
