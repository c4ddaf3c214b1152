"""Connections to engines, requests and responses.

- `connection`, `connection_pool`: HTTP/1.1 connections, their reuse, and calls not relayed.
- `request_encoder`, `engine_address`: requests as engines get them.
- `response`, `sse`: responses and event streams; `usage`, `response_schemas`: what is read of them.
- `stream_record`: what `fairlead_gateway.continuation` reads while a stream passes.
"""
