"""The response to failing engines.

- `outlier_detection`: ejects instances.
- `poison_requests`: refuses requests that crash engines.
- `worker`: attributes failures, retries and probes.
"""
