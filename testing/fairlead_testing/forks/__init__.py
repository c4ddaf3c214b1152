"""Forks in place of new interpreters, for the product's programs that tests start.

- `programs`: the programs that may be forks, and the modules that each needs.
- `process`: `install`, which replaces `subprocess.Popen` and `asyncio.create_subprocess_exec`; what
  a fork server is asked for, and how it forks.
- `fork_server`: the process that has imported the modules; what a fork does before the program
  runs, and how it ends.
"""
