"""The response to failing engines.

- `failure_attribution`: which failures count against an instance; `outlier_detection`: ejects it.
- `ejection_prober`: probes ejected instances that may hang.
- `stall_timeout`: how long an attempt waits for a silent instance.
- `retry`: whether a request is retried, and when its client should.
- `poison_requests`: refuses requests that crash engines.
"""
