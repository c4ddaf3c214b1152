"""The HTTP/1.1 server side, used by workers and by the management port. It knows nothing of LLMs.

In reading order:

- `listener`: what the connections of a port share, responses, and clients that read none.
- `connection`: one client connection.
- `request_parser`: bytes to requests.
- `timers`, `sockets`, `trace_context`.
"""
