"""``fairlead status`` of a cluster: `engine_signals` → `model_report` → `advice` → `tree`;
`command` runs it.
"""
