"""``fairlead rollout``: `revisions` (pure: status and patches) → `text_output` → `command`."""
