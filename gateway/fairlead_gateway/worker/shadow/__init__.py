"""Copies of requests for the shadow of a route, whose answers are compared and dropped.

- `shadow_traffic`: decides what is copied, ends copies, and compares answers.
- `shadow_copy`: one copy, from its body to the end of its answer.
- `spare_capacity`: whether an instance has room for a copy. Pure.
"""
