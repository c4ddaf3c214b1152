"""A thin, typed, asynchronous client of the Kubernetes API.

- `resources`: kinds, paths and metadata of objects. It loads no HTTP client.
- `client`: requests with retries, server-side apply and watches; `errors`: its errors.
- `informer`, `store`, `watch_events`: local copies of objects, kept up to date.
- `json_decoding`: objects and lists as JSON, of any depth.
- `leader_election`: leases.
- `events/`: the event recorder.
- `conditions`, `field_managers`: parts of status and metadata.
- `transport/`: kubeconfig, credentials, HTTP connections, watch streams, retries.

Import from the modules.
"""
