"""``fairlead simulate``: `options` (checked arguments) → `comparison` (the runs) → `report` (table
and JSON).
"""
