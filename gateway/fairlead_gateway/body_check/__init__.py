"""Checks large request bodies in a process of their own, so that no parser stalls a worker.

- `messages`: the messages between a worker and its checking process.
- `process`: the checking process.
- `worker`: the queue of large bodies, and the client of the process.
"""
