"""Copies of requests for the shadow of a route, whose answers are compared and dropped.

- `shadow_traffic`: decides what is copied, ends copies, and compares answers.
"""
