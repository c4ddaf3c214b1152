"""Verbs that read manifests: ``lint``."""
