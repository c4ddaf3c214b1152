"""Failures of engines, as a worker sees them.

- `failure_attribution`: which failures count against an instance.
- `engine_progress`: signs of life of an engine that is slow to answer.
- `ejection_prober`: probes ejected instances that may hang.
- `retry`: whether a request is retried, how long its attempt waits for a silent instance, and when
  its client should retry.
"""
