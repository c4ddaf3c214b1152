"""Forwards requests to engines and relays their responses.

- `gateway`: receives all requests; `local_routes`: paths without an engine.
- `forwarding_stack`: builds the parts below.
- `fast_path`: a request without waits, in callbacks; `forwarder`: every other one, in a task.
- `attempt`: one try at one instance; `response_check`: whether it failed.
- `relay`: the response to the client; `relayed_stream`, `stream_resume`, `continuation`: streams.
- `request_recorder`: metrics, decision log and observers.
"""
