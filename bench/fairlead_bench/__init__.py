"""Fairlead bench."""
