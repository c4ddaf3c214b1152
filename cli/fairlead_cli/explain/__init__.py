"""``fairlead explain``: `command` (from options to exit code), `decision_text` (all of a decision),
`summary` (``/why`` of chat).
"""
