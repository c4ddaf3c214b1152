"""Workload: the traffic of a model, estimated from validated signals.

- `arrivals`: bins of requests and prompt tokens.
- `load_forecast`: level, spread and trend of the load; change points; recurring bursts.
- `request_lengths`: means of prompt and output lengths; `length_shift`: their change points.
- `mean_request`: the mean request that each role sees, and how it grows.
- `shape_histogram`: counts of requests by shape.
- `idle_gaps`: gaps between requests, for scale to zero.
"""
