"""The supervisor: the parent process of the workers. It does what is slow or happens once.

- `supervisor`: starts and stops everything; `config`: what it starts with.
- `worker_handle`, `worker_pool`: run the workers.
- `background_services`: `metrics_scraper`, `decision_publisher`, and those of features.
- `scale_from_zero`: hints to the autoscaler.
- `management`: metrics, probes, the API and the status page.
- `file_parsing`: a process that parses the files of fleet, keys and tenants.

Each feature has its part of the supervisor in its own folder.
"""
