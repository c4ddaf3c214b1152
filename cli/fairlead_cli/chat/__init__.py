"""``fairlead chat``: `command` (from options to exit code), `gateway` (finds the gateway),
`conversation` (streams answers), `dialogue` (the prompt loop).
"""
