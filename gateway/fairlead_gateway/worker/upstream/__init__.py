"""Connections to engines, requests and responses.

- `connection`, `connection_pool`: HTTP/1.1 connections and their reuse.
- `request_encoder`: requests as engines get them.
- `response`, `sse`: responses and event streams; `usage`, `response_schemas`: what is read of them.
- `engine_call`: a call whose response is read as a whole.
"""
