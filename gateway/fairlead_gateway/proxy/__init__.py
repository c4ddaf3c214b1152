"""Forwards requests to engines and relays their responses.

- `gateway`: receives all requests; `stages`: the parts below, built in order.
- `local_routes`: paths without an engine, with `context_lengths` of models.
- `model_selection`, `route_choice`, `fallbacks`: the model of a request; `shadow_traffic`: copies.
- `cors`, `memory_pressure`: requests of web pages, and bodies when memory is short.
- `fast_path`: a request without waits, in callbacks; `forwarder`: every other one, in a task.
- `attempt`: one try at one instance, and whether it failed.
- `relay`: the response to the client; `tool_calls`: the numbers of its tool calls.
- `relayed_stream`, `stream_silence`: streams without a task, and those without a byte.
- `request_recorder`: metrics, decision log and observers.
"""
