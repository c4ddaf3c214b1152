"""Verbs that look into a stack or a cluster, and change a rollout."""
