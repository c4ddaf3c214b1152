"""The HTTP/1.1 server side, used by workers and by the management port. It knows nothing of LLMs.

In reading order:

- `listener`: what the connections of a port share; `connection`: one client connection.
- `request_parser`, `request_head`, `chunked_body`: bytes to requests.
- `response_writer`: responses to bytes.
- `disconnect_detector`, `timers`, `sockets`, `tls`, `trace_context`, `hop_header`.
"""
