"""A worker process: serves requests, from receipt to record. See `docs/concepts/architecture.md`.

- `worker`, `services`: the process and its parts; `server`: its public port.
- `proxy`: one request from start to end; `request_context` is its state.
- `openai`: parses requests; `dispatch`: admits and routes them.
- `upstream`: connections to engines; `disaggregation`: prefill on another engine.
- `resilience`: retries, ejection, poison requests.
- `journal`: reports to the supervisor; `peer_updates`: what others did.
- `observability`: access log and traces.
- `body_check`: checks large bodies in a process.
- `api_keys`, `memory_pressure`, `runtime`.
"""
