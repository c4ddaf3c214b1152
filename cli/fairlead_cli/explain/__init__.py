"""``fairlead explain``: `command` (requests, routes, and copies of requests)."""
