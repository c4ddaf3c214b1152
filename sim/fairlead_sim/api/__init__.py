"""The HTTP endpoints of the simulated engine.

- ``app``, ``routes``: from a request to its handler
- ``chat``, ``completions``, ``messages``, ``responses``, ``embeddings``: generation
- ``tokenization``: token ids in and out
- ``admin``, ``info``: vLLM's management endpoints
- ``kv_peer``: KV transfer between engines
- ``debug``: ``/sim/…``, state and faults for tests
"""
