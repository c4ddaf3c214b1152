"""The autoscaler's HTTP port.

- `server`: probes, decisions, recordings and wake hints.
- `metrics`: its Prometheus metrics.
"""
