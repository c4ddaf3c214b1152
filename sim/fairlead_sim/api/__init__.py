"""The HTTP endpoints of the simulated engine.

- ``app``, ``routes``: from a request to its handler
- ``chat``, ``completions``, ``messages``, ``responses``: generation, and embeddings
- ``scores``: rankings, scores and classes
- ``response_store``: stored responses
- ``tokenization``: token ids in and out
- ``admin``: vLLM's management endpoints, KV transfer, and ``/sim/…``: state and faults for tests
"""
