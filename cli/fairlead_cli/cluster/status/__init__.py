"""``fairlead status`` of a cluster: `model_report` → `advice` → `command`."""
