"""Collector: reads the metrics of all gateways, and builds the observation of each model from them.

- `gateway_scraper`: requests the metrics page of every gateway.
- `metrics_parser`: a page as values.
- `counter_deltas`: increases of counters since the last tick, also after missed ticks.
- `observation`: the observation of a model, from all gateways and the scale target.
"""
