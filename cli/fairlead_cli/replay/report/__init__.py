"""The report of a replay: `summary` → `report` → `terminal_tables`, `plots`, `output_files`."""
