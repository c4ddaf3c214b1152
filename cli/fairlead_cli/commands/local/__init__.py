"""Verbs that run models on this machine: ``up``, ``chat``, ``demo``."""
