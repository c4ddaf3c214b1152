"""A stack of ``fairlead up``, from its options to its last process.

Reading order: `launch` → `engine_plan` → `stack_run` (with `component_commands`) → `supervisor` →
`engine_process`.
"""
