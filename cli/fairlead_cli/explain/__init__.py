"""``fairlead explain``: `command` (from options to exit code), `decision_text` (a whole decision),
`summary` (``/why`` of chat).
"""
