"""Resizes pools to hold the objectives at the lowest cost. Not built yet; see autoscaler/README.md."""
