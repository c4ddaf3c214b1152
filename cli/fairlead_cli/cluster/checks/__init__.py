"""``fairlead check``: `catalogue` (all checks) → `analyzers` (functions) → `runner` → `command`.

`check` has the value types; the runner lists the faults that tests seed.
"""
