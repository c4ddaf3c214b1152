"""Connections to engines, requests and responses.

- `connection`, `connection_pool`: HTTP/1.1 connections and their reuse.
- `connect_errors`: whether the engine or this gateway is the cause of a failed connect.
- `request_encoder`: requests as engines get them; `hop_header`: the gateways that they passed.
- `response`, `sse`: responses and event streams; `usage`, `response_schemas`: what is read of them.
- `engine_call`: a call whose response is read as a whole.
"""
