"""The supervisor: the parent process of the workers. It does what is slow or happens once.

`supervisor` starts and stops everything. `worker_handle` and `worker_pool` run the
workers. `background_services` are `metrics_scraper`,
`decision_stream` and `peers`. `kv_index` follows what instances have cached, with the help of
`tokenizer`. `profiling` learns how fast instances are. `scale_from_zero` sends hints to the
autoscaler. `management` serves metrics, probes, the API and the status page.
"""
