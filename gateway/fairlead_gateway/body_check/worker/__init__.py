"""A worker's side of its checking process.

- `client`: the client of the process, used from a thread.
- `caller_limit`: the queue of large bodies before it, with a limit for each caller.
"""
