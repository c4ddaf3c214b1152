"""Verbs of this machine: ``up``, ``demo``, ``local status``."""
