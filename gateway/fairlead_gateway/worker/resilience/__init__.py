"""The response to failing engines.

- `failure_attribution`: which failures count against an instance; `outlier_detection`: ejects it.
- `ejection_records`: the ejected instances that may hang; `ejection_prober`: probes them.
- `fault_evidence`: whether failures come from enough callers or bodies.
- `stall_timeout`: how long an attempt waits for a silent instance.
- `retry`, `retry_after`: whether a request is retried, and when its client should.
- `poison_requests`: refuses requests that crash engines.
"""
