"""The response to failing engines.

- `failure_attribution`: which failures count against an instance; `outlier_detection`: ejects it.
- `ejection_prober`: probes ejected instances that may hang.
- `retry`: whether a request is retried, how long its attempt waits for a silent instance, and when
  its client should retry.
- `poison_requests`: refuses requests that crash engines.
"""
