"""A stack on this machine (``fairlead up``).

Reading order: `stack` (from the options to running processes) → `processes` (one child process, and
that none survives) → `view` (what the terminal shows) → `status` (``fairlead local status``).
`run_directory` is how other commands find a stack.
"""
