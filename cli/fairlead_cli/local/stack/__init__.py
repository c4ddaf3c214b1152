"""A stack of ``fairlead up``, from its options to its last process.

Reading order: `options` → `launch` → `engine_plan` (with `unsupported_fields`, `scaled_models`) →
`stack_run` (with `component_commands`) → `supervisor` → `engine_process`, `sleep_controller`,
`autoscaler_sync`.
"""
