"""``fairlead local status``: `report` → `tree`; `command` runs it."""
