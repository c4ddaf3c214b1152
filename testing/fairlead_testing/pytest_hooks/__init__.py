"""Hooks of pytest that conftest files import."""
