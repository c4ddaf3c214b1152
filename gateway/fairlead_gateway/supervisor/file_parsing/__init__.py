"""Parses the files of fleet, keys and tenants in a process of their own, which ends afterwards.

- `protocol`: the messages between the supervisor and the parsing process.
- `process`: the parsing process.
- `client`: the supervisor's client of it, used from threads.
- `digest_list`: files that list names with digests.
- `key_list`, `tenant_list`: the content of a keys file and of a tenants file.

Why: the validation of these files takes 14 MB of memory, and they change rarely.
"""
