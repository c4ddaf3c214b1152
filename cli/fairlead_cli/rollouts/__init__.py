"""``fairlead rollout``: `command` has status and patches, which are pure, and the verbs."""
