"""The HTTP layer of the simulated engine, on httptools; it behaves as uvicorn under vLLM does.

- ``connection``: bytes to requests, and responses to bytes
- ``fields``: typed access to JSON bodies
- ``errors``: the error tree with vLLM's status codes and bodies
"""
