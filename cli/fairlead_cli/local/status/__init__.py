"""``fairlead status`` of a stack on this machine: `report` → `tree`; `command` runs it."""
