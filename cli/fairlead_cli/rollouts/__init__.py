"""``fairlead rollout``: ``deciding`` works out what to write and how it stands (pure), ``telling`` words it, ``doing`` does it."""
