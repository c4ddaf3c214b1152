"""Checks large request bodies in a process of their own, so that no parser stalls a worker.

- `protocol`: the messages between a worker and its checking process.
- `process`: the checking process.
- `client`: the worker's client of it, used from a thread.
- `caller_limit`: the bytes of large bodies of each caller that wait for it.
"""
