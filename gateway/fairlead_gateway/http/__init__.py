"""The HTTP/1.1 server side, used by workers and by the management port. It knows nothing of LLMs.

In reading order:

- `listener`: what the connections of a port share, and responses.
- `connection`: one client connection.
- `request_parser`: bytes to requests.
- `send_rate`: clients that read too slowly.
- `timers`, `sockets`, `tls_certificate`, `trace_context`.
"""
