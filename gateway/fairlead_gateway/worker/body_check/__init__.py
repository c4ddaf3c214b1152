"""Checks large request bodies in a process of their own, so that no parser stalls a worker.

- `protocol`: the messages between a worker and its checking process, and bounds of tokens.
- `process`: the checking process.
- `client`: the worker's client of it, used from a thread.
- `caller_limit`: the queue of large bodies before it, with a limit for each caller.
"""
