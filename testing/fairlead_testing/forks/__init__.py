"""Forks in place of new interpreters, for the product's programs that tests start.

- `process`: `install`, which replaces `subprocess.Popen` and `asyncio.create_subprocess_exec`; the
  programs that may be forks; what a fork server is asked for, and how it forks.
- `fork_server`: the process that has imported the modules; what a fork does before the program
  runs, and how it ends.
"""
