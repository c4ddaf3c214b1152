"""Analyzers: one pure function for each check, from facts to a verdict. `workloads` holds what
components share.
"""
