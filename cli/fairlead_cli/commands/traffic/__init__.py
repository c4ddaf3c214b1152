"""Verbs that replay or simulate traffic: ``replay``, ``simulate``."""
