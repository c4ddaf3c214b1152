"""``fairlead rollout``: `revisions` (pure: status and patches) → `command`."""
