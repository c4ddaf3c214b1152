"""Parses the files of fleet, keys and tenants in a process of their own, which ends afterwards.

- `messages`: the messages between the supervisor and the parsing process.
- `process`: the parsing process.
- `client`: the supervisor's client of it, used from threads.

Why: the validation of these files takes 14 MB of memory, and they change rarely.
"""
