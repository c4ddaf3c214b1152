"""``fairlead chat``: `command` (from options to exit code), `gateway` (which one), `conversation`
(streams answers), `dialogue` (the prompt loop).
"""
