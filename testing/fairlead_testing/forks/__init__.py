"""Forks in place of new interpreters, for the product's programs that tests start.

- `process`: the programs that may be forks, and the queries to a fork server. Its `install()`
  replaces `subprocess.Popen` and `asyncio.create_subprocess_exec`.
- `fork_server`: the process that has imported the modules; what a fork does before the program
  runs, and how it ends.
"""
