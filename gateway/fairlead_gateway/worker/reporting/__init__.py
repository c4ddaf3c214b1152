"""Messages between a worker and the supervisor.

- `reporters`: what a worker reports, as one value.
- `dispatch_reporter`: dispatches, crashes and loads, for siblings and other gateways.
- `timing_reporter`: request times, for engine profiles.
- `index_reporter`, `prompt_samples`: for the KV-cache index.
- `peer_updates`: applies what other processes did.
"""
