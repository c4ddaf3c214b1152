"""``fairlead chat``: `command` (from options to exit code), `conversation` (streams answers),
`dialogue` (the prompt loop).
"""
