"""``fairlead explain``: `command` (requests and routes, whole decisions), `shadow` (copies)."""
